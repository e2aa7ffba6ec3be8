"""Experiments restore and restore-ablation: what variants leave out, and which rows are kept."""

import json

import pytest
import torch
from torch import nn

from sampdetox_transforms.lab.evaluation import restore
from sampdetox_transforms.lab.evaluation.restore import build
from sampdetox_transforms.lab.evaluation.run import run_experiment
from sampdetox_transforms.lab.evaluation.study import Plan
from sampdetox_transforms.lab.evaluation.variants import NEVER, never
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.result import Purified
from sampdetox_transforms.method.schedule import Schedule
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


class Networks:
    """Search networks that say what they were handed as."""

    name, calls, as_is, side, window, certain, possible, margins = "small", 2, 48, 32, 2, -0.5, -1.0, (0, 1)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("one look", {"looks": 1}),
        ("margin of 1 pixel", {"margins": (1, 1)}),
        ("no hysteresis", {"possible": Networks.certain}),
        ("no estimate", {"gain": 0}),
    ],
)
def test_a_variant_differs_in_one_thing(plan, monkeypatch, name, changed):
    seen = {}

    def run(self, x0, denoiser, schedule, *, networks, calibrations, noise, matched):
        seen.update({field: getattr(self, field) for field in vars(Restore())})
        seen.update({field: getattr(networks, field) for field in ("possible", "certain", "margins")})
        seen["calibration"] = calibrations.of(networks)
        return Purified(x0, x0, x0[:, :1].double(), torch.zeros(1, dtype=torch.long), 0.0, 0.0)

    monkeypatch.setattr(Restore, "run", run)
    settings = build(f"restore, {name}", plan).settings
    x = torch.zeros(1, 3, 32, 32)
    settings.run(
        x,
        lambda x, t: x,
        Schedule.named("linear"),
        networks=Networks(),
        calibrations=Calibrations(ALL_LOCAL, ALL_LOCAL),
    )
    plain = {**vars(PRESETS["restore"]), "calibration": ALL_LOCAL}
    plain |= {field: getattr(Networks, field) for field in ("possible", "certain", "margins")}
    assert {key: value for key, value in seen.items() if value != plain[key]} == changed


@pytest.mark.parametrize(("name", "kinds"), [("no search", (False, False)), ("no dense answer", (True, False))])
def test_what_is_never_suspected_is_not_treated(plan, images, name, kinds):
    for calibration, treated in zip((ALL_LOCAL, ALL_DENSE), kinds, strict=True):
        detox, plain = build(f"restore, {name}", plan), build("restore", plan)
        plain.calibration = Calibrations(calibration, calibration)
        detox.calibration = never(plain.calibration, *NEVER[f"restore, {name}"])
        found = detox.explain(images)
        assert ((found.timestep_map.flatten(1).amax(1) > 0) == treated).all()
        assert torch.equal(found.image, found.stage1) != treated
        assert plain.explain(images).network_calls.min() > 3  # it would be


@pytest.mark.parametrize("calibration", [ALL_LOCAL, ALL_DENSE])
def test_noise_instead_of_fill(plan, images, calibration):
    detox = build("restore, noise instead of fill", plan)
    plain = build("restore", plan)
    calls = []
    small = detox.restorer.small
    for network in (detox.denoiser.network, small.local, small.dense, small.light):
        network.register_forward_hook(lambda *_: calls.append(1))
    for image in images:
        calls.clear()
        detox.calibration = plain.calibration = Calibrations(calibration, calibration)
        found, filled = detox.explain(image), plain.explain(image)
        assert int(found.network_calls) == len(calls) > int(filled.network_calls)
        assert found.found.mask.any() and not torch.equal(found.image, filled.image)


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
    every = (torch.arange(5085) % 251).to(torch.uint8).view(-1, 1, 1, 1)
    last = torch.arange(5085) % restore.HELD_OUT == restore.HELD_OUT - 1  # as in training
    monkeypatch.setattr(restore, "load_folder", lambda folder, data: (every, torch.zeros(5085)))
    assert torch.equal(restore.held_out_images("cifar10", None, whole=False), every[last])


def test_unknown_settings_and_options_are_refused():
    with pytest.raises(ValueError, match="setting must be one of"):
        run_experiment("restore", settings=["restor"])
    with pytest.raises(ValueError, match="option must be one of"):
        run_experiment("restore", victim="x")
    with pytest.raises(ValueError, match="experiment must be one of"):
        run_experiment("restor")
    with pytest.raises(ValueError, match="n must be 1 or more"):
        run_experiment("restore", n=0)
