"""``sampdetox purify``, called in-process on small pictures and a tiny network with random weights."""

import errno
import json
import os

import numpy as np
import pytest
from cli_pictures import colours, files, pixels, save
from PIL import Image

from sampdetox_transforms import SampDetox
from sampdetox_transforms.cli import shared
from sampdetox_transforms.cli.purify import command
from sampdetox_transforms.lab.demo.signs import draw_signs
from sampdetox_transforms.transforms import transform

IDENTITY = ("--preset", "ddim", "--t1", "0", "--t2", "0")


def test_a_tree_is_mirrored_without_loss(run, weights, tmp_path):
    a = save(tmp_path / "in/a.png", colours(1))
    b = save(tmp_path / "in/deep/er/b.bmp", colours(2))
    c = save(tmp_path / "in/deep/c.JPG", colours(3, (16, 16, 3)), format="JPEG")
    d = save(tmp_path / "in/deep/d.webp", colours(4, (7, 5)), lossless=True)
    (tmp_path / "in/labels.csv").write_text("a,1\n")
    (tmp_path / "in/.hidden.png").write_text("no picture")
    status, out, err = run("purify", tmp_path / "in", tmp_path / "new/out", "--weights", weights, *IDENTITY)
    assert (status, err) == (0, "")
    assert "purified 4, left out 2 other files" in out
    assert files(tmp_path / "new/out") == ["a.png", "deep/c.png", "deep/d.png", "deep/er/b.png"]
    for source, name in ((a, "a"), (b, "deep/er/b"), (c, "deep/c"), (d, "deep/d")):
        with Image.open(tmp_path / f"new/out/{name}.png") as image:
            assert image.format == "PNG"
            assert np.array_equal(np.asarray(image), pixels(source))


def test_pictures_are_really_purified(run, weights, tmp_path):
    source = save(tmp_path / "a.png", colours())
    status, out, _ = run("purify", source, tmp_path / "b.png", "--weights", weights, "--seed", 1)
    assert status == 0 and "purified 1;" in out
    detox = SampDetox(weights, seed=1)
    with Image.open(source) as image:
        assert np.array_equal(pixels(tmp_path / "b.png"), np.asarray(detox(image)))
    assert not np.array_equal(pixels(tmp_path / "b.png"), pixels(source))


@pytest.mark.parametrize(("out", "written"), [("there", "there/a.png"), ("new", "new/a.png"), ("x.png", "x.png")])
def test_one_picture_goes_to_a_folder_or_a_file(run, weights, tmp_path, out, written):
    (tmp_path / "there").mkdir()
    save(tmp_path / "a.jpg", colours())
    assert run("purify", tmp_path / "a.jpg", tmp_path / out, "--weights", weights)[0] == 0
    assert files(tmp_path) == sorted(["a.jpg", written])


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("out", ["a.png", ".", "b.jpg", "there.txt"])
def test_one_picture_is_not_replaced_nor_made_lossy(run, tmp_path, out):
    (tmp_path / "there.txt").touch()
    source = save(tmp_path / "a.png", colours())
    status, _, err = run("purify", source, tmp_path / out, "--overwrite")
    assert status == 2 and err.startswith("sampdetox: error: OUT must")
    assert np.array_equal(pixels(source), colours()) and len(files(tmp_path)) == 2


def test_a_second_run_writes_only_what_is_missing(run, weights, tmp_path):
    for i in range(3):
        save(tmp_path / f"in/{i}.png", colours(i))
    command = ("purify", tmp_path / "in", tmp_path / "out", "--weights", weights, "--seed", 0)
    assert "purified 3;" in run(*command)[1]
    first = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files(tmp_path / "out")}
    status, out, _ = run(*command)
    assert status == 0 and "purified 0, skipped 3" in out
    (tmp_path / "out/1.png").unlink()
    assert "purified 1, skipped 2" in run(*command)[1]
    second = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files(tmp_path / "out")}
    assert {name for name in first if first[name] != second[name]} == {"1.png"}
    assert "purified 3;" in run(*command, "--overwrite")[1]
    assert (tmp_path / "out/0.png").stat().st_mtime_ns != first["0.png"]


def test_nothing_to_do_loads_no_weights(run, weights, tmp_path, monkeypatch):
    save(tmp_path / "in/a.png", colours())
    run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)
    monkeypatch.setattr(command, "make_detox", None)
    assert run("purify", tmp_path / "in", tmp_path / "out")[0] == 0


@pytest.mark.usefixtures("no_weights")
def test_bad_paths_are_known_before_the_weights_are_loaded(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    save(tmp_path / "in/a.png", colours())
    for source, out, reason in (
        ("absent", "out", "does not exist"),
        ("empty", "out", "got none in"),
        ("in", "file", "Not a directory"),
        ("in", "file/below", "Not a directory"),
        ("in/a.png", "file/below", "Not a directory"),
    ):
        status, stdout, err = run("purify", tmp_path / source, tmp_path / out)
        assert (status, stdout) == (2, "")
        assert err.startswith("sampdetox: error: ") and err.count("\n") == 1 and reason in err
    assert files(tmp_path) == ["file", "in/a.png"] and not (tmp_path / "out").exists()


def test_a_folder_without_permission_is_known_before(run, tmp_path, monkeypatch):
    save(tmp_path / "in/a.png", colours())

    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(shared.tempfile, "TemporaryFile", refuse)  # root may write anywhere
    monkeypatch.setattr(command, "make_detox", None)
    status, _, err = run("purify", tmp_path / "in", tmp_path / "out")
    assert status == 2 and "Permission denied" in err


def test_an_interrupt_is_130(run, monkeypatch, tmp_path):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "prepare", interrupt)
    status, _, err = run("purify", tmp_path, tmp_path / "out")
    assert status == 130 and "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--preset", "papr"), "Did you mean 'paper'"),
        (("--sampler", "ddmp"), "Did you mean"),
        (("--t1", "-1"), "t1 must be 0 or more"),
        (("--t2", "161"), "t1 and t2 must be in [0, 160]"),
        (("--preset", "authors-code", "--t2", "160"), "level 161 is needed"),
        (("--preset", "authors-code", "--stride", "20"), "the settings of 'authors-code' are t1, t2, got stride=20"),
        (("--weights", "bundeld"), "Did you mean BUNDLED"),
        (("--device", "cuda:99"), "device must be one that is available"),
        (("--batch-size", "0"), "batch_size must be a whole number of 1 or more"),
    ],
)
def test_a_bad_setting_is_one_line(run, weights, tmp_path, flags, message):
    source = save(tmp_path / "a.png", colours())
    status, out, err = run("purify", source, tmp_path / "b.png", "--weights", weights, *flags)
    assert (status, out) == (2, "")
    assert err.startswith("sampdetox: error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "b.png").exists()


# What is said at the end


SIGNS = ("--weights", "bundled", "--preset", "restore", "--seed", 0, "--device", "cpu")


@pytest.fixture
def signs(tmp_path):
    """A folder with a sign that looks clean, the same with a white square, and a file that is no picture."""
    sign = draw_signs(1, seed=36)[0][0]
    triggered = sign.clone()
    triggered[:, 5:11, 20:26] = 1
    for name, image in (("a", sign), ("deep/b", triggered)):
        save(tmp_path / f"in/{name}.png", (image * 255).round().byte().movedim(0, -1).numpy())
    (tmp_path / "in/c.png").write_text("no picture")
    return tmp_path / "in"


def test_the_last_line_says_what_was_changed_beyond_the_light_stage(run, signs, tmp_path):
    status, out, _ = run("purify", signs, tmp_path / "out", *SIGNS)
    assert status == 1
    assert out.splitlines()[1:] == ["1 of 2 pictures were changed beyond the light stage; most: deep/b.png"]
    assert len(run("purify", signs, tmp_path / "out", *SIGNS)[1].splitlines()) == 1, "nothing was purified"


def test_the_summary_as_json(run, signs, tmp_path):
    status, out, err = run("purify", signs, tmp_path / "out", *SIGNS, "--json")
    found = json.loads(out)
    share = found["changed"]["share_of_pixels"].pop(str(signs / "deep/b.png"))
    assert status == 1 and 0 < share < 0.4 and "c.png: not a picture" in err
    reason = found["failed"][0].pop("reason")
    assert reason.startswith("not a picture of a known kind")
    assert found == {
        "purified": 2,
        "skipped": 0,
        "left_out": 0,
        "failed": [{"picture": str(signs / "c.png")}],
        "changed": {"count": 1, "most": [str(signs / "deep/b.png")], "share_of_pixels": {}},
        "matched": None,
        "shared_triggers": None,
        "out": str(tmp_path / "out"),
        "report": None,
    }


def test_quiet_says_failures_only(run, signs, tmp_path):
    status, out, err = run("purify", signs, tmp_path / "out", *SIGNS, "--quiet")
    assert (status, out) == (1, "") and err.count("\n") == 1 and "c.png" in err


def test_verbose_says_what_is_done(run, signs, tmp_path):
    _, _, err = run("purify", signs, tmp_path / "out", *SIGNS, "-v")
    assert (
        "sampdetox: settings: t1=12 (2 above 48 pixels, 40 in doubt), t2=120, ddim, stride 60, search and fill" in err
    )
    assert f"sampdetox: {signs / 'a.png'} is purified" in err
    assert "is purified" not in run("purify", signs, tmp_path / "again", *SIGNS)[2]
    assert run("purify", signs, tmp_path / "out", "-v", "--quiet")[0] == 2


def test_names_cannot_write_to_the_terminal(run, weights, tmp_path):
    """Nor break the line, where they hold line ends or are not UTF-8."""
    save(tmp_path / "in/a\x1b[31m\n.png", colours(size=(8, 8, 3)))
    os.rename(save(tmp_path / "in/b.png", colours(1, (8, 8, 3))), os.fsencode(tmp_path / "in") + b"/\xff.png")
    (tmp_path / "in/c\x1b]0;x\x07.png").write_text("no picture")
    status, out, err = run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights, "--preset", "ddim")
    assert status == 1 and "\x1b" not in out + err and err.count("\n") == 1 and out.count("\n") == 2
    assert "a\\x1b[31m\\n.png" in out and "\\udcff.png" in out and "c\\x1b]0;x\\x07.png" in err


# Doors


@pytest.mark.parametrize("door", ["calibration", "restorer", "trigger"])
def test_doors_are_handed_to_the_transform_where_they_are_given(run, weights, tmp_path, monkeypatch, door):
    source = save(tmp_path / "a.png", colours())
    handed = []

    def build(weights, **settings):
        handed.append({name: settings.pop(name) for name in ("calibration", "restorer", "trigger") if name in settings})
        return SampDetox(weights, **settings)

    monkeypatch.setattr(transform, "SampDetox", build)
    base = ("purify", source, tmp_path / "b.png", "--weights", weights, "--overwrite")
    assert run(*base)[0] == 0
    assert run(*base, f"--{door}", tmp_path / "given")[0] == 0
    assert handed == [{}, {door: tmp_path / "given"}]
