"""``sampdetox calibrate``: thresholds of clean pictures, written whole or not at all."""

import json
import os
from pathlib import Path

import pytest
from cli_pictures import colours, files, save

from sampdetox_transforms import SampDetox
from sampdetox_transforms.cli import calibrate as cli
from sampdetox_transforms.cli.purify.files import read_picture
from sampdetox_transforms.networks.restorer_files import load_calibration, load_calibrations


@pytest.fixture
def clean(tmp_path):
    """Six pictures of two sizes, one of them in a folder below, and a file of another kind."""
    for i in range(6):
        save(tmp_path / f"clean/{'deep/' if i == 5 else ''}{i}.png", colours(i, (9 if i % 2 else 12, 12, 3)))
    (tmp_path / "clean/labels.csv").touch()
    return tmp_path / "clean"


def test_the_thresholds_are_those_of_the_library(run, clean, tiny, tmp_path):
    out = tmp_path / "new/thresholds.json"
    flags = ("--weights", tiny, "--device", "cpu", "--false-alarm-rate", 0.4)
    status, printed, err = run("calibrate", clean, "-o", out, *flags)
    assert (status, err) == (0, "")
    assert printed.startswith(f"measured 6 clean pictures; thresholds in {out}\n")
    found = load_calibration(out)
    images = [read_picture(path).pixels for path in sorted(clean.rglob("*.png"))]
    expected = SampDetox(str(tiny)).calibrate(images, false_alarm_rate=0.4).small
    assert found.thresholds == pytest.approx(expected.thresholds, abs=1e-3)
    assert (found.images, found.false_alarm_rate) == (6, 0.4)
    assert found.data == "/".join(clean.parts[-2:])
    assert found.thresholds != load_calibration(_own()).thresholds


def _own():
    from sampdetox_transforms.networks.restorer_files import CALIBRATION, RESTORER_FOLDER

    return RESTORER_FOLDER / CALIBRATION


def test_the_thresholds_as_json(run, clean, tiny, tmp_path):
    out = tmp_path / "t.json"
    flags = ("--weights", tiny, "--device", "cpu", "--false-alarm-rate", 0.5, "--json")
    status, printed, err = run("calibrate", clean, "-o", out, *flags)
    found = json.loads(printed)
    local, dense = load_calibration(out).thresholds
    assert (status, err) == (0, "") and (found["images"], found["failed"], found["out"]) == (6, [], str(out))
    assert list(found["thresholds"]) == ["small"]
    assert found["thresholds"]["small"] == pytest.approx({"images": 6, "local": local, "dense": dense}, abs=1e-4)


def test_the_thresholds_of_each_size_are_told(run, clean, tiny, tmp_path):
    """Small and medium pictures are searched by networks of their own; each size has its thresholds."""
    for i in range(5):
        save(clean / f"large{i}.png", colours(10 + i, (52, 50, 3)))
    flags = ("--weights", tiny, "--device", "cpu", "--false-alarm-rate", 0.5)
    status, printed, _ = run("calibrate", clean, "-o", tmp_path / "t.json", *flags)
    assert status == 0
    stored = load_calibrations(tmp_path / "t.json")
    (small, large), lines = (stored.small, stored.medium), printed.splitlines()
    assert lines[0].startswith("measured 11 clean pictures")
    for line, part, start in zip(lines[1:], (small, large), ("6 small pictures", "5 medium pictures"), strict=True):
        dense = f"dense ones from {part.thresholds[1]:.3f} on" if part.dense else "dense ones are not looked for"
        assert line.startswith(start) and f"{part.thresholds[0]:.3f} on" in line and dense in line


def test_json_has_no_threshold_where_dense_triggers_are_not_looked_for(run, tiny, tmp_path):
    for i in range(5):
        save(tmp_path / f"large/{i}.png", colours(10 + i, (52, 50, 3)))
    flags = ("--weights", tiny, "--device", "cpu", "--false-alarm-rate", 0.5, "--json")
    status, printed, _ = run("calibrate", tmp_path / "large", "-o", tmp_path / "t.json", *flags)
    found = json.loads(printed, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert status == 0 and found["thresholds"]["medium"]["dense"] is None


def test_pictures_that_cannot_be_read_are_named(run, clean, tiny, tmp_path):
    (clean / "bad.png").write_text("no picture")
    flags = ("--weights", tiny, "--device", "cpu", "--false-alarm-rate", 0.5)
    status, printed, err = run("calibrate", clean, "-o", tmp_path / "t.json", *flags)
    assert status == 1 and "measured 6 clean pictures, failed 1" in printed
    assert err.count("\n") == 1 and "bad.png: not a picture" in err
    status, printed, err = run("calibrate", clean, "-o", tmp_path / "t.json", *flags, "--max-pixels", 108)
    assert status == 2 and "144. Make it smaller" in err and "needs 4 clean images or more, got 3" in err
    assert load_calibration(tmp_path / "t.json").images == 6, "a run that failed replaced the file"


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("folder", "flags", "reason"),
    [
        ("absent", (), "FOLDER must be a folder of clean pictures, got"),
        ("clean/0.png", (), "FOLDER must be a folder of clean pictures, got"),
        ("clean", (), "FOLDER must hold 20 clean pictures or more for a false-alarm rate of 0.05, got 6 in"),
        ("clean", ("--false-alarm-rate", 0.1), "must hold 10 clean pictures"),
        ("clean", ("--false-alarm-rate", 1), "false_alarm_rate must be in (0, 1), got 1"),
        ("clean", ("--false-alarm-rate", 0), "false_alarm_rate must be in (0, 1), got 0"),
        ("clean", ("--false-alarm-rate", 0.5, "-o", "t.txt"), "--out must end in .json, got t.txt."),
        ("clean", ("--false-alarm-rate", 0.5, "-o", "clean/0.png/t.json"), "Not a directory"),
        ("clean", ("--false-alarm-rate", 0.5, "--max-pixels", 0), "--max-pixels must be 1 or more, got 0"),
    ],
)
def test_calibrate_refuses_before_any_work(run, clean, tmp_path, monkeypatch, folder, flags, reason):
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    status, printed, err = run("calibrate", folder, "-o", "t.json", *flags)
    assert (status, printed) == (2, "") and reason in err and err.count("\n") == 1
    assert files(tmp_path) == before


def test_a_file_that_cannot_be_written_stays_as_it_was(run, clean, tiny, tmp_path, monkeypatch):
    out = tmp_path / "t.json"
    out.write_text("of before")

    real = Path.write_text

    def full(path, *text, **options):
        real(path, "half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", full)
    flags = ("--weights", tiny, "--device", "cpu", "--false-alarm-rate", 0.5)
    status, _, err = run("calibrate", clean, "-o", out, *flags)
    assert status == 2 and "No space left" in err and out.read_text() == "of before"
    assert not [name for name in files(tmp_path) if name.endswith(".part")]


def test_the_search_networks_can_be_given(run, clean, tmp_path, monkeypatch):
    handed = []

    def make(**settings):
        handed.append(settings)
        raise ValueError("far enough")

    monkeypatch.setattr(cli, "make_detox", make)
    run("calibrate", clean, "-o", tmp_path / "t.json", "--false-alarm-rate", 0.5, "--restorer", tmp_path)
    assert handed == [{"weights": "bundled", "restorer": tmp_path, "dtype": "auto", "device": None}]
