"""The settings of Algorithm 1: what they compute on small images, beside the naive loop."""

from dataclasses import FrozenInstanceError, replace
from functools import partial

import numpy as np
import pytest
import reference
import torch
from reference import DrawnNoise, toy_denoiser
from scipy import ndimage

from sampdetox_transforms.method.algorithm1 import Algorithm1
from sampdetox_transforms.method.schedule import Schedule

LINEAR = Schedule.named("linear")
TABLE = reference.log_table(reference.linear_betas())
PAPER = Algorithm1(schedule="cosine", sampler="ddpm", stride=1, data_range=1.0)


# At lower levels, against the naive loop with scikit-image's and scipy's maps.


def stretched(per_image, x, y):
    return np.stack([reference.minmax(per_image(a, b)) for a, b in zip(x, y, strict=True)])


def blurred_squared_error(x, y):
    return ndimage.gaussian_filter(np.tensordot([0.299, 0.587, 0.114], ((x - y) / 2) ** 2, 1), 1.0, mode="reflect")


def dissimilarity(x, y, **options):
    return 1 - reference.similarity(x, y, **({"win_size": 7, "data_range": 1.0} | options))


def similarity(x, y):
    return reference.similarity(x, y, win_size=7, data_range=1.0)


SQUARED = Algorithm1(t1=20, t2=50, map="squared_error")
GAUSSIAN_255 = {"gaussian_weights": True, "sigma": 1.5, "win_size": None, "data_range": 255}
CASES = [
    (Algorithm1(t1=20, t2=50), reference.ddim_pixel, partial(stretched, partial(dissimilarity, data_range=255))),
    (replace(SQUARED, eta=0.5), partial(reference.ddim_pixel, eta=0.5), partial(stretched, blurred_squared_error)),
    (replace(PAPER, t1=3, t2=5), reference.ddpm_pixel, partial(stretched, dissimilarity)),
    (
        replace(PAPER, t1=4, t2=6, stride=2, variance_type="fixed_large"),
        partial(reference.ddpm_pixel, variance_type="fixed_large"),
        partial(stretched, dissimilarity),
    ),
    (
        replace(PAPER, t1=3, t2=5, direction="similarity"),
        reference.ddpm_pixel,
        partial(stretched, similarity),
    ),
    (
        replace(PAPER, t1=3, t2=5, window="gaussian", data_range=255),
        reference.ddpm_pixel,
        partial(stretched, partial(dissimilarity, **GAUSSIAN_255)),
    ),
    (
        replace(SQUARED, rescale="absolute", scale=0.01),
        reference.ddim_pixel,
        lambda x, y: np.stack([np.clip(blurred_squared_error(a, b) / 0.01, 0, 1) for a, b in zip(x, y, strict=True)]),
    ),
]


@pytest.mark.parametrize(("settings", "pixel_step", "make_map"), CASES)
def test_algorithm_1_equals_the_naive_loop(settings, pixel_step, make_map):
    x0 = torch.rand(2, 3, 11, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    noise = DrawnNoise(x0.shape, calls=12)
    result = settings.run(x0, toy_denoiser, LINEAR, noise=noise)
    image, stage1, level_map = reference.purify(
        x0.numpy(),
        toy_denoiser,
        TABLE,
        t1=settings.t1,
        t2=settings.t2,
        stride=settings.stride,
        step=pixel_step,
        make_map=make_map,
        draw=noise.arrays(),
        draws_at_steps=settings.sampler == "ddpm" or settings.eta > 0,
    )
    np.testing.assert_allclose(result.stage1, stage1, atol=1e-9)
    np.testing.assert_allclose(result.timestep_map[:, 0], level_map, atol=1e-5)
    np.testing.assert_allclose(result.image, image, atol=1e-5)
    assert level_map.std() > 0


@pytest.mark.parametrize("name", ["ssim", "squared_error"])
@pytest.mark.parametrize("rescale", ["minmax", "absolute"])
def test_similarity_noises_most_what_changed_least(name, rescale):
    x0 = torch.rand(1, 3, 11, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = Algorithm1(map=name, rescale=rescale, direction="similarity", t2=50)
    result = settings.run(x0, toy_denoiser, LINEAR)
    change = Algorithm1(map=name).difference(x0, result.stage1)
    assert result.timestep_map.max() > 0
    assert result.timestep_map.flatten()[change.argmin()] == result.timestep_map.max()
    assert result.timestep_map.flatten()[change.argmax()] == result.timestep_map.min()


def test_the_map_of_a_result_is_what_stage_1_changed():
    x0 = torch.rand(2, 3, 11, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    for settings in (SQUARED, PAPER):
        settings = replace(settings, t1=3, t2=5, schedule=None)
        result = settings.run(x0, toy_denoiser, LINEAR)
        torch.testing.assert_close(result.difference_map, settings.difference(x0, result.stage1))
        assert result.difference_map.shape == (2, 1, 11, 12) and result.difference_map.std() > 0
        assert result.found is None and result.lightened is None


def test_an_absolute_map_gives_the_value_scale_the_level_t2():
    x0 = torch.rand(2, 3, 11, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    settings = replace(SQUARED, rescale="absolute", scale=0.003)
    result = settings.run(x0, toy_denoiser, LINEAR)
    expected = settings.t2 * (result.difference_map / 0.003).clamp(0, 1)
    torch.testing.assert_close(result.timestep_map, expected)
    assert 0 < float((expected == settings.t2).double().mean()) < 1


@pytest.mark.parametrize(("t1", "t2", "highest"), [(20, 120, 120), (200, 50, 200)])
def test_highest_level_is_that_of_the_strongest_noise(t1, t2, highest):
    assert Algorithm1(t1=t1, t2=t2).highest_level == highest


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Algorithm1().t1 = 3
