"""``sampdetox evaluate``, called in-process on flat pictures and a tiny denoiser."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import sampdetox_transforms
from sampdetox_transforms.cli.evaluate import tables
from sampdetox_transforms.lab.evaluation.report import read_report
from sampdetox_transforms.method.calibration import Calibrations
from sampdetox_transforms.networks.restorer_files import load_calibrations, save_calibrations
from sampdetox_transforms.transforms import fit

RESTORER = Path(sampdetox_transforms.__file__).parent / "networks" / "weights" / "restorer"


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


def test_denoisers_are_compared_under_the_names_of_their_folders(run, folder, victim, tiny, tmp_path):
    other = tmp_path / "photographs"
    shutil.copytree(tiny, other)
    asked = ("evaluate", victim, "--data", folder, "--weights", tiny, "--n", 4, "--device", "cpu")
    out = tmp_path / "rows.json"
    status, text, error = run(*asked, "--experiment", "denoisers", "--denoisers", tiny, other, "-o", out)
    assert status == 0, error
    assert [row.defense for row in read_report(out)[2]] == ["none", tiny.name, "photographs"]
    assert f"--denoisers {tiny.name} photographs" in text and "89.2 / 85.0 / 2.3" in text
    status, _, error = run(*asked, "--experiment", "faces", "--denoisers", tiny, tiny)
    assert status == 2 and "must be folders of different names" in error
    status, _, error = run(*asked, "--experiment", "ablation", "--denoisers", tiny)
    assert status == 2 and "compares no denoisers" in error and "denoisers or faces" in error
    status, _, error = run(*asked, "--experiment", "faces")
    assert status == 2 and "denoisers must be given to be compared" in error


def test_the_default_is_fitted_to_each_victim(run, folder, victim, tiny, tmp_path, monkeypatch):
    asked = ("evaluate", victim, "--data", folder, "--weights", tiny, "--n", 3, "--device", "cpu", "--fit", folder)
    status, _, error = run(*asked, "--defense", "none")
    assert status == 2 and "--fit must hold 100 images or more, got 24" in error
    status, _, error = run(*asked, "--experiment", "robustness")
    assert status == 2 and "no defenses to fit" in error
    monkeypatch.setattr(fit, "FEWEST", 20)
    out = tmp_path / "rows.json"
    status, text, error = run(*asked, "-o", out, "--experiment", "ablation", "--defense", "sampdetox-restore-fitted")
    assert status == 0, error
    row = json.loads(out.read_text())["rows"][0]
    dose = row["settings"]["dose"]
    assert row["access"] == "hard labels" and set(dose) >= {"t1", "colour", "detail", "false_alarm_rate"}
    assert "Fitted to patch: false_alarm_rate" in text and "of the answers on 24 images" in text
    assert row["classifier_calls"] == 0 and row["settings"]["images to fit"] == 24


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
        (("--set", "images=gtsrb"), "has no options, got --set images"),
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
    status, _, error = run("evaluate", "--data", folder)
    assert status == 2 and "experiment 'comparison' needs a VICTIM, got none" in error
    status, _, error = run("evaluate", victim)
    assert status == 2 and "needs test images, got no --data" in error
    status, _, error = run("evaluate", tmp_path, "--data", folder)
    assert status == 2 and "a folder that train_victim wrote" in error
    status, _, error = run("evaluate", victim, "--data", tmp_path / "nothing")
    assert status == 2 and "a folder with a subfolder for each class" in error
    (tmp_path / "file").write_text("")
    status, _, error = run("evaluate", victim, "--data", folder, "-o", tmp_path / "file" / "rows.json")
    assert status == 2 and "files can be written" in error


def test_the_rows_as_json(run, folder, victim, tiny):
    small = ("evaluate", victim, "--data", folder, "--weights", tiny, "--n", 3, "--device", "cpu", "--json")
    status, text, _ = run(*small, "--defense", "none")
    found = json.loads(text)
    assert status == 0 and [row["defense"] for row in found["rows"]] == ["none"]
    assert found["settings"]["n"] == 3 and found["rows"][0]["ca"]["n"] == 3
    found = json.loads(run(*small, "--experiment", "robustness")[1])
    assert len(found["rows"]) == 1 and len(found["environments"]) == 1


def test_doors_are_those_of_the_default_only(run, folder, victim, tiny, tmp_path):
    """Thresholds that nothing reaches leave every image as stage 1 made it; Algorithm 1 has no search."""
    small, far = load_calibrations(RESTORER / "calibration.json").small, tuple(100.0 + i for i in range(101))
    save_calibrations(tmp_path / "never.json", Calibrations(replace(small, local=far, dense=far)))
    small = ("evaluate", victim, "--data", folder, "--weights", tiny, "--n", 3, "--device", "cpu", "--seed", 0)
    status, _, error = run(*small, "--defense", "sampdetox", "sampdetox-restore", "--restorer", RESTORER,
                              "--calibration", tmp_path / "never.json", "-o", tmp_path / "rows.json")  # fmt: skip
    assert status == 0, error
    settings, _, rows = read_report(tmp_path / "rows.json")
    assert "--restorer restorer --calibration never.json" in settings["command"]
    assert settings["calibration"] == "never.json"
    assert {row.defense: row.denoiser_calls for row in rows} == {"sampdetox": 7, "sampdetox-restore": 1}


def test_the_bar_says_what_is_measured():
    class Bar:
        n, said = 0, []

        def reset(self, total):
            self.said.append(total)

        def set_description(self, text):
            self.said.append(text)

        def update(self, more):
            pass

    bar = Bar()
    tables.row_progress(bar)("patch", "none", 5, 9)
    assert (bar.said, bar.n) == ([9, "patch, none"], 5)
