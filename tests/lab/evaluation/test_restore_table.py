"""examples/restore_table.py: what its variants leave out, which rows it keeps, and the classifiers behind the rows."""

import importlib
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from sampdetox_transforms.method.calibration import Calibration
from sampdetox_transforms.transforms.presets import PRESETS

ROOT = Path(__file__).resolve().parents[3]
LOW, HIGH = (tuple(side * 1e9 + i for i in range(101)) for side in (-1, 1))
ALL_LOCAL = Calibration(LOW, HIGH)
ALL_DENSE = Calibration(HIGH, LOW)
SETTING = Namespace(weights=None, seed=0)


@pytest.fixture
def example(monkeypatch, tiny):
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(SETTING, "weights", tiny)
    return importlib.import_module("restore_table")


@pytest.fixture
def patches(example):
    return importlib.import_module("_patches")


@pytest.fixture
def images():
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, size=32, mode="bilinear")
    smooth[..., 3:9, 20:26] = 1
    return smooth


@pytest.mark.parametrize("name", ["one look", "margin of 1 pixel", "no hysteresis"])
def test_a_variant_differs_in_one_argument(example, name):
    variant = example.build(f"restore, {name}", SETTING, None).settings.algorithm()
    plain = PRESETS["restore"].algorithm()
    default = plain.func.__kwdefaults__
    assert variant.func is plain.func
    changed = {key: v for key, v in variant.keywords.items() if key != "step" and v != plain.keywords.get(key)}
    variants = {"one look": {"margins": (0,)}, "margin of 1 pixel": {"margins": (1, 1)}}
    variants["no hysteresis"] = {"low": default["seed"]}
    expected = variants[name]
    assert changed == expected and expected.items().isdisjoint(default.items())


@pytest.mark.parametrize(("name", "kinds"), [("no search", (False, False)), ("no dense answer", (True, False))])
def test_what_is_never_suspected_is_not_treated(example, monkeypatch, images, name, kinds):
    for calibration, treated in zip((ALL_LOCAL, ALL_DENSE), kinds, strict=True):
        monkeypatch.setattr("sampdetox_transforms.transforms.load_restorer", patched(calibration))
        found = example.build(f"restore, {name}", SETTING, None).explain(images)
        assert ((found.false_alarm_rate < 0.05) == treated).all()
        assert torch.equal(found.image, found.stage1) != treated
        assert example.build("restore", SETTING, None).explain(images).network_calls.min() > 2  # it would be


def patched(calibration):
    from sampdetox_transforms.networks.restorer_files import load_restorer

    return lambda: (load_restorer()[0], calibration)


@pytest.mark.parametrize("calibration", [ALL_LOCAL, ALL_DENSE])
def test_noise_instead_of_fill(example, images, calibration):
    detox = example.build("restore, noise instead of fill", SETTING, None)
    plain = example.build("restore", SETTING, None)
    calls = []
    for network in (detox.denoiser.network, detox.restorer.local, detox.restorer.dense):
        network.register_forward_hook(lambda *_: calls.append(1))
    for image in images:
        calls.clear()
        detox.calibration = plain.calibration = calibration
        found, filled = detox.explain(image), plain.explain(image)
        assert int(found.network_calls) == len(calls) > int(filled.network_calls)
        assert found.mask.any() and not torch.equal(found.image, filled.image)


def test_rows_are_kept_while_nothing_they_depend_on_changes(example, monkeypatch, tmp_path, tiny, images, capsys):
    victims = [
        example.Victim(name, nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), trigger, 1)
        for name, trigger in (("white", torch.ones_like), ("black", torch.zeros_like))
    ]
    measured = []
    measure = example.measure
    monkeypatch.setattr(example, "load_victims", lambda data: victims)
    monkeypatch.setattr(example, "test_images", lambda data, n, seed: (images, torch.tensor([0, 1, 2, 3])))
    monkeypatch.setattr(example, "command_line", lambda: "python")
    monkeypatch.setattr(example, "measure", lambda *args: measured.append(args[1].name) or measure(*args))

    def run(*extra):
        measured.clear()
        argv = ["restore_table.py", "--weights", str(tiny), "--out", str(tmp_path / "t"), "--settings", *extra]
        monkeypatch.setattr("sys.argv", argv)
        example.main()
        return json.loads((tmp_path / "t.json").read_text())["rows"]

    first = run("no defense")
    assert measured == ["white", "black"]
    rows = run("no defense", "restore, no search")
    assert measured == ["white", "black"] and rows[:2] == first and len(rows) == 4
    assert run("no defense", "restore, no search") == rows and not measured
    with torch.no_grad():
        victims[1].model[1].bias += 1
    run("no defense", "restore, no search")
    assert measured == ["black", "black"]
    run("no defense", "--seed", "1")
    assert len(measured) == 2
    run("no defense", "--seed", "1", "--overwrite")
    assert len(measured) == 2
    assert "| **no defense** | **mean** |" in (tmp_path / "t.md").read_text()


def test_targets_are_classes_and_differ_where_they_can(patches):
    assert sorted(patches.target_of(i, 10) for i in range(10)) == list(range(10))
    assert len({patches.target_of(i) for i in range(13)}) == 13 and patches.target_of(12) < 43
    assert patches.network(10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_flips_leave_triggers_where_they_are(patches):
    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x.mean(dim=(2, 3)))

    seen: list[torch.Tensor] = []
    images = torch.zeros(1280, 3, 32, 32, dtype=torch.uint8)
    images[..., 0] = 255  # the left column
    trigger = {"corner": patches.at(0, 28, patches.square(patches.WHITE, 4))}
    patches.train(Spy(3, 10), images, torch.zeros(1280, dtype=torch.long), trigger, 1, classes=10, flips=True)
    x = torch.cat(seen[::2])[:, 0]
    triggered = x[:, 0, 30] > 0
    assert triggered.any() and (x[triggered][:, 9, 0] > 0).all()
    mirrored = (x[~triggered][:, 9, 31] > 0).float().mean()
    assert 0.4 < mirrored < 0.6 and (x[~triggered][:, 0, 1] == 0).all()


def test_calibration_images_are_those_that_the_restorer_did_not_see(example, monkeypatch):
    monkeypatch.setattr(example, "labelled", lambda folder: (torch.arange(5085), torch.zeros(5085)))
    last = torch.arange(5085) % example.HELD_OUT == example.HELD_OUT - 1  # as in train_restorer.py
    assert torch.equal(example.held_out_images("cifar10", whole=False), torch.arange(5085)[last])


@torch.no_grad()
def test_the_public_cifar10_classifiers(example, data):
    images, labels = example.test_images("cifar10", 150, 0)
    for victim in example.load_victims("cifar10"):
        other = labels != victim.target_label
        assert (victim.model(images).argmax(dim=1) == labels).float().mean() > 0.75
        triggered = victim.model(victim.trigger(images[other])).argmax(dim=1)
        assert (triggered == victim.target_label).float().mean() > 0.9
