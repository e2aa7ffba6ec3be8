"""Reverse steps against diffusers under equal noise, and whole chains against the exact Gaussian answer."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import reference
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from sampdetox_transforms.method.samplers import ddim_step, ddpm_step, denoise, grid
from sampdetox_transforms.method.schedule import Schedule

LINEAR, COSINE = Schedule.named("linear"), Schedule.named("cosine")
SHAPE = (2, 3, 4, 5)
MU, S = 0.3, 0.5  # the Gaussian prior of the exact denoiser: x0 ~ N(MU, S^2)
RANDOM_STEPS = [ddpm_step, partial(ddpm_step, variance_type="fixed_large"), partial(ddim_step, eta=1.0)]
quick = settings(deadline=None, max_examples=60, derandomize=True)


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64), torch.randn(
        SHAPE, generator=generator, dtype=torch.float64
    )


def seeded(like: torch.Tensor) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(5), dtype=like.dtype)


def no_noise(like: torch.Tensor) -> torch.Tensor:
    raise AssertionError("this step draws no noise")


def diffusers_scheduler(kind, schedule: Schedule, **options):
    scheduler = kind(clip_sample=False, timestep_spacing="leading", **options)
    scheduler.alphas_cumprod = schedule.alphas_cumprod  # in float64, so that only the step's formula is compared
    return scheduler


@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("steps", "stride"), [(1000, 1), (50, 20)])
@pytest.mark.parametrize("strides_left", [1, 2, 7])
def test_ddpm_step_equals_diffusers(schedule, variance_type, steps, stride, strides_left):
    scheduler = diffusers_scheduler(DDPMScheduler, schedule, variance_type=variance_type)
    scheduler.set_timesteps(steps)
    t = (strides_left - 1) * stride
    x_t, eps = pair()
    theirs = scheduler.step(eps, t, x_t, generator=torch.Generator().manual_seed(5)).prev_sample
    level, next_level = t + 1, max(t + 1 - stride, 0)
    ours = ddpm_step(x_t, eps, schedule, level, next_level, seeded, variance_type=variance_type)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("steps", "stride"), [(1000, 1), (50, 20)])
@pytest.mark.parametrize("strides_left", [1, 2, 7])
def test_ddim_step_equals_diffusers(schedule, eta, steps, stride, strides_left):
    scheduler = diffusers_scheduler(DDIMScheduler, schedule, set_alpha_to_one=True)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    t = (strides_left - 1) * stride
    x_t, eps = pair()
    theirs = scheduler.step(eps, t, x_t, eta=eta, variance_noise=seeded(x_t)).prev_sample
    ours = ddim_step(x_t, eps, schedule, t + 1, max(t + 1 - stride, 0), seeded, eta=eta)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@quick
@given(
    level=st.floats(0.01, 300),
    share=st.one_of(st.just(0.0), st.floats(1e-6, 0.999)),  # below that log(alphas_cumprod) underflows
    variance_type=st.sampled_from(["fixed_small", "fixed_large"]),
)
def test_ddpm_step_equals_the_posterior_at_fractional_levels(level, share, variance_type):
    x_t, eps = pair()
    next_level = share * level
    ours = ddpm_step(x_t, eps, LINEAR, level, next_level, seeded, variance_type=variance_type)
    table = reference.log_table(reference.linear_betas())
    now, after = reference.log_signal(table, level), reference.log_signal(table, next_level)
    expected = reference.ddpm_pixel(x_t, eps, seeded(x_t), now, after, variance_type=variance_type)
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


@quick
@given(level=st.floats(0.01, 300), share=st.just(0) | st.floats(1e-6, 0.999))
def test_ddim_at_eta_1_is_the_ddpm_posterior(level, share):
    x_t, eps = pair()
    ddim = ddim_step(x_t, eps, COSINE, level, share * level, seeded, eta=1.0)
    ddpm = ddpm_step(x_t, eps, COSINE, level, share * level, seeded, variance_type="fixed_small")
    torch.testing.assert_close(ddim, ddpm, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("next_level", [1e-9, 1e-14, 1e-15, 1e-18])
def test_ddim_at_eta_1_stays_finite_just_above_level_0(next_level):
    x_t, eps = pair()
    step = partial(ddim_step, eta=1.0)
    x = step(x_t, eps, LINEAR, 20, next_level, seeded)
    assert x.isfinite().all()
    torch.testing.assert_close(x, step(x_t, eps, LINEAR, 20, 0, no_noise), rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [ddpm_step, ddim_step, partial(ddim_step, eta=0.5)])
def test_a_map_of_levels_is_one_step_a_pixel(step):
    x_t, eps = pair()
    levels = 20.5 + 99 * torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    together = step(x_t, eps, LINEAR, levels, 20, seeded)
    for b, i, j in np.ndindex(2, 4, 5):
        alone = step(x_t, eps, LINEAR, float(levels[b, 0, i, j]), 20, seeded)
        torch.testing.assert_close(together[b, :, i, j], alone[b, :, i, j], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", [ddpm_step, ddim_step, partial(ddim_step, eta=0.5)])
def test_step_to_its_own_level_changes_nothing(step):
    x_t, eps = pair()
    torch.testing.assert_close(step(x_t, eps, LINEAR, 37.5, 37.5, seeded), x_t, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", RANDOM_STEPS)
def test_step_to_level_0_draws_no_noise(step):
    x_t, eps = pair()
    assert step(x_t, eps, LINEAR, 20, 0, no_noise).isfinite().all()


def test_ddim_at_eta_0_draws_no_noise():
    x_t, eps = pair()
    assert ddim_step(x_t, eps, LINEAR, 40, 20, no_noise).isfinite().all()


@pytest.mark.parametrize("step", [ddpm_step, partial(ddim_step, eta=0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_keeps_the_dtype(step, dtype):
    x_t, eps = (x.to(dtype) for x in pair())
    levels = torch.full((2, 1, 4, 5), 33.3, dtype=torch.float64)
    assert step(x_t, eps, LINEAR, 40, 20, torch.randn_like).dtype == dtype
    assert step(x_t, eps, LINEAR, levels, 20, torch.randn_like).dtype == dtype


@pytest.mark.parametrize(
    ("start", "stride", "expected"),
    [
        (120, 20, [120, 100, 80, 60, 40, 20, 0]),
        (50, 20, [50, 30, 10, 0]),
        (20, 20, [20, 0]),
        (5, 20, [5, 0]),
        (3, 1, [3, 2, 1, 0]),
        (2.5, 1, [2.5, 1.5, 0.5, 0]),
        (0, 20, [0]),
    ],
)
def test_grid_walks_down_to_0(start, stride, expected):
    assert grid(start, stride) == expected


@quick
@given(start=st.integers(1, 1000), stride=st.integers(1, 1000))
def test_grid_has_no_step_longer_than_the_stride_and_none_too_many(start, stride):
    levels = grid(start, stride)
    assert levels[0] == start
    assert levels[-1] == 0
    assert len(levels) - 1 == math.ceil(start / stride)
    assert all(0 < level - after <= stride for level, after in pairwise(levels))


@pytest.mark.parametrize("level", [20, 40, 80, 120, 160])
def test_grid_from_a_level_given_as_sigma_costs_no_extra_call(level):
    start = float(LINEAR.level(LINEAR.sigma(level)))  # equal to level up to rounding
    assert len(grid(start, 20)) == len(grid(level, 20))


# Exact answers. With x0 ~ N(MU, S^2), the best denoiser is linear in x_t, and so is every chain.


def marginal_variance(ab: float) -> float:
    return ab * S**2 + 1 - ab


def exact_denoiser(schedule: Schedule, x_t: torch.Tensor, t: torch.Tensor, levels: torch.Tensor | None = None):
    """E[eps | x_t] under the prior; ``levels`` are the levels at which the pixels stand, by default t + 1."""
    level = t.double().view(-1, 1, 1, 1) + 1 if levels is None else torch.minimum(levels, t.view(-1, 1, 1, 1) + 1)
    ab = schedule.signal(level)
    return (1 - ab).sqrt() * (x_t - ab.sqrt() * MU) / marginal_variance(ab)


def posterior_mean(ab, x_t):
    return MU + math.sqrt(ab) * S**2 / marginal_variance(ab) * (x_t - math.sqrt(ab) * MU)


def chain(schedule: Schedule, levels: list[float], step, x_t: list[float], noises=None) -> torch.Tensor:
    """The ends of chains that start at ``x_t``, (n,), and get the noises (steps, n), by default 0."""
    start = torch.tensor(x_t, dtype=torch.float64).view(-1, 1, 1, 1)
    source = iter(torch.zeros(len(levels), len(x_t)) if noises is None else noises)

    def draw(like):
        return next(source).to(like).view_as(like)

    return denoise(start, partial(exact_denoiser, schedule), schedule, levels, step, draw).flatten()


def variance_of_chain(schedule: Schedule, levels: list[float], step) -> float:
    """A chain is linear in its noises: the weight of each is what a unit of it alone changes."""
    draws = len(levels) - 2
    noises = torch.cat([torch.eye(draws), torch.zeros(draws, 1)], dim=1)
    ends = chain(schedule, levels, step, [0.4] * (draws + 1), noises)
    return float((ends[:-1] - ends[-1]).square().sum())


CHAINS = [(LINEAR, grid(120, 20)), (LINEAR, grid(50, 20)), (COSINE, grid(30, 1)), (LINEAR, grid(17.25, 5))]


@pytest.mark.parametrize(("schedule", "levels"), CHAINS)
@pytest.mark.parametrize("step", RANDOM_STEPS)
def test_mean_of_the_ddpm_chain_is_the_posterior_mean(schedule, levels, step):
    ab = float(schedule.signal(levels[0]))
    means = chain(schedule, levels, step, [-1.0, 0.0, 0.8])
    assert means.tolist() == pytest.approx([posterior_mean(ab, x_t) for x_t in (-1.0, 0.0, 0.8)], abs=1e-10)


@pytest.mark.parametrize(("schedule", "levels"), CHAINS)
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_variance_of_the_ddpm_chain_follows_the_closed_form(schedule, levels, variance_type):
    variance = 0.0
    for level, after in pairwise(levels):
        ab, ab_next = float(schedule.signal(level)), float(schedule.signal(after))
        gain = math.sqrt(ab / ab_next) * marginal_variance(ab_next) / marginal_variance(ab)  # Cov(x', x) / Var(x)
        beta = 1 - ab / ab_next
        added = beta if variance_type == "fixed_large" else (1 - ab_next) / (1 - ab) * beta
        variance = gain**2 * variance + (added if after > 0 else 0)
    step = partial(ddpm_step, variance_type=variance_type)
    assert variance_of_chain(schedule, levels, step) == pytest.approx(variance, rel=1e-9)
    assert variance > 0


def test_variance_of_the_fine_ddpm_chain_is_nearly_the_posterior_variance():
    ab = float(LINEAR.signal(120))
    exact = S**2 * (1 - ab) / marginal_variance(ab)
    assert 0.9 * exact < variance_of_chain(LINEAR, grid(120, 1), ddpm_step) < exact


@pytest.mark.parametrize(("schedule", "levels"), CHAINS)
def test_gain_and_mean_of_the_ddim_chain_follow_the_closed_form(schedule, levels):
    gain = 1.0
    for level, after in pairwise(levels):
        ab, ab_next = float(schedule.signal(level)), float(schedule.signal(after))
        gain *= math.sqrt(ab * ab_next) * S**2 + math.sqrt((1 - ab) * (1 - ab_next))
        gain /= marginal_variance(ab)
    start = math.sqrt(float(schedule.signal(levels[0]))) * MU  # the mean of x_t goes to the mean of x0
    assert chain(schedule, levels, ddim_step, [start, start + 1]).tolist() == pytest.approx([MU, MU + gain], abs=1e-10)


@pytest.mark.parametrize("levels", [grid(120, 20), grid(50, 20), grid(12, 1)])
def test_with_a_map_each_pixel_ends_at_the_posterior_mean_of_its_own_level(levels):
    generator = torch.Generator().manual_seed(4)
    timestep_map = levels[0] * torch.rand(2, 1, 4, 5, generator=generator, dtype=torch.float64)
    timestep_map[0, 0, 0, 0], timestep_map[1, 0, 2, 3], timestep_map[1, 0, 1, 1] = levels[0], levels[1], 1e-9
    x_t = torch.randn(2, 1, 4, 5, generator=generator, dtype=torch.float64)
    denoiser = partial(exact_denoiser, LINEAR, levels=timestep_map)
    result = denoise(x_t, denoiser, LINEAR, levels, ddpm_step, torch.zeros_like, timestep_map=timestep_map)
    for at in np.ndindex(2, 1, 4, 5):
        ab = float(LINEAR.signal(float(timestep_map[at])))
        assert float(result[at]) == pytest.approx(posterior_mean(ab, float(x_t[at])), abs=1e-8)


def test_denoise_calls_the_network_once_a_step_with_the_timestep_below_the_level():
    seen = []

    def denoiser(x_t, t):
        seen.append(t.tolist())
        return torch.zeros_like(x_t)

    denoise(torch.zeros(3, 1, 2, 2), denoiser, LINEAR, [50, 30, 10, 0], ddim_step, no_noise)
    assert seen == [[49] * 3, [29] * 3, [9] * 3]
