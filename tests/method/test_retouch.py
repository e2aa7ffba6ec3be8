"""Retouching: what each part leaves alone, what it takes away, and that it computes what it says."""

import math

import pytest
import torch

from sampdetox_transforms.method.retouch import (
    blurred,
    colour_amount,
    jittered,
    mostly_colour,
    mostly_fine,
    resampled,
    sharpened,
    without_colour_cast,
)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.2 - 0.6


def mirrored(i: int, n: int) -> int:
    i %= 2 * n
    return min(i, 2 * n - 1 - i)


def naive_blur(plane: list[list[float]], sigma: float) -> list[list[float]]:
    """One weight for each pixel of the square window, mirrored borders, nothing separated."""
    radius, h, w = max(1, round(3 * sigma)), len(plane), len(plane[0])
    reach = range(-radius, radius + 1)
    weight = {(p, q): math.exp(-(p * p + q * q) / (2 * sigma * sigma)) for p in reach for q in reach}
    total = sum(weight.values())
    return [
        [
            sum(k * plane[mirrored(i + p, h)][mirrored(j + q, w)] for (p, q), k in weight.items()) / total
            for j in range(w)
        ]
        for i in range(h)
    ]


@pytest.mark.parametrize(
    "same",
    [
        lambda x: without_colour_cast(x, 8, 0),
        lambda x: resampled(x, 1),
        lambda x: sharpened(x, 0),
    ],
    ids=["no cast taken", "factor 1", "not sharpened"],
)
def test_amount_0_changes_nothing(same):
    x = images(2, 3, 12, 9)
    torch.testing.assert_close(same(x), x, rtol=0, atol=1e-15)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grey_image_has_no_colour_cast(channels):
    x = images(2, 1, 32, 20).expand(2, channels, 32, 20)
    torch.testing.assert_close(without_colour_cast(x), x, rtol=0, atol=1e-15)


def test_a_cast_that_is_constant_over_the_image_is_removed_whole():
    grey = images(2, 1, 32, 40).expand(2, 3, 32, 40) / 2
    cast = torch.tensor([0.2, -0.3, 0.1], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(without_colour_cast(grey + cast), grey, rtol=0, atol=1e-12)
    half = without_colour_cast(grey + cast, amount=0.5)
    torch.testing.assert_close(half, grey + cast / 2, rtol=0, atol=1e-12)


def test_each_image_may_have_its_own_amount():
    x, amounts = images(3, 3, 32, 32), (0.0, 0.3, 1.0)
    expected = torch.cat([without_colour_cast(one[None], 8, a) for one, a in zip(x, amounts, strict=True)])
    torch.testing.assert_close(without_colour_cast(x, 8, torch.tensor(amounts)), expected, rtol=0, atol=1e-7)
    assert not torch.allclose(expected[1], x[1], atol=1e-3)


def test_the_brightness_of_a_cast_stays():
    x = images(1, 3, 32, 32) / 2
    torch.testing.assert_close(without_colour_cast(x).mean(1), x.mean(1), rtol=0, atol=1e-12)


def test_fine_colour_stays_and_smooth_colour_goes():
    column = torch.arange(32, dtype=torch.float64)
    tint = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)[:, None, None]
    fine, smooth = (0.3 * torch.cos(math.pi * k * (column + 0.5) / 32) * tint for k in (16, 1))
    x = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(without_colour_cast(x + fine), x + fine, rtol=0, atol=1e-4)
    # a cosine of frequency k is an eigenvector of the blur: exp(-(pi k sigma / 32)^2 / 2) of it is blurred
    left = 1 - math.exp(-((math.pi * 8 / 32) ** 2) / 2)
    torch.testing.assert_close(without_colour_cast(x + smooth), x + left * smooth, rtol=0, atol=2e-3)


def test_without_colour_cast_as_a_loop_over_pixels():
    x = images(1, 3, 16, 11)
    sigma, amount = 4.0, 0.7
    expected = torch.empty_like(x)
    pixels = x[0].tolist()
    mean = [[sum(pixels[c][i][j] for c in range(3)) / 3 for j in range(11)] for i in range(16)]
    for c in range(3):
        colour = [[pixels[c][i][j] - mean[i][j] for j in range(11)] for i in range(16)]
        low = naive_blur(colour, sigma * 11 / 32)
        for i in range(16):
            for j in range(11):
                expected[0, c, i, j] = mean[i][j] + colour[i][j] - amount * low[i][j]
    torch.testing.assert_close(without_colour_cast(x, sigma, amount), expected, rtol=0, atol=1e-12)


def test_sharpened_as_a_loop_over_pixels():
    x = images(1, 1, 7, 6) / 2
    low = torch.tensor(naive_blur(x[0, 0].tolist(), 0.8), dtype=torch.float64)
    expected = (x[0, 0] + 1.5 * (x[0, 0] - low)).clamp(-1, 1)
    torch.testing.assert_close(sharpened(x, 1.5)[0, 0], expected, rtol=0, atol=1e-12)


def test_the_cast_is_blurred_over_the_same_share_of_an_image_of_any_size():
    x = images(1, 3, 32, 32).repeat_interleave(4, -1).repeat_interleave(4, -2)
    large = torch.nn.functional.avg_pool2d(without_colour_cast(x), 4)
    small = without_colour_cast(torch.nn.functional.avg_pool2d(x, 4))
    torch.testing.assert_close(large, small, rtol=0, atol=3e-3)


def test_a_flat_image_survives_every_part():
    x = torch.full((1, 3, 20, 33), 0.4, dtype=torch.float64)
    for result in (resampled(x, 0.6), sharpened(x, 3), blurred(x, 2.5), without_colour_cast(x)):
        torch.testing.assert_close(result, x, rtol=0, atol=1e-12)


def test_resampling_keeps_size_and_means_and_takes_the_finest_detail():
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).tile(16, 10)[None, None] / 2
    result = resampled(board, 0.5)
    assert result.shape == board.shape and result.abs().max() < 0.05 * board.abs().max()
    x = images(1, 3, 40, 30)
    assert (resampled(x, 0.6) - x).mean().abs() < 1e-2 and not torch.equal(resampled(x, 0.6), x)


def test_jitter_takes_each_pixel_from_where_the_noise_says():
    ramp = torch.arange(20.0).expand(2, 3, 16, 20) / 20 - 0.5
    result = jittered(ramp, 0.5, lambda like: torch.tensor([1.0, 0.0])[:, None, None].expand_as(like))
    torch.testing.assert_close(result[..., 3:-3], ramp[..., 3:-3] + 0.5 / 20)  # half a pixel to the right
    result = jittered(ramp, 0.5, lambda like: torch.tensor([0.0, 1.0])[:, None, None].expand_as(like))
    torch.testing.assert_close(result, ramp)  # half a pixel down, where all rows are alike


def test_jitter_changes_edges_alone_and_each_image_by_its_own_noise():
    x = torch.full((2, 3, 16, 16), -0.5)
    x[..., 8:] = 0.5
    result = jittered(x, 0.15, seeded_noise())
    changed = (result - x).abs().amax(dim=(0, 1, 2))
    assert (changed[:5] < 1e-6).all() and (changed[11:] < 1e-6).all() and (changed[7:9] > 0.05).all()
    assert not torch.equal(result[0], result[1]) and torch.equal(jittered(x, 0.15, seeded_noise()), result)
    assert jittered(x, 0, seeded_noise()) is x and result.abs().max() <= 1
    half = jittered(x.bfloat16(), 0.15, seeded_noise())
    assert half.dtype == torch.bfloat16 and (half.float() - result).abs().max() < 0.01


def seeded_noise():
    generator = torch.Generator().manual_seed(4)
    return lambda like: torch.randn(like.shape, generator=generator)


def test_sharpening_gives_back_contrast_that_resampling_took():
    x = blurred(images(1, 3, 32, 32), 1)
    soft = resampled(x, 0.6)
    assert (sharpened(soft, 0.7) - x).square().mean() < (soft - x).square().mean()


@pytest.mark.parametrize(
    "part",
    [without_colour_cast, lambda x: resampled(x, 0.6), lambda x: sharpened(x, 3)],
    ids=["cast", "resampled", "sharpened"],
)
def test_results_are_in_range_alike_in_any_batch_and_carry_gradients(part):
    x = (images(3, 3, 32, 24) * 2).clamp(-1, 1).float().requires_grad_()
    result = part(x)
    assert result.dtype == x.dtype and result.shape == x.shape and result.abs().max() <= 1
    assert part(x[1:2]).allclose(result[1:2], atol=1e-6)
    gradient = torch.autograd.grad(result.sum(), x)[0]
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_the_amount_of_colour_grows_with_the_smooth_colour_that_the_estimate_takes():
    x = images(5, 3, 32, 32)
    cast = torch.tensor([0.2, -0.3, 0.1], dtype=torch.float64)[:, None, None]
    grey_levels = torch.tensor([0.0, 0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    rms = cast.square().mean().sqrt() * 127.5
    estimate = x - (grey_levels / rms)[:, None, None, None] * cast
    estimate[4] += 0.2 * torch.sin(2 * torch.pi * 6 * torch.arange(32, dtype=torch.float64) / 32)  # brightness alone
    amounts = colour_amount(x, estimate, least=0.5, gain=1)
    wanted = torch.tensor([0.5, 0.5 + 0.5 * 0.25, 1.0, 1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(amounts, wanted)
    grey = x.mean(dim=1, keepdim=True)
    assert colour_amount(grey, grey / 2, least=0.25).tolist() == [0.25] * 5


def test_which_estimates_take_mostly_colour():
    grey = images(1, 1, 32, 32).expand(1, 3, 32, 32) / 2
    cast = torch.tensor([0.2, -0.3, 0.1], dtype=torch.float64)[:, None, None]  # half of its energy is not brightness
    wave = 0.2 * torch.sin(2 * torch.pi * 6 * torch.arange(32, dtype=torch.float64) / 32)
    x = torch.cat([grey + cast, grey + wave, grey + wave + 0.1 * cast, grey])
    assert mostly_colour(x, grey.expand_as(x)).tolist() == [True, False, False, False]
    # the share is the cast's part of the energy: .02 of waves and .14 / 3 of a cast without brightness
    mixed, part = grey + wave + cast, (0.14 / 3) / (0.14 / 3 + wave.square().mean().item())
    assert mostly_colour(mixed, grey, share=part - 0.01) and not mostly_colour(mixed, grey, share=part + 0.01)
    assert not mostly_colour(x[:, :1], grey[:, :1].expand(4, 1, 32, 32)).any()


def test_which_estimates_take_mostly_fine_detail():
    column = torch.arange(32, dtype=torch.float64)
    smooth, fine = (0.2 * torch.cos(math.pi * k * (column + 0.5) / 32) for k in (2, 24))
    x = torch.zeros(4, 3, 32, 32, dtype=torch.float64)
    taken = torch.stack([0 * fine, smooth, fine, smooth + fine / 3])[:, None, None]
    assert mostly_fine(x, x + taken).tolist() == [False, False, True, False]
    # of a cosine of frequency k the blur leaves exp(-(pi k / 32)^2 / 2); its energy is that of the rest squared
    left = [1 - math.exp(-((math.pi * k / 32) ** 2) / 2) for k in (2, 24)]
    share = (left[0] ** 2 + left[1] ** 2 / 9) / (1 + 1 / 9)
    assert mostly_fine(x, x + taken, share=share - 0.02)[3] and not mostly_fine(x, x + taken, share=share + 0.02)[3]
