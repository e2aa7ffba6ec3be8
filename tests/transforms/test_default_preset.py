"""The default preset with the networks in the package, on test images: what it finds, and what else it takes out."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import torch
from samples import seeded
from torch.nn import functional
from torchvision.transforms.v2.functional import pil_to_tensor

from sampdetox_transforms import SampDetox
from sampdetox_transforms.networks.restorer_files import load_restorer


@pytest.fixture(scope="module")
def signs(data: Path) -> torch.Tensor:
    """GTSRB test images, cropped to the sign, in [0, 1]."""
    with (data / "gtsrb32" / "test_roi.csv").open() as file:
        rows = list(csv.DictReader(file))[::60]
    images = []
    for row in rows:
        box = tuple(round(float(row[key])) for key in ("x1", "y1", "x2", "y2"))
        with PIL.Image.open(data / "gtsrb32" / row["path"]) as image:
            cropped = image.convert("RGB").crop(box).resize((32, 32), PIL.Image.Resampling.BILINEAR)
        images.append(pil_to_tensor(cropped))
    return torch.stack(images).float() / 255


@pytest.fixture(scope="module")
def detox() -> SampDetox:
    return SampDetox("bundled", seed=0, dtype=torch.float32)


# Triggers all over the image


def wave(x: torch.Tensor) -> torch.Tensor:
    """SIG's: six periods across the image, 20 grey levels high."""
    return x + 20 / 255 * torch.sin(torch.arange(32) * 2 * math.pi * 6 / 32)


def blend(x: torch.Tensor) -> torch.Tensor:
    """A fifth of a picture of coloured blocks."""
    return torch.lerp(x, functional.interpolate(torch.rand(1, 3, 4, 4, generator=seeded(5)), size=32), 0.2)


def noise_pattern(x: torch.Tensor) -> torch.Tensor:
    """15 % of random pixels, the same for all images."""
    return torch.lerp(x, torch.rand(3, 32, 32, generator=seeded(1)), 0.15)


@torch.no_grad()
@pytest.mark.parametrize("trigger", [wave, blend, noise_pattern])
def test_a_trigger_all_over_the_image_is_found_and_most_of_it_taken_away(signs, trigger: Callable):
    restorer, calibration = load_restorer()
    _, threshold = calibration.thresholds
    triggered = trigger(signs).clamp(0, 1)
    answer = restorer(triggered * 2 - 1)
    assert (answer.dense > threshold).float().mean() >= 0.85
    estimate = (answer.image.clamp(-1, 1) + 1) / 2
    left, was = ((x - signs).square().mean() for x in (estimate, triggered))
    assert left < 0.5 * was


@torch.no_grad()
def test_clean_images_carry_no_trigger_all_over(signs):
    restorer, calibration = load_restorer()
    answer = restorer(signs * 2 - 1)
    # its half of the false alarms on 158 images, and two standard errors
    assert (answer.dense > calibration.thresholds[1]).float().mean() <= 0.025 + 0.025
    estimate = (answer.image.clamp(-1, 1) + 1) / 2
    assert (estimate - signs).square().mean().sqrt() < 4 / 255


# Patches, at the preset's own thresholds


@pytest.mark.parametrize(("top", "left", "side", "value"), [(5, 20, 5, 1.0), (20, 4, 8, 1.0), (2, 2, 3, 0.0)])
def test_a_found_patch_is_covered_and_little_beside_it(detox, signs, top, left, side, value):
    region = torch.zeros(32, 32, dtype=torch.bool)
    region[top : top + side, left : left + side] = True
    triggered = torch.where(region, value, signs[::2])
    visible = (triggered - signs[::2]).abs().mean(dim=1)[:, region].mean(dim=1) > 0.2
    mask = detox.explain(triggered[visible]).found.mask[:, 0]
    assert len(mask) > 30 and mask.flatten(1).any(dim=1).float().mean() > 0.95
    assert mask[:, region].float().mean() > 0.98
    beside = mask[:, ~region].sum(dim=1).float()
    assert beside.median() <= 2 and beside.quantile(0.9) <= 8 and beside.mean() <= 4


def test_hardly_a_pixel_of_a_clean_image_is_taken_out(detox, signs):
    mask = detox.explain(signs[::2]).found.mask
    assert mask.flatten(1).any(dim=1).float().mean() <= 0.05
    assert mask.float().mean() <= 0.002
