"""Experiments restore and restore-ablation: what variants leave out, and which rows are kept."""

import json

import pytest
import torch
from torch import nn

from sampdetox_transforms.lab.evaluation import restore
from sampdetox_transforms.lab.evaluation.restore import build
from sampdetox_transforms.lab.evaluation.run import run_experiment
from sampdetox_transforms.lab.evaluation.study import Plan
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.method.calibration import Calibration
from sampdetox_transforms.transforms.presets import PRESETS

LOW, HIGH = (tuple(side * 1e9 + i for i in range(101)) for side in (-1, 1))
ALL_LOCAL = Calibration(LOW, HIGH)
ALL_DENSE = Calibration(HIGH, LOW)


@pytest.fixture
def plan(tiny):
    return Plan(weights=str(tiny), options=restore.OPTIONS)


@pytest.fixture
def images():
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, size=32, mode="bilinear")
    smooth[..., 3:9, 20:26] = 1
    return smooth


@pytest.mark.parametrize("name", ["one look", "margin of 1 pixel", "no hysteresis"])
def test_a_variant_differs_in_one_argument(plan, name):
    variant = build(f"restore, {name}", plan).settings.algorithm()
    plain = PRESETS["restore"].algorithm()
    default = plain.func.__kwdefaults__
    assert variant.func is plain.func
    changed = {key: v for key, v in variant.keywords.items() if key != "step" and v != plain.keywords.get(key)}
    variants = {"one look": {"margins": (0,)}, "margin of 1 pixel": {"margins": (1, 1)}}
    variants["no hysteresis"] = {"low": default["seed"]}
    expected = variants[name]
    assert changed == expected and expected.items().isdisjoint(default.items())


@pytest.mark.parametrize(("name", "kinds"), [("no search", (False, False)), ("no dense answer", (True, False))])
def test_what_is_never_suspected_is_not_treated(plan, monkeypatch, images, name, kinds):
    for calibration, treated in zip((ALL_LOCAL, ALL_DENSE), kinds, strict=True):
        monkeypatch.setattr("sampdetox_transforms.transforms.transform.load_restorer", patched(calibration))
        found = build(f"restore, {name}", plan).explain(images)
        assert ((found.false_alarm_rate < 0.05) == treated).all()
        assert torch.equal(found.image, found.stage1) != treated
        assert build("restore", plan).explain(images).network_calls.min() > 2  # it would be


def patched(calibration):
    from sampdetox_transforms.networks.restorer_files import load_restorer

    return lambda: (load_restorer()[0], calibration)


@pytest.mark.parametrize("calibration", [ALL_LOCAL, ALL_DENSE])
def test_noise_instead_of_fill(plan, images, calibration):
    detox = build("restore, noise instead of fill", plan)
    plain = build("restore", plan)
    calls = []
    for network in (detox.denoiser.network, detox.restorer.local, detox.restorer.dense):
        network.register_forward_hook(lambda *_: calls.append(1))
    for image in images:
        calls.clear()
        detox.calibration = plain.calibration = calibration
        found, filled = detox.explain(image), plain.explain(image)
        assert int(found.network_calls) == len(calls) > int(filled.network_calls)
        assert found.mask.any() and not torch.equal(found.image, filled.image)


def test_rows_are_kept_while_nothing_they_depend_on_changes(monkeypatch, tmp_path, tiny, images):
    victims = [
        Victim(name, nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)).eval(), trigger, 1, "all2one", 4, 32)
        for name, trigger in (("white", torch.ones_like), ("black", torch.zeros_like))
    ]
    measured, measure, hashed, digest = [], restore.victim_row, [], restore.digest
    monkeypatch.setattr(restore, "load_public_victims", lambda images, data: victims)
    monkeypatch.setattr(restore, "images_for_testing", lambda *about: (images, torch.tensor([0, 1, 2, 3])))
    monkeypatch.setattr(restore, "victim_row", lambda *a, **k: measured.append(a[1].name) or measure(*a, **k))
    monkeypatch.setattr(restore, "digest", lambda *a, **k: hashed.append(len(a)) or digest(*a, **k))

    def run(*settings, **changes):
        measured.clear()
        hashed.clear()
        run_experiment("restore", out=tmp_path / "t", settings=settings, weights=str(tiny), **changes)
        return json.loads((tmp_path / "t.json").read_text())["rows"]

    first = run("no defense")
    assert measured == ["white", "black"]
    rows = run("no defense", "restore, no search")
    assert measured == ["white", "black"] and rows[:2] == first and len(rows) == 4
    assert hashed == [1, 1, 2]  # each network once, not once for each row
    assert run("no defense", "restore, no search") == rows and not measured
    with torch.no_grad():
        victims[1].model[1].bias += 1
    run("no defense", "restore, no search")
    assert measured == ["black", "black"]
    with pytest.raises(ValueError, match="another seed"):
        run("no defense", seed=1)
    run("no defense", seed=1, overwrite=True)
    assert measured == ["white", "black"]
    assert "| **no defense** | **mean** |" in (tmp_path / "t.md").read_text()


def test_shares_of_a_row(images):
    labels = torch.tensor([0, 1, 2, 3])
    logits = nn.functional.one_hot(labels, 4).float()

    class Constant(nn.Module):
        """Right on the clean images, on black ones the target."""

        def forward(self, x):
            black = (x == 0).flatten(1).all(1)
            return torch.where(black[:, None], torch.tensor([0.0, 1, 0, 0]), logits[: len(x)])

    victim = Victim("black", Constant().eval(), torch.zeros_like, 1, "all2one", 4, 32)
    data = restore.planted(victim, images, labels)
    row = restore.victim_row(None, victim, data, restore.treat(None, images))
    assert [row[name]["value"] for name in ("CA", "PA", "ASR")] == [1, 0, 1] and row["ASR"]["n"] == 3
    assert row["CA difference"]["value"] == 0 and row["network calls"] == [0, 0] and "flagged" not in row


def test_calibration_images_are_those_that_the_restorer_did_not_see(monkeypatch):
    monkeypatch.setattr(restore, "load_folder", lambda folder, data: (torch.arange(5085), torch.zeros(5085)))
    last = torch.arange(5085) % restore.HELD_OUT == restore.HELD_OUT - 1  # as in training
    assert torch.equal(restore.held_out_images("cifar10", None, whole=False), torch.arange(5085)[last])


def test_unknown_settings_and_options_are_refused():
    with pytest.raises(ValueError, match="setting must be one of"):
        run_experiment("restore", settings=["restor"])
    with pytest.raises(ValueError, match="option must be one of"):
        run_experiment("restore", victim="x")
    with pytest.raises(ValueError, match="experiment must be one of"):
        run_experiment("restor")
    with pytest.raises(ValueError, match="n must be 1 or more"):
        run_experiment("restore", n=0)
