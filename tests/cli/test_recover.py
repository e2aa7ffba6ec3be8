"""``sampdetox recover``, and ``purify`` with ``--trigger`` and ``--together``: some pictures carry a square."""

import io
import json
import pickle

import fake_ray
import numpy as np
import pytest
import torch
from cli_pictures import colours, files, pixels, save
from PIL import Image
from samples import CALIBRATIONS, WhiteIsForeign

from sampdetox_transforms import SampDetox, SharedTrigger
from sampdetox_transforms.cli import inspect, recover
from sampdetox_transforms.cli.app.answer import clean
from sampdetox_transforms.cli.purify import command, together
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.networks.restorers import Restorers
from sampdetox_transforms.transforms import shared_trigger
from sampdetox_transforms.transforms.shared_images import LEAST_IMAGES

CARRIERS, NUMBER, SIDE = 14, 40, 16


def picture(seed: int, carries: bool, side: int = SIDE) -> np.ndarray:
    """Soft colours and a little noise, no white; a white square where it carries the trigger."""
    noise = np.random.default_rng(seed).integers(-6, 7, (side, side, 3))
    array = np.clip(colours(seed, (side, side, 3)) * 0.6 + 30 + noise, 0, 200).astype("uint8")
    if carries:
        array[10:13, 9:12] = 255
    return array


@pytest.fixture
def folder(tmp_path):
    for i in range(NUMBER):
        save(tmp_path / f"in/{i:02}.png", picture(i, i < CARRIERS))
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def searching(monkeypatch, tiny):
    """White is a trigger, and is filled with red; nothing else is done to pictures."""

    def make(trigger=None, seed=0, **settings) -> SampDetox:
        made = SampDetox(tiny, preset=Restore(t1=0, gain=0, colour_gain=0, jitter=0), seed=seed, trigger=trigger)
        made.restorer, made.calibration = Restorers(WhiteIsForeign()), CALIBRATIONS
        return made

    monkeypatch.setattr(recover, "make_detox", make)
    monkeypatch.setattr(command, "make_detox", make)


class TestRecover:
    def test_file_and_picture(self, run, folder, tmp_path):
        status, out, err = run("recover", folder, "-o", tmp_path / "new/trigger.safetensors", "--quiet")
        assert (status, out, err) == (0, "", "")
        assert files(tmp_path / "new") == ["trigger.png", "trigger.safetensors"]
        trigger = SharedTrigger.load(tmp_path / "new/trigger.safetensors")
        assert trigger.images == CARRIERS and trigger.covers
        covered = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        covered[10:13, 9:12] = True
        assert torch.equal(trigger.opacity[0] > 0.5, covered)
        with Image.open(tmp_path / "new/trigger.png") as image:
            assert image.width > 6 * image.height > 0  # two tiles of the trigger, five pairs of pictures

    def test_one_line_says_what_was_found(self, run, folder, tmp_path):
        status, out, _ = run("recover", folder, "-o", tmp_path / "trigger.safetensors")
        assert status == 0 and out.count("\n") == 1
        assert f"found a patch of 3.5% of the pixels, for pictures of 16x16 (p <= 0.01), in 14 of {NUMBER}" in out

    def test_as_json(self, run, folder, tmp_path):
        _, out, _ = run("recover", folder, "-o", tmp_path / "t.safetensors", "--json", "--seed", 1)
        document = json.loads(out)
        (found,) = document["triggers"]
        assert document["pictures"] == NUMBER and found["found_in"] == CARRIERS
        assert found["small_enough_to_take_out_unasked"] and found["area"] == pytest.approx(9 / 256)

    def test_nothing_found_writes_nothing(self, run, tmp_path):
        for i in range(20):
            save(tmp_path / f"in/{i}.png", picture(i, False))
        status, out, err = run("recover", tmp_path / "in", "-o", tmp_path / "t.safetensors")
        assert (
            status == 0
            and "failed" not in err
            and out.startswith("found no trigger that pictures share, in 20 pictures")
        )
        assert not (tmp_path / "t.safetensors").exists()

    def test_sizes_apart(self, run, folder, tmp_path):
        for i in range(20):
            save(tmp_path / f"in/more/{i}.png", picture(100 + i, i < 10, 20))
        status, out, _ = run("recover", folder, "-o", tmp_path / "t.safetensors")
        assert status == 0 and "for pictures of 16x16" in out and "for pictures of 20x20" in out
        shapes = [SharedTrigger.load(tmp_path / name).pattern.shape for name in ("t.safetensors", "t-2.safetensors")]
        assert shapes == [(3, 16, 16), (3, 20, 20)]

    def test_pictures_that_cannot_be_read_are_named_once(self, run, folder, tmp_path):
        (folder / "broken.png").write_bytes(b"no")
        status, out, err = run("recover", folder, "-o", tmp_path / "t.safetensors")
        assert status == 1 and err.count("broken.png") == 1 and f"of {NUMBER} pictures" in out

    @pytest.mark.parametrize(
        ("out", "reason"),
        [
            ("t.png", "must end in .safetensors"),
            ("in/t.safetensors", "outside of FOLDER"),
            ("in/deep/t.safetensors", "outside of FOLDER"),
        ],
    )
    def test_bad_places_before_any_work(self, run, folder, tmp_path, monkeypatch, out, reason):
        monkeypatch.setattr(recover, "make_detox", None)
        status, _, err = run("recover", folder, "-o", tmp_path / out)
        assert status == 2 and reason in err and err.count("\n") == 1

    def test_pictures_of_many_sizes_before_any_work(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(recover, "make_detox", None)
        for i in range(20):
            save(tmp_path / f"sizes/{i}.png", colours(i, (16 + i // 4, 40 + i // 4, 3)))
        status, _, err = run("recover", tmp_path / "sizes", "-o", tmp_path / "t.safetensors")
        assert status == 2 and "8 pictures or more of one size, got 4 at most" in err

    def test_turned_pictures_count_as_of_one_size(self, tmp_path):
        names = [save(tmp_path / f"{i}.png", colours(i, (16, 20, 3) if i % 2 else (20, 16, 3))) for i in range(6)]
        (tmp_path / "broken.png").write_bytes(b"no")
        assert recover.most_of_one_size([*names, tmp_path / "broken.png"]) == 7

    def test_bad_input(self, run, folder, tmp_path):
        out = ("-o", tmp_path / "t.safetensors")
        (tmp_path / "few").mkdir()
        for i in range(20):
            save(tmp_path / f"same/{i}.png", picture(0, True))
            save(tmp_path / f"black/{i}.png", np.zeros((9, 9, 3), "uint8"))
            save(tmp_path / f"mixed/{i}.png", picture(i, True) if i % 2 else picture(i, True)[..., 0])
        for name, reason in (
            ("few", "8 pictures or more, got 0"),
            ("absent", "folder of pictures"),
            ("same", "8 different ones or more, got 1"),
            ("black", "8 different ones or more, got 1"),
            ("mixed", "all be grey or all in colour"),
        ):
            status, _, err = run("recover", tmp_path / name, *out)
            assert status == 2 and reason in err, name
        status, _, err = run("recover", folder, *out, "--false-alarm-rate", 0)
        assert status == 2 and "false_alarm_rate" in err
        assert not (tmp_path / "t.safetensors").exists()


class TestPurifyWithTrigger:
    def test_it_is_taken_out_where_it_is(self, run, folder, tmp_path):
        run("recover", folder, "-o", tmp_path / "t.safetensors")
        status, out, _ = run("purify", folder, tmp_path / "out", "--trigger", tmp_path / "t.safetensors")
        assert status == 0 and f"recognised in {CARRIERS} of them" in out
        assert pixels(tmp_path / "out/00.png")[10:13, 9:12].max() < 255
        assert np.array_equal(pixels(tmp_path / "out/30.png"), picture(30, False))

    def test_actors_of_ray_take_it_out_as_one_process_does(self, run, folder, tmp_path, monkeypatch):
        ray = fake_ray.install(monkeypatch, CPU=2)
        monkeypatch.setattr(ray, "get", lambda value: pickle.loads(pickle.dumps(value)))  # as between processes
        threads = torch.get_num_threads()
        command = ("purify", folder, "--trigger", tmp_path / "t.safetensors", "--device", "cpu", "--json")
        run("recover", folder, "-o", tmp_path / "t.safetensors")
        documents = []
        for name, flag in (("one", ()), ("ray", ("--ray",))):
            status, out, _ = run(*command[:2], tmp_path / name, *command[2:], *flag)
            assert status == 0
            documents.append(json.loads(out))
        torch.set_num_threads(threads)  # an actor takes one
        assert len(documents[0]["matched"]) == CARRIERS and documents[1]["matched"] == documents[0]["matched"]
        assert len(fake_ray.SEEN) == 1
        for i in range(NUMBER):
            one, other = (pixels(tmp_path / f"{name}/{i:02}.png").astype(int) for name in ("one", "ray"))
            assert np.abs(one - other).max() <= 1 and (one[10:13, 9:12] < 255).all()

    def test_the_app_says_so_and_takes_it_out(self, run, folder, tmp_path):
        run("recover", folder, "-o", tmp_path / "t.safetensors")
        detox = command.make_detox(trigger=tmp_path / "t.safetensors")
        for name, carries, said in (
            ("00", True, "recognised, and taken out first"),
            ("30", False, "not in this picture"),
        ):
            answer = clean((folder / f"{name}.png").read_bytes(), detox)
            assert answer.facts["Shared trigger"] == said and answer.numbers["matched"] is carries
            assert ("shared trigger was recognised" in answer.verdict) is carries
            after = np.asarray(Image.open(io.BytesIO(answer.after)))
            assert after[10:13, 9:12].max() < 255 and (carries or np.array_equal(after, picture(30, False)))
        large = save(tmp_path / "large.png", picture(0, False, 20)).read_bytes()
        with pytest.raises(ValueError, match="images must have the shape of the trigger"):
            clean(large, detox)

    def test_inspect_says_so_and_shows_it(self, run, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(inspect, "make_detox", command.make_detox)
        run("recover", folder, "-o", tmp_path / "t.safetensors")
        panels = []
        for name, said in (("00", "recognised, and taken out first"), ("30", "shared trigger  no")):
            panels.append(tmp_path / f"{name}-panel.png")
            given = ("--trigger", tmp_path / "t.safetensors", "-o", panels[-1])
            status, out, _ = run("inspect", folder / f"{name}.png", *given)
            assert status == 0 and said in out.replace("   ", "")
        with Image.open(panels[0]) as with_it, Image.open(panels[1]) as without:
            assert with_it.width > 1.1 * without.width  # a tile more

    def test_pictures_of_another_size_fail(self, run, folder, tmp_path):
        run("recover", folder, "-o", tmp_path / "t.safetensors")
        save(folder / "large.png", picture(0, False, 20))
        status, _, err = run("purify", folder, tmp_path / "out", "--trigger", tmp_path / "t.safetensors")
        assert status == 1 and "large.png: images must have the shape of the trigger" in err

    def test_a_broken_file(self, run, folder, tmp_path):
        (tmp_path / "t.safetensors").write_bytes(b"no")
        status, _, err = run("purify", folder, tmp_path / "out", "--trigger", tmp_path / "t.safetensors")
        assert status == 2 and "SharedTrigger.save wrote" in err and not (tmp_path / "out").exists()


class TestTogether:
    def test_carriers_are_purified_without_it(self, run, folder, tmp_path):
        status, out, err = run("purify", folder, tmp_path / "out", "--together", "--json")
        document = json.loads(out)
        assert status == 0 and "failed" not in err and document["purified"] == NUMBER
        (shared,) = document["shared_triggers"]
        assert (shared["pictures"], shared["of"], shared["taken_out"]) == (CARRIERS, NUMBER, True)
        run("recover", folder, "-o", tmp_path / "t.safetensors")
        run("purify", folder, tmp_path / "other", "--trigger", tmp_path / "t.safetensors")
        for name in files(tmp_path / "out"):
            assert np.array_equal(pixels(tmp_path / "out" / name), pixels(tmp_path / "other" / name)), name

    def test_goes_on_after_a_kill_between_the_passes(self, run, folder, tmp_path):
        run("purify", folder, tmp_path / "out")  # as far as the first pass came
        status, out, _ = run("purify", folder, tmp_path / "out", "--together")
        assert status == 0 and f"{CARRIERS} of {NUMBER} pictures share a trigger: it was taken out of them" in out
        run("purify", folder, tmp_path / "other", "--together")
        for name in files(tmp_path / "out"):
            assert np.array_equal(pixels(tmp_path / "out" / name), pixels(tmp_path / "other" / name)), name

    def test_nothing_shared(self, run, tmp_path):
        for i in range(20):
            save(tmp_path / f"in/{i}.png", picture(i, False))
        status, out, _ = run("purify", tmp_path / "in", tmp_path / "out", "--together")
        assert status == 0 and "no trigger was found that pictures share" in out

    @pytest.mark.parametrize("limit", ["LARGEST_AREA", "LARGEST_ENERGY"])
    def test_what_is_large_is_reported_and_left(self, run, folder, tmp_path, monkeypatch, limit):
        from sampdetox_transforms.transforms import shared_trigger

        monkeypatch.setattr(shared_trigger, limit, 0.01)
        _, out, _ = run("purify", folder, tmp_path / "out", "--together")
        assert "share a trigger, which was left in: it is large" in out
        run("purify", folder, tmp_path / "other")
        assert np.array_equal(pixels(tmp_path / "out/00.png"), pixels(tmp_path / "other/00.png"))

    def test_what_most_pictures_carry_is_left(self, run, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(shared_trigger, "LARGEST_SHARE", 0.2)
        _, out, _ = run("purify", folder, tmp_path / "out", "--together")
        assert "most of them carry it" in out

    def test_what_it_cannot_go_with(self, run, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(command, "make_detox", None)
        (tmp_path / "t.safetensors").touch()
        save(tmp_path / "few/a.png", picture(0, False))
        for source, more, reason in (
            (folder, ("--trigger", tmp_path / "t.safetensors"), "--trigger, which knows one"),
            (tmp_path / "few", (), "got 1 of"),
            (folder / "00.png", (), "got 1 of"),
            (folder, ("--ray",), "--ray, whose processes see a part"),
        ):
            status, _, err = run("purify", source, tmp_path / "out", "--together", *more)
            assert status == 2 and reason in err

    def test_it_asks_for_as_many_as_the_library(self):
        assert together.LEAST == LEAST_IMAGES
