"""``sampdetox victim`` and ``sampdetox evaluate``, called in-process on flat pictures and a tiny denoiser."""

import json
from dataclasses import MISSING, fields

import pytest
import torch
from torchvision.transforms.v2 import functional

from sampdetox_transforms.cli import main as cli
from sampdetox_transforms.lab.evaluation.report import read_report
from sampdetox_transforms.lab.victims.config import VictimConfig
from sampdetox_transforms.lab.victims.victim import load_victim

SIZE = 16
QUICK = ("--size", SIZE, "--epochs", 1, "--batch-size", 8, "--crop", 0, "--no-bf16", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of flat colours: 8 images each."""
    root = tmp_path_factory.mktemp("data") / "images"
    for label in range(3):
        (root / f"{label}").mkdir(parents=True)
        for i in range(8):
            image = torch.full((3, SIZE, SIZE), 0.2 + 0.01 * i)
            image[label] = 0.6
            functional.to_pil_image(image).save(root / f"{label}" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def victim(folder, tmp_path_factory):
    """A victim that the command trained."""
    out = tmp_path_factory.mktemp("victims") / "patch"
    arguments = ["victim", folder, out, *QUICK, "--set", "size=4", "pattern=checker", "--poison-rate", 0.5]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return out


def test_flags_have_the_library_s_defaults():
    defaults = {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(VictimConfig)
                if f.name != "data"}  # fmt: skip
    flags = {name: default for name, _, default, _ in cli.VICTIM_FLAGS}
    assert flags == {name: defaults[name] for name in flags}
    assert set(defaults) - set(flags) == {"target_label", "settings", "flip", "bf16"}


def test_a_victim_with_settings_of_the_attack(victim):
    about = load_victim(victim).about
    assert about["settings"] == {"size": 4, "pattern": "checker"}
    assert (about["poison_rate"], about["target_label"], about["size"]) == (0.5, 0, SIZE)


def test_victim_measures_and_says_what_comes_next(run, folder, tmp_path):
    status, text, _ = run("victim", folder, tmp_path / "v", *QUICK, "--test", folder, "--poison-rate", 0.5)
    assert status == 0
    assert f"sampdetox evaluate {tmp_path / 'v'} --data" in text
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["CA", "PA", "ASR"]
    assert text.count("of 16") == 2
    again, text, _ = run("victim", folder, tmp_path / "v", *QUICK, "--test", folder)
    assert again == 0 and "ASR" in text  # measured, not trained again
    status, _, error = run("victim", folder, tmp_path / "v", *QUICK)
    assert status == 2 and "must be a new folder" in error


def test_evaluate_writes_and_resumes(run, folder, victim, tiny, tmp_path):
    out = tmp_path / "results" / "rows.json"
    arguments = ("evaluate", victim, "--data", folder, "--weights", tiny, "--n", 24, "--device", "cpu", "-o", out)
    status, text, _ = run(*arguments, "--defense", "none")
    assert status == 0
    assert "| badnets (patch) | none |" in text
    assert "1 threads" in text or "threads" in text
    status, text, _ = run(*arguments, "--defense", "none", "sampdetox")
    assert status == 0
    assert out.with_suffix(".md").read_text().strip() == text.strip()
    assert out.with_suffix(".png").stat().st_size > 1000
    settings, environments, rows = read_report(out)
    assert [row.defense for row in rows] == ["none", "sampdetox"]
    assert len(environments) == 1
    assert settings["command"].startswith("sampdetox evaluate patch --data")
    assert str(tmp_path) not in json.dumps(settings)
    assert rows[1].denoiser_calls > 1
    status, _, error = run(*arguments, "--defense", "none", "--seed", 1)
    assert status == 2 and "goes on only with the settings" in error


def test_every_experiment_runs(run, folder, victim, tiny):
    small = ("evaluate", victim, "--data", folder, "--weights", tiny, "--n", 3, "--n-slow", 2, "--device", "cpu")
    status, text, _ = run(*small, "--experiment", "levels", "--defense", "t2=40")
    assert status == 0 and "| t2=40 | 1 |" in text
    for experiment in ("ablation", "transformations", "adaptive"):
        status, text, error = run(*small, "--experiment", experiment)
        assert status == 0, error
        assert "| sampdetox |" in text


def test_robustness_is_drawn(run, folder, victim, tmp_path):
    out = tmp_path / "figure2.json"
    status, text, _ = run("evaluate", victim, "--data", folder, "--experiment", "robustness", "--n", 4, "-o", out)
    assert status == 0
    assert "| patch |" in text
    assert out.with_suffix(".png").stat().st_size > 1000
    row = json.loads(out.read_text())["rows"][0]
    assert len(row["visibility"]) == len(row["robustness"]) >= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--experiment", "ablatoin"), "experiment must be one of"),
        (("--defense", "zipp"), "--defense must be one of"),
        (("--n", 0), "--n must be 1 or more"),
        (("--n-slow", 0), "--n-slow must be 1 or more"),
        (("-o", "rows.txt"), "must end in .json"),
        (("--weights", "no/such/folder/here"), "error"),
    ],
)
def test_evaluate_refuses(run, folder, victim, tiny, flags, message):
    status, _, error = run("evaluate", victim, "--data", folder, "--weights", tiny, "--n", 2, "--device", "cpu", *flags)
    assert status == 2
    assert message in error
    assert "Traceback" not in error


def test_what_is_not_there_is_refused(run, folder, victim, tmp_path):
    status, _, error = run("evaluate", tmp_path, "--data", folder)
    assert status == 2 and "a folder that train_victim wrote" in error
    status, _, error = run("evaluate", victim, "--data", tmp_path / "nothing")
    assert status == 2 and "a folder with a subfolder for each class" in error
    (tmp_path / "file").write_text("")
    status, _, error = run("evaluate", victim, "--data", folder, "-o", tmp_path / "file" / "rows.json")
    assert status == 2 and "files can be written" in error
    status, _, error = run("victim", folder, folder / "inside", *QUICK)
    assert status == 2 and "OUT must be outside of DATA" in error
    status, _, error = run("victim", folder, tmp_path / "v", *QUICK, "--set", "size")
    assert status == 2 and "must be NAME=VALUE" in error
    status, _, error = run("victim", folder, tmp_path / "v", *QUICK, "--attack", "badnet")
    assert status == 2 and "Did you mean 'badnets'" in error
    assert not (tmp_path / "v").exists()
