"""Experiment dense: what each part leaves out, what is fitted, and on which images."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from sampdetox_transforms.lab.evaluation import dense, restore
from sampdetox_transforms.lab.evaluation.run import run_experiment
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.transforms import fit
from sampdetox_transforms.transforms.presets import PRESETS


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("before", {"colour_gain", "waves", "t2_light", "t1_doubt", "dense_gain", "jitter"}),
        ("no colour", {"colour_gain"}),
        ("no waves", {"waves"}),
        ("no jitter", {"jitter"}),
        ("one level", {"t2_light"}),
        ("no doubt", {"t1_doubt"}),
        ("fitted", set()),
    ],
)
def test_a_part_is_left_out(name, changed):
    plain, part = vars(PRESETS["restore"]), vars(dense.PARTS[f"restore, {name}"])
    assert {key for key in plain if plain[key] != part[key]} == changed


class Reddish(nn.Module):
    """Red or not, by the colour alone; the trigger makes every image red."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        red = (x[:, 0] - x[:, 1]).mean(dim=(1, 2)) * 100 - 5
        return torch.stack([-red, red], dim=1) + self.bias


@pytest.fixture
def images() -> torch.Tensor:
    coarse = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.3
    x = nn.functional.interpolate(coarse, size=32, mode="bilinear").repeat(1, 3, 1, 1)
    x[::2, 0] += 0.2
    return x


def test_rows_say_what_was_fitted_to_whom(monkeypatch, tmp_path, tiny, images):
    labels = (torch.arange(8) % 2 == 0).long()
    victim = Victim("red", Reddish().eval(), lambda x: (x + torch.tensor([0.2, 0, 0])[:, None, None]).clamp(0, 1), 1,
                    "all2one", 2, 32)  # fmt: skip
    monkeypatch.setattr(restore, "load_public_victims", lambda images, data: [victim])
    monkeypatch.setattr(restore, "images_for_testing", lambda *about: (images[:8], labels))
    asked = []
    monkeypatch.setattr(dense, "held_out_images", lambda *a, whole: asked.append(whole) or (images * 255).byte())
    monkeypatch.setattr(fit, "FEWEST", 20)

    def run(**options):
        result = run_experiment("dense", out=tmp_path / "t", weights=str(tiny), n=8, fit_n=30, **options)
        return result.text, json.loads((tmp_path / "t.json").read_text())["rows"]

    text, rows = run()
    assert [row["setting"] for row in rows] == list(dense.SETTINGS) and asked == [False]
    none, before, default, fitted = rows
    assert none["CA"]["value"] == 1 and none["ASR"]["value"] == 1 and none["network calls"] == [0, 0]
    assert before["networks"] != default["networks"]
    about = fitted["fitted"]
    assert (
        about["images"] == 30
        and about["fits"] in (True, False)
        and about["steps"][0].startswith("false_alarm_rate 0.05, t1 12.0")
    )
    assert about["kept"] >= 0.99 or not about["fits"]
    assert "What was fitted" in text and "| red |" in text and "**restore, fitted**" in text
    assert run()[1] == rows  # nothing is measured again


def test_images_to_fit_may_come_from_a_folder(tmp_path, images):
    from torchvision.transforms.v2 import functional

    (tmp_path / "a").mkdir()
    for i in range(5):
        functional.to_pil_image(images[i]).save(tmp_path / "a" / f"{i}.png")
    plan = dense.Plan(options={**dense.DENSE.options, "fit": str(tmp_path), "fit_n": "3"})
    found, again = dense.images_to_fit(plan), dense.images_to_fit(replace(plan, seed=0))
    assert found.shape == (3, 3, 32, 32) and torch.equal(found, again)
