"""``sampdetox evaluate``, called in-process on flat pictures and a tiny denoiser."""

import json

import pytest

from sampdetox_transforms.cli import evaluate as cli
from sampdetox_transforms.lab.evaluation import experiments
from sampdetox_transforms.lab.evaluation.report import read_report


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


def test_the_rows_as_json(run, folder, victim, tiny):
    small = ("evaluate", victim, "--data", folder, "--weights", tiny, "--n", 3, "--device", "cpu", "--json")
    status, text, _ = run(*small, "--defense", "none")
    found = json.loads(text)
    assert status == 0 and [row["defense"] for row in found["rows"]] == ["none"]
    assert found["settings"]["n"] == 3 and found["rows"][0]["ca"]["n"] == 3
    found = json.loads(run(*small, "--experiment", "robustness")[1])
    assert len(found["rows"]) == 1 and len(found["environments"]) == 1


def test_doors_are_handed_on_where_they_are_given(run, folder, victim, tiny, tmp_path, monkeypatch):
    handed = []

    def tools(**settings):
        handed.append({name: settings.pop(name) for name in ("calibration", "restorer") if name in settings})
        return original(**settings)

    original = experiments.Tools
    monkeypatch.setattr(experiments, "Tools", tools)
    small = ("evaluate", victim, "--data", folder, "--weights", tiny, "--n", 3, "--defense", "none", "--device", "cpu")
    assert run(*small)[0] == 0
    doors = ("--calibration", tmp_path / "c.json", "--restorer", tmp_path / "r")
    status, _, _ = run(*small, *doors, "-o", tmp_path / "rows.json")
    assert status == 0
    assert handed == [{}, {"calibration": tmp_path / "c.json", "restorer": tmp_path / "r"}]
    settings, _, _ = read_report(tmp_path / "rows.json")
    assert "--restorer r --calibration c.json" in settings["command"] and settings["calibration"] == "c.json"


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
    cli.row_progress(bar)("patch", "none", 5, 9)
    assert (bar.said, bar.n) == ([9, "patch, none"], 5)
