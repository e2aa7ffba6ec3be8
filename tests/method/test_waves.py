"""Waves taken out of single images, beside a fit by least squares, and what is left alone."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampdetox_transforms.lab.demo.signs import draw_signs
from sampdetox_transforms.method import waves
from sampdetox_transforms.method.waves import drawing, steadiest, without_waves


def scenes(n: int, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Blobs, and texture of their own in each strip."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator) - 0.5
    texture = 0.1 * torch.randn(n, 3, height, width, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic") + texture


def wave(height: int, width: int, along: float, across: float = 0.0, phase: float = 0.0) -> torch.Tensor:
    row, column = torch.arange(height)[:, None] / height, torch.arange(width) / width
    return torch.sin(2 * math.pi * (along * column + across * row) + phase)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (225, 160)])
@pytest.mark.parametrize(("along", "across"), [(6, 0), (7.4, 0), (5, 4), (6, -3)])
def test_a_wave_of_any_direction_is_taken_out(height, width, along, across, turned):
    x = scenes(3, height, width)
    added = 0.25 * wave(height, width, along, across)
    if turned:
        x, added = x.mT, added.mT
    result, lost = without_waves((x + added).clamp(-1, 1))
    assert lost.all()
    left, before = ((y - x).square().mean() for y in (result, (x + added).clamp(-1, 1)))
    assert left < 0.12 * before


@settings(max_examples=30, deadline=None)
@given(along=st.integers(4, 12), phase=st.floats(0, 6.2), amplitude=st.floats(0.1, 0.5))
def test_the_amplitude_is_that_of_a_fit_by_least_squares(along, phase, amplitude):
    x = (0.05 * scenes(1) + amplitude * wave(32, 32, along, 0, phase)).double()
    found = steadiest(x)
    mean, column = x[0, 0].mean(dim=0).numpy(), np.arange(32) / 32
    basis = np.stack([np.cos(2 * np.pi * along * column), np.sin(2 * np.pi * along * column), np.ones(32)], axis=1)
    fit = np.linalg.lstsq(basis, mean, rcond=None)[0]
    expected = (basis[:, :2] @ fit[:2]) * float(found.excess)
    assert float(found.along) == along and float(found.across) == 0 and float(found.excess) > 0.7
    drawn = drawing(x, found)[0, 0]
    assert np.abs(drawn.numpy() - expected).max() < 0.03 * amplitude + 0.01


@pytest.mark.parametrize("across", [0, 3, -5])
def test_a_slanted_wave_is_drawn_as_high_as_it_is(across):
    added = 0.4 * wave(64, 64, 7, across)
    x = (0.02 * scenes(1, 64, 64) + added).double()
    found = steadiest(x)
    assert (float(found.along), float(found.across)) == (7, across) and float(found.excess) > 0.9
    assert (drawing(x, found) - added * float(found.excess)).abs().max() < 0.02


def test_two_waves_along_one_side_are_taken_out():
    x = scenes(2)
    both = 0.2 * wave(32, 32, 5) + 0.2 * wave(32, 32, 11)
    result, lost = without_waves(x + both)
    assert lost.all() and (result - x).square().mean() < 0.15 * both.square().mean()


def test_images_without_a_wave_are_returned_as_they_are_and_do_not_see_each_other():
    x = scenes(6, seed=3).clamp(-1, 1)
    x[2] = (x[2] + 0.3 * wave(32, 32, 6)).clamp(-1, 1)
    result, lost = without_waves(x)
    assert lost.tolist() == [False, False, True, False, False, False]
    assert torch.equal(result[~lost], x[~lost]) and result.abs().max() <= 1
    torch.testing.assert_close(result[2:3], without_waves(x[2:3])[0])


@pytest.mark.parametrize("x", [torch.zeros(1, 3, 64, 64), torch.ones(2, 1, 20, 33), torch.rand(1, 3, 15, 99)])
def test_flat_and_tiny_images_have_none(x):
    result, lost = without_waves(x)
    assert result is x or torch.equal(result, x)
    assert not lost.any()


def test_a_ramp_is_no_wave():
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    for x in (ramp, ramp.mT, ramp / 2 + ramp.mT / 2):
        assert not without_waves(x)[1].any()


def test_half_precision_is_computed_in_full_and_gradients_pass():
    x = (scenes(1) + 0.3 * wave(32, 32, 6)).clamp(-1, 1)
    full, half = without_waves(x)[0], without_waves(x.bfloat16())[0]
    assert half.dtype == torch.bfloat16 and (half.float() - full).abs().max() < 0.02
    x.requires_grad_()
    without_waves(x)[0].square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


# What belongs to the image


def test_a_shape_in_a_smooth_image_is_no_wave():
    """One drawn sign in six had a slanted line in its spectrum that stood out, and none of them a wave."""
    signs = draw_signs(120, seed=9)[0] * 2 - 1
    cleaned, lost = without_waves(signs)
    assert not lost.any() and torch.equal(cleaned, signs)
    with mock.patch.object(waves, "smoother", lambda x, y: torch.ones(len(x), dtype=torch.bool)):
        assert without_waves(signs)[1].float().mean() > 0.1


def test_an_image_that_loses_a_wave_gets_smoother():
    x = draw_signs(60, seed=10)[0] * 2 - 1
    x[::2] += 20 / 127.5 * (2 * math.pi * 6 * torch.arange(x.shape[-1]) / x.shape[-1]).sin()
    x = x.clamp(-1, 1)
    cleaned, lost = without_waves(x)
    assert lost[::2].float().mean() > 0.7 and not lost[1::2].any()
    assert (waves.variation(cleaned[lost]) < waves.variation(x[lost])).all()
    assert torch.equal(cleaned[~lost], x[~lost])


def test_variation_is_the_mean_difference_of_neighbours():
    x = torch.zeros(2, 1, 4, 5)
    x[0, 0, :, 2:] = 3  # one step of 3 in each row, among 4 pairs
    assert waves.variation(x).tolist() == [0.75, 0]
    assert waves.smoother(x.flip(0), x).tolist() == [True, False]
