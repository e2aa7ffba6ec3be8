"""``sampdetox evaluate`` with experiments on images of their own: resume, options, tables, and what is refused."""

import json
import re
import shutil

import pytest

from sampdetox_transforms.cli.evaluate.command import NOTES
from sampdetox_transforms.cli.evaluate.studies import as_in
from sampdetox_transforms.lab.evaluation import run as experiments
from sampdetox_transforms.lab.evaluation.denoising import NOISY
from sampdetox_transforms.lab.evaluation.experiments import EXPERIMENTS, ROBUSTNESS


@pytest.fixture
def images(folder, tmp_path):
    """A folder of data in which both sets of images are the flat pictures."""
    for name in ("gtsrb32", "cifar10-lossless"):
        shutil.copytree(folder, tmp_path / "data" / name / "test")
    return tmp_path / "data"


def test_an_experiment_writes_and_resumes(run, images, victim, tmp_path):
    out = tmp_path / "sub" / "clipping.json"
    asked = (
        "evaluate",
        victim,
        "--experiment",
        "sig-clipping",
        "--data",
        images,
        "--n",
        20,
        "--device",
        "cpu",
        "-o",
        out,
    )
    status, text, error = run(*asked)
    assert status == 0, error
    assert "| darkest |" in text and out.with_suffix(".md").read_text().strip() == text.strip()
    document = json.loads(out.read_text())
    assert document["settings"]["experiment"] == "sig-clipping" and document["settings"]["n"] == 20
    command = document["settings"]["command"]
    assert command.startswith("sampdetox evaluate patch --data") and "--experiment sig-clipping" in command
    assert str(images.parent) not in json.dumps(document)
    assert [row["quarter"] for row in document["rows"]] == ["all", "darkest", "dark", "bright", "brightest"]
    document["rows"] = document["rows"][:2]  # as if it had been killed there
    document["rows"][1]["ASR"]["value"] = 0.125  # what the file holds is not measured again
    out.write_text(json.dumps(document))
    status, text, _ = run(*asked, "--json")
    again = json.loads(text)
    assert status == 0 and len(again["rows"]) == 5 and again["rows"][1]["ASR"]["value"] == 0.125
    status, _, error = run(*asked, "--seed", 1)
    assert status == 2 and "goes on only with the settings" in error


def test_options_and_settings_reach_the_experiment(run, images, tiny, monkeypatch):
    monkeypatch.setenv("SAMPDETOX_DATA", str(images))
    asked = {}

    def remember(name, **given):
        asked.update(given, name=name)
        return original(name, **given)

    original = experiments.run_experiment
    monkeypatch.setattr(experiments, "run_experiment", remember)
    status, text, error = run("evaluate", "--experiment", "denoising", "--set", f"denoisers={tiny}", "--n", 2)
    assert status == 0, error
    assert asked["denoisers"] == (str(tiny),) and asked["data"] is None and "dtype" not in asked
    assert f"| gtsrb32/test (2) | {tiny.name} |" in text and f"| {NOISY} |" in text


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("restore", ("--defense", "restor"), "setting must be one of"),
        ("restore", ("--set", "image=gtsrb"), "--set must be one of ('images',"),
        ("restore", ("--set", "n=3"), "--set must be one of"),
        ("restore", ("--set", "images"), "a setting must be NAME=VALUE"),
        ("restore", ("--full-range", "bundled"), "experiment 'restore' has no --full-range, got bundled"),
        ("restore", ("--batch-size", 5), "has no --batch-size, got 5"),
        ("restore", ("--denoisers", "a", "b"), "has no --denoisers, got a, b"),
        ("restore", ("--backdoorbench",), "has no --backdoorbench"),
        ("denoising", ("VICTIM",), "takes no VICTIM, got 1. Its options are denoisers"),
        ("sig-clipping", ("VICTIM", "VICTIM"), "takes one VICTIM at most, got 2"),
        ("sig-clipping", (), "victim must be a folder"),
        ("denoising", ("--fit", "somewhere"), "has no --fit"),
        ("restore", ("--data", "no/such/folder"), "must name the folder with the data"),
    ],
)
def test_what_does_not_fit_is_refused(run, victim, name, flags, message):
    flags = [victim if flag == "VICTIM" else flag for flag in flags]
    status, _, error = run("evaluate", *flags, "--experiment", name, "--device", "cpu")
    assert status == 2 and message in error and "Traceback" not in error


def test_values_are_as_the_defaults_are():
    studies = experiments.STUDIES
    assert as_in(studies["photographs"], "kinds", "lfw,dtd") == ("lfw", "dtd")
    assert as_in(studies["denoising"], "denoisers", "bundled") == ("bundled",)
    assert as_in(studies["relabel"], "work", "runs").name == "runs"
    assert as_in(studies["relabel"], "limit", 500) == 500
    for text, value in (("False", False), ("TRUE", True), (False, False)):
        assert as_in(studies["shared-relabel"], "retrain", text) is value
    with pytest.raises(ValueError, match=r"retrain must be true or false, got 'no'. Leave it out for true."):
        as_in(studies["shared-relabel"], "retrain", "no")


def test_each_name_is_one_experiment_and_those_in_the_help_are_there():
    tables, studies = (part.split(")")[0] for part in NOTES.split("(")[1:3])
    assert set(re.findall(r"[\w-]+", tables)) == {*EXPERIMENTS, ROBUSTNESS}
    assert set(re.findall(r"[\w-]+", studies.split(";")[0])) <= experiments.STUDIES.keys()
    assert not EXPERIMENTS.keys() & experiments.STUDIES.keys()
