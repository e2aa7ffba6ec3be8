"""What settings of each algorithm are refused, in which words; and the reverse step that they name."""

import json
import math
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
import reference
import torch

from sampdetox_transforms.method.algorithm1 import Algorithm1
from sampdetox_transforms.method.authors_code import AuthorsCode
from sampdetox_transforms.method.checks import step_of
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.schedule import Schedule

ALL, WALKING = (Algorithm1, Restore, AuthorsCode), (Algorithm1, Restore)
LEVELS = [(kind, name) for kind in ALL for name in ("t1", "t2")] + [(Restore, "t1_large")]
POSITIVE = [(kind, "stride") for kind in WALKING] + [(Algorithm1, "data_range"), (Algorithm1, "scale")]


@pytest.mark.parametrize(("kind", "name"), LEVELS)
@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, -math.inf])
def test_levels_must_be_finite_and_not_negative(kind, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be 0 or more, got {value}\. 20 and 120"):
        kind(**{name: value})


@pytest.mark.parametrize(("kind", "name"), LEVELS)
@pytest.mark.parametrize("value", ["20", None, True, [20], torch.tensor(20)])
def test_levels_must_be_numbers(kind, name, value):
    if name == "t1_large" and value is None:
        assert kind(t1_large=None).t1_large is None
        return
    with pytest.raises(TypeError, match=rf"{name} must be a number, a noise level, got .*\. Leave it out"):
        kind(**{name: value})


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "number", [np.int64, np.int8, np.float32, np.float64, Fraction], ids=lambda kind: kind.__name__
)
def test_numbers_of_other_libraries_become_pythons_own(kind, number):
    settings = kind(t1=number(3), t2=number(5))
    assert (settings.t1, settings.t2) == (3, 5) and settings == kind(t1=3, t2=5)
    assert type(settings.t1) in (int, float, np.float64) and json.loads(json.dumps(asdict(settings)))["t1"] == 3


@pytest.mark.parametrize(("kind", "name"), POSITIVE)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_strides_and_ranges_must_be_positive_and_finite(kind, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be above 0, got {value}\. Leave it out"):
        kind(**{name: value})


@pytest.mark.parametrize("kind", WALKING)
@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan, math.inf])
def test_eta_must_be_between_0_and_1(kind, eta):
    with pytest.raises(ValueError, match=rf"eta must be in \[0, 1\], got {eta}\. 0 is deterministic"):
        kind(eta=eta)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("schedule", "linaer", "linear"),
        ("sampler", "DDPM", "ddpm"),
        ("map", "sim", "ssim"),
        ("window", "gauss", "gaussian"),
        ("direction", "similar", "similarity"),
        ("rescale", "min-max", "minmax"),
        ("variance_type", "fixed-small", "fixed_small"),
    ],
)
def test_unknown_choice_suggests_the_nearest(name, value, nearest):
    for kind in WALKING if name in ("schedule", "sampler", "variance_type") else (Algorithm1,):
        with pytest.raises(ValueError, match=f"{name} must be one of .*got '{value}'. Did you mean .*'{nearest}'"):
            kind(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("looks", 0, ValueError),
        ("looks", 1.5, ValueError),
        ("looks", "2", TypeError),
        ("looks", True, TypeError),
        ("largest", -0.1, ValueError),
        ("largest", 1.1, ValueError),
        ("largest", math.nan, ValueError),
        ("largest", None, TypeError),
        ("gain", -1, ValueError),
        ("gain", math.inf, ValueError),
        ("gain", math.nan, ValueError),
        ("gain", "3", TypeError),
    ],
)
def test_what_restore_asks_of_its_own_settings(name, value, error):
    with pytest.raises(error, match=rf"{name} must be .*, got '?{value}'?\. .* default"):
        Restore(**{name: value})


@pytest.mark.parametrize("kind", WALKING)
def test_the_step_that_is_named_is_taken(kind):
    generator = torch.Generator().manual_seed(0)
    x, eps, z = torch.randn(3, 1, 1, 1, 1, generator=generator, dtype=torch.float64)
    schedule = Schedule.named("linear")
    now, after = float(schedule.log_signal(40)), float(schedule.log_signal(20))
    expected = {
        kind(sampler="ddim", eta=0.5): reference.ddim_pixel(float(x), float(eps), float(z), now, after, eta=0.5),
        kind(sampler="ddpm"): reference.ddpm_pixel(float(x), float(eps), float(z), now, after),
        kind(sampler="ddpm", variance_type="fixed_large"): reference.ddpm_pixel(
            float(x), float(eps), float(z), now, after, variance_type="fixed_large"
        ),
    }
    for settings, value in expected.items():
        assert float(step_of(settings)(x, eps, schedule, 40, 20, lambda like: z)) == pytest.approx(value)
