"""``sampdetox inspect``: the drawing and the numbers of one picture."""

import json

import numpy as np
import pytest
from cli_pictures import colours, files, pixels, save
from PIL import Image

from sampdetox_transforms import SampDetox
from sampdetox_transforms.cli.purify.files import read_picture
from sampdetox_transforms.lab.demo.classifier import TRIGGERS
from sampdetox_transforms.lab.demo.signs import draw_signs


def test_inspect_draws_and_reports(run, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = save(tmp_path / "in/a.png", colours())
    status, out, err = run("inspect", source, "--weights", weights, "--preset", "ddim", "--seed", 0)
    assert (status, err) == (0, "")
    assert files(tmp_path) == ["a-panel.png", "in/a.png"]
    assert pixels(tmp_path / "a-panel.png").shape[1] > 1000
    facts = dict(line.split("  ", 1) for line in out.splitlines())
    detox = SampDetox(weights, preset="ddim", seed=0)
    with Image.open(source) as image:
        explained = detox.explain(image)
    change = np.abs(np.asarray(explained.image).astype(float) - colours()).mean()
    assert float(facts["mean change"].split()[0]) == pytest.approx(change, abs=0.01)
    sigma, grey = facts["sigma1"].replace("(", "").split()[:2]
    assert float(sigma) == pytest.approx(explained.sigma1, abs=1e-4)
    assert float(grey) == pytest.approx(explained.sigma1 * 127.5, abs=0.1)
    assert facts["sigma1"].endswith(", level 20")
    share = float((explained.timestep_map > 60).double().mean()) * 100
    assert float(facts["level > 60"].split()[0]) == pytest.approx(share, abs=0.06)
    moved = float((explained.timestep_map > 0).double().mean()) * 100
    assert float(facts["level > 0"].split()[0]) == pytest.approx(moved, abs=0.06) and moved < 100
    assert facts["network calls"].strip() == "7"


def test_the_level_is_the_one_that_the_picture_had(run, tmp_path):
    """Photographs have a lighter one than the settings say, pictures in doubt a higher one."""
    detox = SampDetox("bundled", seed=0)
    loud = [colours(seed, (32, 32, 3)) for seed in range(12)]
    small = [picture // 4 + 96 for picture in loud] + loud
    own = [float(detox.explain(Image.fromarray(picture)).level1) for picture in small]
    pictures = [small[own.index(level)] for level in (12, 40)] + [colours(0, (96, 96, 3))]
    levels = []
    for number, picture in enumerate(pictures):
        save(tmp_path / f"{number}.png", picture)
        flags = ("--weights", "bundled", "-o", tmp_path / "panel.png", "--seed", 0, "--json")
        levels.append(json.loads(run("inspect", tmp_path / f"{number}.png", *flags)[1])["level1"])
    assert levels == [12, 40, 2]


@pytest.mark.parametrize("name", ["panel.pdf", "deeper/panel.svg", "."])
def test_inspect_takes_drawings_and_folders(run, weights, tmp_path, name):
    save(tmp_path / "a.tif", colours(size=(9, 12), dtype="uint16"))
    (tmp_path / "deeper").mkdir()
    assert run("inspect", tmp_path / "a.tif", "-o", tmp_path / name, "--weights", weights)[0] == 0
    assert (tmp_path / ("a-panel.png" if name == "." else name)).stat().st_size > 1000


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("name", "reason"), [("a.png", "must not replace"), ("x.jpg", ".png"), ("a.png/x.png", "Not")])
def test_inspect_refuses_before_the_weights_are_loaded(run, tmp_path, name, reason):
    source = save(tmp_path / "a.png", colours())
    status, _, err = run("inspect", source, "-o", tmp_path / name)
    assert status == 2 and reason in err and err.count("\n") == 1
    assert files(tmp_path) == ["a.png"]


@pytest.mark.usefixtures("no_weights")
def test_inspect_names_an_unreadable_picture(run, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    status, _, err = run("inspect", tmp_path / "a.png")
    assert status == 2 and "a.png: not a picture of a known kind" in err


@pytest.fixture
def marked(tmp_path):
    """A sign with a white square, and the flags that find it."""
    image = TRIGGERS[2].plant(draw_signs(2, seed=4)[0][1])
    return save(tmp_path / "sign.png", (image * 255).round().byte().permute(1, 2, 0).numpy())


SEARCH = ("--weights", "bundled", "--preset", "restore", "--seed", 0, "--device", "cpu")


def test_inspect_says_what_the_search_found_and_names_no_map(run, tmp_path, marked):
    status, out, err = run("inspect", marked, *SEARCH, "-o", tmp_path / "panel.png")
    assert status == 0, err
    assert "of clean pictures look at least as suspicious: treated" in out and "filled" in out
    assert "stride 60, search and fill, linear levels" in out and "map" not in out


def test_inspect_prints_one_json_object(run, tmp_path, marked):
    status, out, err = run("inspect", marked, *SEARCH, "-o", tmp_path / "panel.png", "--json")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert found["treated"] is True and 0 < found["filled"] < 0.5 and found["network_calls"] > 3
    assert (found["picture"], found["panel"]) == (str(marked), str(tmp_path / "panel.png"))
    assert "lightened" not in found  # a flagged picture is answered otherwise
    plain = ("--weights", "bundled", "--preset", "ddim", "--device", "cpu", "-o", tmp_path / "panel.png", "--json")
    without = json.loads(run("inspect", marked, *plain)[1])
    assert "treated" not in without and "map ssim" in without["settings"] and without["level_above_0"] > 0


def test_inspect_says_what_an_unflagged_picture_lost_before_the_light_stage(run, tmp_path):
    sign = save(tmp_path / "clean.png", (draw_signs(1, seed=4)[0][0] * 255).round().byte().permute(1, 2, 0).numpy())
    found = json.loads(run("inspect", sign, *SEARCH, "-o", tmp_path / "panel.png", "--json")[1])
    taken = SampDetox("bundled", seed=0).explain(read_picture(sign).pixels).lightened
    assert found["treated"] is False and found["lightened"] > 0
    assert found["lightened"] == pytest.approx(taken.abs().mean().item() * 255, rel=1e-3)
    out = run("inspect", sign, *SEARCH, "-o", tmp_path / "panel.png")[1]
    assert "as suspicious: not flagged" in out and f"by {found['lightened']:.1f} grey levels" in out


@pytest.mark.usefixtures("no_weights")
def test_inspect_refuses_large_pictures(run, tmp_path):
    source = save(tmp_path / "a.png", colours())
    status, out, err = run("inspect", source, "--max-pixels", 107)
    assert (status, out) == (2, "") and "must have 107 pixels or fewer, got 12x9 = 108" in err
