"""The retouching experiment: each part is measured alone and behind the default, and does what its name says."""

import pytest
import torch
from conftest import tiny_config

from sampdetox_transforms import Denoiser, Schedule
from sampdetox_transforms.lab.evaluation.experiments import EXPERIMENTS
from sampdetox_transforms.lab.evaluation.retouch import PARTS, behind, retouching
from sampdetox_transforms.lab.evaluation.rows import Column
from sampdetox_transforms.lab.evaluation.tools import Tools
from sampdetox_transforms.method.retouch import resampled, sharpened, without_colour_cast
from sampdetox_transforms.networks.unet import UNet


@pytest.fixture(scope="module")
def columns():
    denoiser = Denoiser(UNet(tiny_config()).eval(), Schedule.named("linear"))
    return {column.name: column for column in retouching(Tools(denoiser=denoiser))}


def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_every_part_has_a_row_alone_and_one_behind_the_default(columns):
    assert set(columns) == {"none", "restore", *PARTS, *(f"restore, {name}" for name in PARTS)}
    assert EXPERIMENTS["retouching"].columns is retouching


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("colour .5", lambda x: without_colour_cast(x, 8, 0.5)),
        ("colour 1, sigma 4", lambda x: without_colour_cast(x, 4)),
        ("resampled .6, sharpened 3", lambda x: sharpened(resampled(x, 0.6), 3)),
    ],
)
def test_a_part_alone_is_its_function_on_images_in_minus_1_to_1(columns, name, expected):
    x = images()
    result = columns[name].build(lambda z: z)(x)
    torch.testing.assert_close(result, (expected(x * 2 - 1) + 1) / 2)
    assert not torch.allclose(result, x, atol=1e-2)


def test_a_part_comes_after_the_defense():
    invert = Column(name="invert", build=lambda model: lambda x: 1 - x)
    darker = behind(invert, lambda x: x - 0.5, lambda z: z)
    torch.testing.assert_close(darker(torch.full((1, 3, 4, 4), 0.2)), torch.full((1, 3, 4, 4), 0.55))


def test_the_default_is_the_same_before_a_part_as_alone(columns):
    x = images()
    first = columns["restore"].build(lambda z: z)(x)
    after = columns["restore, colour 1"].build(lambda z: z)(x)
    torch.testing.assert_close(after, (without_colour_cast(first * 2 - 1) + 1) / 2)


def test_settings_say_what_a_part_was_called_with(columns):
    assert columns["colour .5"].settings == {"part": "without_colour_cast", "sigma": 8.0, "amount": 0.5}
    both = columns["restore, sharpened 1"].settings
    assert both["amount"] == 1.0 and both["t1"] == columns["restore"].settings["t1"]
