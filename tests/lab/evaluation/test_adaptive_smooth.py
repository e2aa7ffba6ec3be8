"""Experiment adaptive-smooth: the pattern is smooth and bounded, and what it is optimised for comes true."""

import json

import pytest
import torch
from torch import nn

from sampdetox_transforms.lab.evaluation import adaptive_smooth, restore
from sampdetox_transforms.lab.evaluation.adaptive_smooth import added, optimise
from sampdetox_transforms.lab.evaluation.run import run_experiment
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.method.retouch import without_colour_cast


class BrightBelow(nn.Module):
    """1 where the lower half is brighter than the upper one."""

    def forward(self, x):
        difference = (x[..., 16:, :].mean(dim=(1, 2, 3)) - x[..., :16, :].mean(dim=(1, 2, 3))) * 50
        return torch.stack([-difference, difference], dim=1)


@pytest.fixture
def victim():
    red = torch.tensor([0.04, 0, 0])[:, None, None]  # its own trigger, which it does not answer to
    return Victim("below", BrightBelow().eval(), lambda x: (x + red).clamp(0, 1), 1, "all2one", 2, 32)


@pytest.fixture
def images():
    x = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0)).expand(40, 3, 2, 2) * 0.3 + 0.3
    return nn.functional.interpolate(x, size=32, mode="bilinear")


def without_cast(x):
    return (without_colour_cast(x * 2 - 1) + 1) / 2


def test_what_is_optimised_passes_the_defense(victim, images):
    made = {
        steps: optimise(images, victim, without_cast, 0.3, torch.Generator(), steps=steps, batch=16, side=4)
        for steps in (0, 40)
    }
    shares = {k: (victim.model(without_cast(added(p, images))).argmax(1) == 1).float().mean() for k, p in made.items()}
    assert shares[40] > shares[0] + 0.3
    torch.testing.assert_close(made[0], torch.tensor([0.04, 0, 0])[:, None, None].expand(3, 32, 32))
    for pattern in made.values():
        assert pattern.shape == (3, 32, 32) and pattern.abs().max() <= 0.3
        assert (pattern.diff(dim=-1).abs().max() < 0.1) and (pattern.diff(dim=-2).abs().max() < 0.1)


def test_rows_show_both_triggers(monkeypatch, tmp_path, tiny, victim, images):
    monkeypatch.setattr(restore, "load_public_victims", lambda images, data: [victim])
    labels = victim.model(images[:6]).argmax(1)
    monkeypatch.setattr(restore, "images_for_testing", lambda *about: (images[:6], labels))
    monkeypatch.setattr(adaptive_smooth, "held_out_images", lambda *a, **k: (images * 255).byte())
    result = run_experiment("adaptive-smooth", out=tmp_path / "t", weights=str(tiny), n=6, steps=2, batch=4)
    own, optimised = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert (own["trigger"], optimised["trigger"]) == ("its own", "optimised")
    assert own["no defense"]["CA"]["value"] == 1 and own["change"] == pytest.approx(0.04 * 255 / 3, abs=0.1)
    assert optimised["change"] != own["change"] and "| below | optimised |" in result.text
