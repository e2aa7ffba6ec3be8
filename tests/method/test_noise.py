"""Seeded noise: keyed by the image, whatever its batch, its dtype and torch's default are."""

import numpy as np
import pytest
import torch

from sampdetox_transforms.method.noise import SeededNoise, fresh_noise, subset


def random_images(*shape, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2 - 1


def test_seeded_noise_is_the_images_own_in_any_batch():
    x0 = random_images(4, 3, 5, 6, dtype=torch.float32)
    together, backwards = SeededNoise(x0, 7), SeededNoise(x0.flip(0), 7)
    alone = [SeededNoise(x0[n : n + 1], 7) for n in range(4)]
    for _ in range(3):
        draw = together(x0)
        assert torch.equal(draw.flip(0), backwards(x0))
        assert torch.equal(draw, torch.cat([noise(x0[:1]) for noise in alone]))


def test_seeded_noise_differs_between_draws_seeds_passes_and_images():
    x0 = random_images(2, 3, 5, 6, dtype=torch.float32)
    noise = SeededNoise(x0, 1)
    first, second = noise(x0), noise(x0)
    others = [
        second[0],
        first[1],
        SeededNoise(x0, 2)(x0)[0],
        SeededNoise(x0, 1, pass_index=1)(x0)[0],
    ]
    assert all(not torch.isclose(first[0], other).any() for other in others)


def test_seed_and_pass_are_not_run_together():
    x0 = random_images(1, 3, 5, 6)
    assert not torch.isclose(SeededNoise(x0, 1, pass_index=10)(x0), SeededNoise(x0, 11, pass_index=0)(x0)).any()


def test_equal_images_get_equal_noise():
    x0 = random_images(1, 3, 5, 6).repeat(2, 1, 1, 1)
    draw = SeededNoise(x0, 0)(x0)
    assert torch.equal(draw[0], draw[1])


def test_one_changed_pixel_changes_the_noise():
    x0 = torch.zeros(2, 3, 5, 6)
    x0[1, 2, 4, 5] = 1.1 / 127.5
    draw = SeededNoise(x0, 0)(x0)
    assert not torch.isclose(draw[0], draw[1]).any()


def test_seeded_noise_is_standard_normal_and_its_draws_are_independent():
    x0 = random_images(4, 3, 32, 32, dtype=torch.float32)
    noise = SeededNoise(x0, 0)
    draws = torch.stack([noise(x0), noise(x0)]).double()
    n = draws.numel()
    assert abs(float(draws.mean())) < 4 / n**0.5
    assert abs(float(draws.std()) - 1) < 4 / (2 * n) ** 0.5
    correlations = torch.corrcoef(draws.flatten(2).flatten(0, 1)) - torch.eye(8)
    assert correlations.abs().max() < 5 / (3 * 32 * 32) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_does_not_change_the_key_of_an_8_bit_image(dtype):
    grey = torch.randint(0, 256, (1, 3, 5, 6), generator=torch.Generator().manual_seed(0))
    x0 = grey * 2 / 255 - 1
    draw = SeededNoise(x0.to(dtype), 0)(x0.to(dtype))
    assert draw.dtype == dtype
    assert torch.equal(draw, SeededNoise(x0, 0)(x0).to(dtype))


def test_subset_keeps_the_noise_of_the_chosen_images_going():
    x0 = random_images(3, 3, 5, 6, dtype=torch.float32)
    index = torch.tensor([2, 0])
    noise, whole = SeededNoise(x0, 0), SeededNoise(x0, 0)
    noise(x0), whole(x0)
    assert torch.equal(subset(noise, index)(x0[index]), whole(x0)[index])
    assert subset(fresh_noise, index) is fresh_noise


def test_fresh_noise_differs_between_calls():
    like = torch.zeros(1, 3, 5, 6, dtype=torch.float64)
    first, second = fresh_noise(like), fresh_noise(like)
    assert first.shape == like.shape
    assert first.dtype == like.dtype
    assert not torch.isclose(first, second).any()


def test_numpy_seeds_are_the_same_seeds():
    x0 = random_images(2, 3, 5, 6)
    assert torch.equal(SeededNoise(x0, np.int64(3), np.int64(1))(x0), SeededNoise(x0, 3, 1)(x0))  # pyright: ignore


@pytest.mark.parametrize("default", [torch.float64, torch.float16, torch.bfloat16])
def test_torchs_default_dtype_changes_nothing(default):
    x0 = random_images(2, 3, 5, 6, dtype=torch.float32)
    expected = SeededNoise(x0, 0)(x0)
    torch.set_default_dtype(default)
    try:
        draw = SeededNoise(x0, 0)(x0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(draw, expected)
