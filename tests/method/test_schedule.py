"""Noise schedules: against diffusers, against known noise levels, and as functions of a fractional level."""

import math

import numpy as np
import pytest
import reference
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from sampdetox_transforms.method.schedule import SCHEDULES, Schedule

LINEAR, COSINE = Schedule.named("linear"), Schedule.named("cosine")
quick = settings(deadline=None, max_examples=50, derandomize=True)
whole_range = st.floats(0, 1000)
small_range = st.floats(0, 300)

# level, and r = sqrt((1 - ab) / ab) of the linear and of the cosine schedule, beside an image in [-1, 1].
KNOWN_SIGMAS = [
    (1, 0.0100, 0.0064),
    (5, 0.0264, 0.0160),
    (10, 0.0436, 0.0251),
    (20, 0.0762, 0.0418),
    (40, 0.1405, 0.0739),
    (60, 0.2053, 0.1056),
    (100, 0.3388, 0.1694),
    (120, 0.4085, 0.2018),
    (150, 0.5182, 0.2510),
    (200, 0.7193, 0.3357),
    (250, 0.9529, 0.4250),
]


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(("beta_start", "beta_end"), [(1e-4, 0.02), (0.00085, 0.012)])
def test_schedule_equals_diffusers(name, beta_start, beta_end):
    ours = Schedule.named(name, beta_start=beta_start, beta_end=beta_end)
    theirs = DDPMScheduler(beta_schedule=name, beta_start=beta_start, beta_end=beta_end)
    # diffusers computes in float32
    torch.testing.assert_close(ours.betas, theirs.betas.double(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("schedule", "betas"), [(LINEAR, reference.linear_betas()), (COSINE, reference.cosine_betas())]
)
def test_schedule_equals_the_papers_formulas_in_float64(schedule, betas):
    np.testing.assert_allclose(schedule.betas, betas, rtol=1e-10)
    np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-10)
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == torch.float64


def test_number_of_levels_is_the_callers():
    schedule = Schedule.named("cosine", num_levels=50)
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=50)
    assert schedule.num_levels == 50
    torch.testing.assert_close(schedule.betas, theirs.betas.double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("level", "linear", "cosine"), KNOWN_SIGMAS)
def test_sigma_has_the_known_values(level, linear, cosine):
    assert float(LINEAR.sigma(level)) == pytest.approx(linear, abs=5.1e-5)
    assert float(COSINE.sigma(level)) == pytest.approx(cosine, abs=5.1e-5)


def test_level_k_is_array_index_k_minus_1():
    levels = torch.arange(1, 1001)
    torch.testing.assert_close(LINEAR.signal(levels), LINEAR.alphas_cumprod, rtol=1e-12, atol=0)
    assert float(LINEAR.signal(0)) == 1


@quick
@given(level=st.floats(0, 1000))
def test_log_signal_is_linear_between_whole_levels(level):
    table = reference.log_table(reference.linear_betas())
    assert float(LINEAR.log_signal(level)) == pytest.approx(reference.log_signal(table, level), rel=1e-9, abs=1e-15)


def test_sigma_at_level_0_is_a_positive_zero():
    assert str(float(LINEAR.sigma(0))) == "0.0"


@pytest.mark.parametrize("name", SCHEDULES)
@quick
@given(level=whole_range)
def test_level_inverts_sigma(name, level):
    schedule = Schedule.named(name)
    assert float(schedule.level(schedule.sigma(level))) == pytest.approx(level, rel=1e-7, abs=1e-7)


@quick
@given(sigma=st.floats(0, 100))
def test_sigma_inverts_level(sigma):
    assert float(LINEAR.sigma(LINEAR.level(sigma))) == pytest.approx(sigma, rel=1e-9, abs=1e-12)


def test_level_and_sigma_take_maps():
    levels = torch.linspace(0, 1000, 24, dtype=torch.float64).view(2, 1, 3, 4)
    sigma = LINEAR.sigma(levels)
    assert sigma.shape == levels.shape
    torch.testing.assert_close(LINEAR.level(sigma), levels, rtol=1e-9, atol=1e-9)


@quick
@given(low=small_range, high=small_range)
def test_sigma_grows_with_the_level(low, high):
    low, high = min(low, high), max(low, high)
    assert float(LINEAR.sigma(low)) <= float(LINEAR.sigma(high))
    if high - low > 1e-6:
        assert float(LINEAR.sigma(low)) < float(LINEAR.sigma(high))


def test_add_noise_is_equation_2():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    ab = LINEAR.alphas_cumprod[119]
    torch.testing.assert_close(LINEAR.add_noise(x0, 120, noise), ab.sqrt() * x0 + (1 - ab).sqrt() * noise)


def test_add_noise_takes_one_level_a_pixel():
    generator = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    levels = 300 * torch.rand(2, 1, 4, 5, generator=generator, dtype=torch.float64)
    x_t = LINEAR.add_noise(x0, levels, noise)
    for b, i, j in np.ndindex(2, 4, 5):
        one = LINEAR.add_noise(x0[b, :, i, j], float(levels[b, 0, i, j]), noise[b, :, i, j])
        torch.testing.assert_close(x_t[b, :, i, j], one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_level_0_changes_nothing(dtype):
    generator = torch.Generator().manual_seed(2)
    x0 = torch.randn(2, 3, 4, 5, generator=generator).to(dtype)
    noise = 1e4 * torch.ones_like(x0)
    levels = torch.full((2, 1, 4, 5), 7.5, dtype=torch.float64)
    levels[0] = 0
    x_t = LINEAR.add_noise(x0, levels, noise)
    assert x_t.dtype == dtype
    assert torch.equal(x_t[0], x0[0])
    assert torch.equal(LINEAR.add_noise(x0, 0, noise), x0)
    assert not (x_t[1] == x0[1]).any()


def test_add_noise_has_finite_gradients_at_level_0():
    levels = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64).view(1, 1, 1, 3).requires_grad_()
    LINEAR.add_noise(torch.ones(1, 1, 1, 3), levels, torch.ones(1, 1, 1, 3)).sum().backward()
    assert levels.grad.isfinite().all()
    assert (levels.grad.flatten()[1:] != 0).all()


@pytest.mark.parametrize(("level", "expected"), [(20, 9), (120, 59)])
def test_cosine_levels_convert_to_linear(level, expected):
    assert round(float(COSINE.convert(level, to=LINEAR))) == expected


@pytest.mark.parametrize(("level", "expected"), [(20, 41), (120, 241)])
def test_linear_levels_convert_to_cosine(level, expected):
    assert round(float(LINEAR.convert(level, to=COSINE))) == expected


@quick
@given(level=small_range)
def test_convert_keeps_the_signal_and_comes_back(level):
    converted = LINEAR.convert(level, to=COSINE)
    assert float(COSINE.signal(converted)) == pytest.approx(float(LINEAR.signal(level)), rel=1e-12)
    assert float(COSINE.convert(converted, to=LINEAR)) == pytest.approx(level, rel=1e-7, abs=1e-7)


def test_convert_stops_at_the_highest_level():
    assert float(COSINE.convert(1000, to=LINEAR)) == 1000
    assert float(LINEAR.convert(1000, to=Schedule(LINEAR.betas[:100]))) == 100


def test_schedules_are_equal_when_their_betas_are():
    again = Schedule(LINEAR.betas.tolist(), name="another name")
    assert again == LINEAR
    assert hash(again) == hash(LINEAR)
    assert LINEAR != COSINE
    assert LINEAR != "linear"


def test_schedule_keeps_its_own_copy_of_the_betas():
    betas = torch.full((10,), 0.1, dtype=torch.float64)
    schedule = Schedule(betas)
    betas[0] = 0.9
    assert schedule.betas[0] == 0.1


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.1, 1.0], [-0.1], [math.nan], [[0.1, 0.2]], 0.1])
def test_betas_must_be_a_list_of_numbers_between_0_and_1(betas):
    with pytest.raises(ValueError, match=r"betas must be a non-empty list of numbers in \(0, 1\)"):
        Schedule(betas)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"schedule must be one of .*linear.*cosine.*got 'sigmoid'"):
        Schedule.named("sigmoid")


def test_number_of_levels_must_be_positive():
    with pytest.raises(ValueError, match="num_levels must be 1 or more, got 0"):
        Schedule.named("linear", num_levels=0)


@pytest.mark.parametrize("sigma", [-0.1, 1e6, math.nan, torch.tensor([0.1, -0.1])])
def test_sigma_must_be_in_range(sigma):
    with pytest.raises(ValueError, match=r"sigma must be in \[0, .*got"):
        LINEAR.level(sigma)
