"""Algorithm 1 against the naive loop, and what must hold for any image."""

from functools import partial

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import DrawnNoise, toy_denoiser

from sampdetox_transforms.method.maps import absolute, minmax
from sampdetox_transforms.method.noise import SeededNoise, fresh_noise
from sampdetox_transforms.method.sampdetox import global_stage, local_stage, on_schedule, purify
from sampdetox_transforms.method.samplers import ddim_step, ddpm_step, grid
from sampdetox_transforms.method.schedule import Schedule

LINEAR, COSINE = Schedule.named("linear"), Schedule.named("cosine")
TABLE = reference.log_table(reference.linear_betas())
quick = settings(deadline=None, max_examples=20, derandomize=True)

SAMPLERS = {
    "ddim": (ddim_step, reference.ddim_pixel, False),
    "ddim-half": (partial(ddim_step, eta=0.5), partial(reference.ddim_pixel, eta=0.5), True),
    "ddpm-small": (ddpm_step, reference.ddpm_pixel, True),
    "ddpm-large": (
        partial(ddpm_step, variance_type="fixed_large"),
        partial(reference.ddpm_pixel, variance_type="fixed_large"),
        True,
    ),
}


def random_images(*shape, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2 - 1


def mean_difference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A map simple enough to write twice: the mean absolute difference of the channels."""
    return (x - y).abs().mean(dim=1, keepdim=True)


def mean_difference_array(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([reference.minmax(image) for image in np.abs(x - y).mean(axis=1)])


def count_images(denoiser):
    """The denoiser, and a list to which every call appends the size of its batch."""
    sizes = []

    def counting(x_t, t):
        assert t.shape == (len(x_t),)
        sizes.append(len(x_t))
        return denoiser(x_t, t)

    return counting, sizes


# Against the naive loops


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("shape", "t1", "t2", "stride"),
    [
        ((2, 3, 5, 7), 20, 120, 20),
        ((1, 1, 8, 6), 20, 50, 20),
        ((2, 3, 4, 3), 3, 5, 1),
        ((1, 3, 6, 5), 12.5, 33.3, 10),
        ((2, 1, 3, 3), 40, 15, 20),
    ],
)
def test_purify_equals_the_naive_loop(sampler, shape, t1, t2, stride):
    step, pixel_step, draws_at_steps = SAMPLERS[sampler]
    x0 = random_images(*shape)
    noise = DrawnNoise(shape, calls=20)
    result = purify(
        x0, toy_denoiser, LINEAR, t1=t1, t2=t2, stride=stride, step=step, dissimilarity=mean_difference, noise=noise
    )
    image, stage1, level_map = reference.purify(
        x0.numpy(),
        toy_denoiser,
        TABLE,
        t1=t1,
        t2=t2,
        stride=stride,
        step=pixel_step,
        make_map=mean_difference_array,
        draw=noise.arrays(),
        draws_at_steps=draws_at_steps,
    )
    np.testing.assert_allclose(result.stage1, stage1, atol=1e-9)
    np.testing.assert_allclose(result.timestep_map[:, 0], level_map, atol=1e-7)
    np.testing.assert_allclose(result.image, image, atol=1e-7)
    assert level_map.max() == pytest.approx(t2)
    assert np.mean(np.abs(image) < 1) > 0.5  # clipping hides nothing


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_local_stage_equals_the_naive_loop_at_whole_and_fractional_levels_and_at_the_grids_own(sampler):
    step, pixel_step, draws_at_steps = SAMPLERS[sampler]
    stage1 = random_images(3, 3, 3, 4)
    levels = torch.tensor([0, 1e-6, 0.5, 1, 9.999, 10, 10.001, 29.5, 30, 49.999, 50, 25], dtype=torch.float64)
    level_map = torch.stack([levels, torch.zeros(12).double(), levels.flip(0)]).view(3, 1, 3, 4)
    noise = DrawnNoise(stage1.shape, calls=4, seed=1)
    ours = local_stage(stage1, level_map, toy_denoiser, LINEAR, grid(50, 20), step, noise)
    expected = reference.stage(
        stage1.numpy(),
        level_map[:, 0].numpy(),
        toy_denoiser,
        TABLE,
        start=50,
        stride=20,
        step=pixel_step,
        draw=noise.arrays(),
        draws_at_steps=draws_at_steps,
    )
    np.testing.assert_allclose(ours, expected, atol=1e-8)


# What must hold for any image


@quick
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 3), channels=st.sampled_from([1, 3]))
def test_levels_0_and_0_are_the_identity(seed, batch, channels):
    x0 = random_images(batch, channels, 4, 5, seed=seed, dtype=torch.float32)
    denoiser, sizes = count_images(toy_denoiser)
    result = purify(x0, denoiser, LINEAR, t1=0, t2=0)
    assert torch.equal(result.image, x0)
    assert sizes == []
    assert result.network_calls.tolist() == [0] * batch


def test_t2_of_0_is_the_global_stage_alone():
    x0 = random_images(2, 3, 4, 5)
    result = purify(x0, toy_denoiser, LINEAR, t1=20, t2=0, noise=SeededNoise(x0, 0))
    alone = global_stage(x0, toy_denoiser, LINEAR, [20, 0], ddim_step, SeededNoise(x0, 0))
    assert torch.equal(result.image, alone)
    assert not torch.equal(result.image, x0)
    assert result.network_calls.tolist() == [1, 1]


def test_t1_of_0_changes_nothing_and_asks_nothing():
    x0 = random_images(2, 3, 8, 8, dtype=torch.float32)
    denoiser, sizes = count_images(toy_denoiser)
    result = purify(x0, denoiser, LINEAR, t1=0, t2=120)
    assert torch.equal(result.image, x0)
    assert sizes == []


@quick
@given(seed=st.integers(0, 10**6), share=st.floats(0.1, 0.9))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pixels_at_level_0_stay_as_they_are(sampler, seed, share):
    stage1 = 3 * random_images(2, 3, 4, 5, seed=seed, dtype=torch.float32)  # out of [-1, 1], to catch clipping too
    chosen = random_images(2, 1, 4, 5, seed=seed + 1) / 2 + 0.5
    level_map = torch.where(chosen < share, 0.0, 120 * chosen)
    result = local_stage(stage1, level_map, toy_denoiser, LINEAR, grid(120, 20), SAMPLERS[sampler][0], fresh_noise)
    untouched = (level_map == 0).expand_as(stage1)
    assert torch.equal(result[untouched], stage1[untouched])
    assert (result != stage1)[~untouched].double().mean() > 0.9 or untouched.all()


@quick
@given(seed=st.integers(0, 10**6), value=st.floats(-0.9, 0.9), top=st.sampled_from([120, 50, 33.3, 5]))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_pixel_above_level_0_ends_at_level_0(sampler, seed, value, top):
    # The denoiser is exact for a flat image when every pixel stands at min(its own level, the grid's).
    level_map = top * (random_images(2, 1, 4, 5, seed=seed) / 2 + 0.5)
    level_map[..., 0, 0] = top  # so that both images are in every batch

    def exact(x_t, t):
        ab = LINEAR.signal(torch.minimum(level_map, t.double().view(-1, 1, 1, 1) + 1))
        return (x_t - ab.sqrt() * value) / (1 - ab).sqrt()

    flat = torch.full((2, 3, 4, 5), value, dtype=torch.float64)
    result = local_stage(flat, level_map, exact, LINEAR, grid(top, 20), SAMPLERS[sampler][0], fresh_noise)
    torch.testing.assert_close(result, flat, rtol=0, atol=1e-5)


@pytest.mark.parametrize("t1", [20, 0.5, 50])
def test_global_stage_with_an_exact_denoiser_returns_a_flat_image(t1):
    flat = torch.full((1, 3, 4, 5), 0.3, dtype=torch.float64)

    def exact(x_t, t):
        ab = LINEAR.signal(t.double().view(-1, 1, 1, 1) + 1)
        return (x_t - ab.sqrt() * 0.3) / (1 - ab).sqrt()

    result = global_stage(flat, exact, LINEAR, grid(t1, 20), ddpm_step, fresh_noise)
    torch.testing.assert_close(result, flat, rtol=0, atol=1e-6)


def test_results_are_clipped_to_the_range_of_images():
    x0 = random_images(2, 3, 4, 5)
    result = purify(x0, lambda x, t: -20 * torch.sign(x), LINEAR)
    assert result.stage1.abs().max() == 1
    assert result.image.abs().max() == 1


@quick
@given(seed=st.integers(0, 10**6), order=st.permutations(range(4)))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_images_result_does_not_depend_on_its_batch(sampler, seed, order):
    # At this threshold some images get no local stage, so that its batch differs from the first one.
    x0 = random_images(4, 3, 6, 5, seed=seed, dtype=torch.float32) * torch.tensor([0.05, 1, 0.2, 0.7]).view(4, 1, 1, 1)
    options = {"t2": 50, "step": SAMPLERS[sampler][0], "to_unit": partial(absolute, low=0.004, high=0.02)}

    def run(images):
        return purify(images, toy_denoiser, LINEAR, noise=SeededNoise(images, seed), **options)

    together = run(x0[list(order)])
    for position, n in enumerate(order):
        alone = run(x0[n : n + 1])
        torch.testing.assert_close(together.image[position], alone.image[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(together.timestep_map[position], alone.timestep_map[0], rtol=0, atol=1e-3)
        assert together.network_calls[position] == alone.network_calls[0]


def test_images_with_a_map_of_0_cost_no_calls_and_the_others_are_counted():
    x0 = random_images(3, 3, 4, 5, dtype=torch.float32)
    denoiser, sizes = count_images(toy_denoiser)

    def only_the_second(difference):
        return torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1) * torch.ones_like(difference)

    result = purify(x0, denoiser, LINEAR, t1=40, t2=50, to_unit=only_the_second)
    assert sizes == [3, 3, 1, 1, 1]
    assert result.network_calls.tolist() == [2, 5, 2]
    assert torch.equal(result.image[[0, 2]], result.stage1[[0, 2]])
    assert not torch.equal(result.image[1], result.stage1[1])


@pytest.mark.parametrize(("stride", "calls"), [(20, 1 + 6), (1, 20 + 120), (50, 1 + 3)])
def test_network_calls_are_counted(stride, calls):
    x0 = random_images(2, 3, 4, 5, dtype=torch.float32)
    denoiser, sizes = count_images(toy_denoiser)
    result = purify(x0, denoiser, LINEAR, stride=stride)
    assert result.network_calls.tolist() == [calls, calls]
    assert sizes == [2] * calls


def test_flat_maps_give_no_nan():
    x0 = random_images(2, 3, 8, 8, dtype=torch.float32)
    result = purify(x0, toy_denoiser, LINEAR, dissimilarity=lambda x, y: torch.full((2, 1, 8, 8), 0.7))
    assert torch.equal(result.timestep_map, torch.zeros(2, 1, 8, 8))
    assert torch.equal(result.image, result.stage1)
    assert result.image.isfinite().all()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("flat", [True, False])
def test_gradients_are_finite_and_reach_the_image(sampler, flat):
    x0 = random_images(2, 3, 6, 7, dtype=torch.float32)
    x0 = (torch.zeros_like(x0) if flat else x0).requires_grad_()
    noise = partial(torch.full_like, fill_value=0.1) if flat else SeededNoise(x0, 0)
    result = purify(x0, toy_denoiser, LINEAR, t2=50, step=SAMPLERS[sampler][0], noise=noise)
    result.image.sum().backward()
    assert x0.grad.isfinite().all()
    assert (x0.grad != 0).any(dim=(1, 2, 3)).all()


def test_gradients_pass_images_without_a_local_stage():
    x0 = random_images(2, 3, 6, 7, dtype=torch.float32).requires_grad_()
    keep = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    purify(x0, toy_denoiser, LINEAR, to_unit=lambda d: minmax(d) * keep).image.sum().backward()
    assert x0.grad.isfinite().all()
    assert (x0.grad != 0).any(dim=(1, 2, 3)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_input_stays_and_its_dtype_is_kept(dtype):
    x0 = random_images(2, 3, 6, 7).to(dtype)
    before = x0.clone()
    result = purify(x0, toy_denoiser, LINEAR, step=ddpm_step)
    assert torch.equal(x0, before)
    assert result.image.dtype == result.stage1.dtype == dtype
    assert result.image.shape == x0.shape
    assert result.difference_map.shape == result.timestep_map.shape == (2, 1, 6, 7)


def test_result_tells_the_noise_levels():
    result = purify(random_images(1, 3, 4, 5), toy_denoiser, LINEAR)
    assert result.sigma1 == pytest.approx(0.0762, abs=5e-5)
    assert result.sigma2 == pytest.approx(0.4085, abs=5e-5)
    assert float(result.timestep_map.max()) == pytest.approx(120)
    assert float(result.timestep_map.min()) == 0


# A network on another schedule


def test_on_schedule_asks_at_the_timestep_with_the_same_signal():
    seen = []

    def denoiser(x_t, t):
        seen.append(t)
        return x_t

    adapted = on_schedule(denoiser, trained_on=LINEAR, schedule=COSINE)
    x_t = torch.zeros(3, 1, 2, 2)
    assert adapted(x_t, torch.tensor([19, 119, 199])) is x_t
    expected = COSINE.signal(torch.tensor([20, 120, 200]))
    torch.testing.assert_close(LINEAR.signal(seen[0] + 1), expected, rtol=1e-6, atol=0)
    assert [round(t) for t in seen[0].tolist()][:2] == [8, 58]
    assert seen[0].dtype == torch.float32


@pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_on_schedule_uses_level_1_of_the_network_below_it(schedule):
    seen = []
    adapted = on_schedule(lambda x, t: seen.append(t) or x, trained_on=LINEAR, schedule=schedule)
    adapted(torch.zeros(2, 1, 2, 2), torch.tensor([-0.5, -0.9]))
    assert seen[0].tolist() == [0, 0]


def test_on_schedule_gives_whole_timesteps_of_the_networks_own_schedule_as_they_are():
    seen = []
    adapted = on_schedule(lambda x, t: seen.append(t) or x, trained_on=LINEAR, schedule=Schedule.named("linear"))
    adapted(torch.zeros(2, 1, 2, 2), torch.tensor([0, 119]))
    assert seen[0].tolist() == [0, 119]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_join_the_running_batch_at_their_own_highest_level(sampler):
    step, pixel_step, draws_at_steps = SAMPLERS[sampler]
    stage1 = random_images(5, 3, 4, 3)
    highest = torch.tensor([30.0, 0, 120, 61, 60]).double()
    level_map = highest[:, None, None, None] * torch.rand(5, 1, 4, 3, dtype=torch.float64)
    level_map[:, :, 1, 1] = highest[:, None]
    denoiser, sizes = count_images(toy_denoiser)
    noise = DrawnNoise(stage1.shape, calls=7, seed=1)
    ours = local_stage(stage1, level_map, denoiser, LINEAR, grid(120, 20), step, noise)
    assert sizes == [1, 1, 2, 3, 4, 4]
    expected = reference.stage(
        stage1.numpy(),
        level_map[:, 0].numpy(),
        toy_denoiser,
        TABLE,
        start=120,
        stride=20,
        step=pixel_step,
        draw=noise.arrays(),
        draws_at_steps=draws_at_steps,
    )
    np.testing.assert_allclose(ours, expected, atol=1e-8)


@pytest.mark.parametrize("step", [ddim_step, ddpm_step])
def test_an_image_that_joins_late_is_the_same_alone(step):
    stage1 = random_images(3, 3, 6, 5)
    level_map = torch.tensor([20.0, 90, 55])[:, None, None, None] * torch.ones(3, 1, 6, 5)

    def run(x, levels):
        return local_stage(x, levels, toy_denoiser, LINEAR, grid(100, 20), step, SeededNoise(x, seed=4))

    together = run(stage1, level_map)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], run(stage1[i : i + 1], level_map[i : i + 1]))


def test_calls_are_counted_by_the_levels_that_an_image_takes():
    x0 = random_images(4, 3, 6, 6)
    scale = torch.tensor([0.0, 0.15, 0.6, 1.0]).double()[:, None, None, None]
    denoiser, sizes = count_images(toy_denoiser)
    result = purify(x0, denoiser, LINEAR, to_unit=lambda values: scale.expand_as(values))
    assert result.network_calls.tolist() == [1, 2, 5, 7] and sum(sizes) == 15


def test_purifying_twice_is_equal_with_a_seed_and_different_without():
    x0 = random_images(2, 3, 5, 6, dtype=torch.float32)
    runs = [purify(x0, toy_denoiser, LINEAR, noise=SeededNoise(x0, 3)).image for _ in range(2)]
    assert torch.equal(*runs)
    assert not torch.equal(purify(x0, toy_denoiser, LINEAR).image, purify(x0, toy_denoiser, LINEAR).image)
