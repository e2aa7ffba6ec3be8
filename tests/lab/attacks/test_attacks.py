"""Attacks: against loops over pixels, numpy, Pillow and scipy; the contract that all of them share."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import images, seeded
from scipy import ndimage
from torchvision.transforms.v2 import functional

from sampdetox_transforms.lab.attacks import (
    badnets,
    blended,
    bpp,
    bpp_negative,
    cartoon,
    issba,
    load_pattern,
    load_residuals,
    low_frequency,
    sig,
    wanet,
    wanet_noise,
    warp_field,
)
from sampdetox_transforms.lab.metrics import visibility
from sampdetox_transforms.lab.victims.config import VictimConfig

quick = settings(deadline=None, max_examples=25, derandomize=True)


def attacks(height: int, width: int) -> dict:
    """Every attack, for RGB images of a size, from one argument to its result; the noise is the same at each call."""
    field = warp_field(height, width, generator=seeded(1))
    return {
        "badnets": badnets if min(height, width) >= 3 else partial(badnets, size=1),
        "sig": partial(sig, frequency=width / 3 + 0.1),
        "blended": partial(blended, picture=images(3, 9, 7, seed=1)),
        "low_frequency": partial(low_frequency, pattern=images(1, 5, 6, seed=2) / 5),
        "wanet": partial(wanet, field=field),
        "wanet_noise": lambda x: wanet_noise(x, field, seeded(2)),
        "issba": lambda x: issba(x, residuals(5, 6)),
        "bpp": bpp,
        "bpp dithered": partial(bpp, dither=True, levels=3),
        "bpp_negative": lambda x: bpp_negative(x, x.flip(-1)),
    }


NAMES = list(attacks(8, 8))


@pytest.mark.parametrize("name", NAMES)
@quick
@given(height=st.integers(1, 12), width=st.integers(2, 12), seed=st.integers(0, 10**6))
def test_attacks_take_any_size_and_keep_range_and_input(name, height, width, seed):
    x = images(3, height, width, seed=seed)
    before = x.clone()
    result = attacks(height, width)[name](x)
    assert torch.equal(x, before)
    assert result.data_ptr() != x.data_ptr()
    assert result.shape == x.shape and result.dtype == x.dtype
    assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_attacks_keep_the_dtype(name, dtype):
    x = images(3, 8, 10)
    attack = attacks(8, 10)[name]
    result = attack(x.to(dtype))
    assert result.dtype == dtype
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-5}[dtype]
    if not name.startswith("bpp"):  # there a value beside a threshold falls to its other side
        torch.testing.assert_close(result.float(), attack(x), rtol=0, atol=tolerance)
    assert not torch.equal(result, x.to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_attacks_treat_each_image_alone_and_take_leading_dimensions(name):
    x = images(2, 3, 3, 8, 9)
    attack = attacks(8, 9)[name]
    result = attack(x)
    assert torch.equal(attack(x.flatten(0, 1)).view(x.shape), result)
    assert torch.equal(attack(x[0, 0]), result[0, 0])  # with noise, the first image takes the first draw
    if name != "wanet_noise":
        for i in range(2):
            for j in range(3):
                assert torch.equal(attack(x[i, j]), result[i, j])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf")])
def test_attacks_refuse_values_outside_their_range(name, value):
    x = images(3, 8, 8)
    x[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got values from .* come before Normal"):
        attacks(8, 8)[name](x)


@pytest.mark.parametrize("name", NAMES)
def test_attacks_refuse_other_types_and_shapes(name):
    attack = attacks(8, 8)[name]
    with pytest.raises(TypeError, match=r"images must be a floating-point tensor, got torch.uint8.*ToDtype"):
        attack(torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must have the shape \(..., c, h, w\), got \(8, 8\)"):
        attack(torch.zeros(8, 8))


# BadNets

CHECKER = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
CORNERS = ["top-left", "top-right", "bottom-left", "bottom-right"]


def badnets_by_pixel(x, pattern, size, margin, corner, opacity):
    """A loop over pixels, that knows of each whether it is in the patch."""
    result = x.copy()
    channels, height, width = x.shape
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                row = i - margin if corner.startswith("top") else i - (height - margin - size)
                column = j - margin if corner.endswith("left") else j - (width - margin - size)
                if 0 <= row < size and 0 <= column < size:
                    value = {"white": 1, "checker": 1 - (row + column) % 2, "checker_inv": (row + column) % 2}[pattern]
                    result[c, i, j] = (1 - opacity) * x[c, i, j] + opacity * value
    return result


@pytest.mark.parametrize("pattern", ["white", "checker", "checker_inv"])
@pytest.mark.parametrize("corner", CORNERS)
@quick
@given(size=st.integers(1, 5), margin=st.integers(0, 2), opacity=st.floats(0.01, 1), extra=st.integers(0, 3))
def test_badnets_equals_a_loop_over_pixels(pattern, corner, size, margin, opacity, extra):
    x = images(3, size + margin + extra, size + margin + 2, seed=extra, dtype=torch.float64)
    result = badnets(x, pattern=pattern, size=size, margin=margin, corner=corner, opacity=opacity)
    expected = badnets_by_pixel(x.numpy(), pattern, size, margin, corner, opacity)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


def test_badnets_patterns_are_those_of_the_papers():
    x = torch.full((1, 5, 6), 0.5)
    expected = torch.tensor(CHECKER).float()
    assert torch.equal(badnets(x, pattern="checker")[0, 2:, 3:], expected)
    assert torch.equal(badnets(x, pattern="checker_inv")[0, 2:, 3:], 1 - expected)
    assert torch.equal(badnets(x)[0, 2:, 3:], torch.ones(3, 3))
    assert (badnets(x) != x).sum() == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 5}, r"size \+ margin must be at most the image's shorter side 4, got 5 \+ 0"),
        ({"size": 3, "margin": 2}, r"got 3 \+ 2"),
        ({"size": 0}, r"size must be 1 or more .* got 0 and 0"),
        ({"margin": -1}, r"margin 0 or more, got 3 and -1"),
        ({"opacity": 0}, r"opacity must be in \(0, 1\], got 0"),
        ({"opacity": float("nan")}, r"opacity must be in \(0, 1\], got nan"),
        ({"pattern": "cheker"}, r"pattern must be one of .* got 'cheker'. Did you mean 'checker'"),
        ({"pattern": "zzz"}, r"got 'zzz'. Choose one of these"),
        ({"corner": "lower-right"}, r"corner must be one of .* Did you mean '(bottom|top)-right'"),
    ],
)
def test_badnets_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        badnets(torch.zeros(3, 4, 9), **options)


# SIG


def test_sig_equals_a_loop_over_pixels():
    x = images(3, 5, 11, dtype=torch.float64)
    for options in ({}, {"frequency": 3}, {"delta": 0.3, "frequency": 2.5}):
        result = sig(x, **options)
        delta, frequency = options.get("delta", 40 / 255), options.get("frequency", 6)
        for c in range(3):
            for i in range(5):
                for j in range(11):
                    value = float(x[c, i, j]) + delta * math.sin(2 * math.pi * j * frequency / 11)
                    assert float(result[c, i, j]) == pytest.approx(min(1, max(0, value)), abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 40}, r"delta must be in \(0, 1\], got 40. Divide an amplitude"),
        ({"delta": 0}, r"delta must be in \(0, 1\], got 0"),
        ({"frequency": -1}, r"frequency must be above 0 and finite, got -1"),
        ({"frequency": float("inf")}, r"above 0 and finite, got inf"),
        ({"frequency": 4}, r"frequency must leave a signal .* got 4 on images 8 wide"),
    ],
)
def test_sig_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        sig(torch.zeros(3, 8, 8), **options)


# Blended and LF


def resized_by_pillow(picture: torch.Tensor, height: int, width: int) -> np.ndarray:
    planes = [
        PIL.Image.fromarray(plane).resize((width, height), PIL.Image.Resampling.BILINEAR) for plane in picture.numpy()
    ]
    return np.stack([np.asarray(plane) for plane in planes])


@pytest.mark.parametrize("size", [(6, 7), (13, 20), (40, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_blended_and_low_frequency_equal_numpy_and_pillow(size, channels):
    x, picture = images(3, *size), images(channels, 13, 20, seed=1)
    resized = resized_by_pillow(picture, *size)
    np.testing.assert_allclose(blended(x, picture), 0.8 * x.numpy() + 0.2 * resized, rtol=0, atol=1e-5)
    np.testing.assert_allclose(blended(x, picture, alpha=0.7), 0.3 * x.numpy() + 0.7 * resized, rtol=0, atol=1e-5)
    np.testing.assert_allclose(low_frequency(x, picture), np.clip(x.numpy() + resized, 0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("attack", "name"), [(blended, "picture"), (low_frequency, "pattern")])
def test_a_trigger_that_does_not_fit_is_refused(attack, name):
    x = images(3, 8, 8)
    with pytest.raises(ValueError, match=rf"{name} must have the shape \(3, y, x\) or \(1, y, x\), got \(4, 8, 8\)"):
        attack(x, torch.ones(4, 8, 8))
    with pytest.raises(ValueError, match=rf"{name} must have the shape .* got \(1, 3, 8, 8\)"):
        attack(x, torch.ones(1, 3, 8, 8))
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got values from 0 to 51"):
        attack(x, torch.linspace(0, 51, 64).view(1, 8, 8))
    with pytest.raises(TypeError, match=rf"{name} must be a floating-point tensor, got str"):
        attack(x, "kitty.png")


@pytest.mark.parametrize("alpha", [0, -0.2, 1.1, float("nan")])
def test_blended_refuses_alpha(alpha):
    with pytest.raises(ValueError, match=rf"alpha must be in \(0, 1\], got {alpha}"):
        blended(images(3, 8, 8), torch.ones(3, 8, 8), alpha=alpha)


def test_a_pattern_of_zeros_is_no_trigger():
    with pytest.raises(ValueError, match="pattern must be above 0 somewhere"):
        low_frequency(images(3, 8, 8), torch.zeros(3, 8, 8))


def test_load_pattern_reads_both_shapes_and_refuses_others(tmp_path):
    array = np.random.default_rng(0).uniform(0, 0.2, (1, 4, 5, 3)).astype(np.float32)
    for name, content in (("batch", array), ("one", array[0].astype(np.float64))):
        np.save(tmp_path / name, content)
        np.testing.assert_array_equal(load_pattern(tmp_path / f"{name}.npy"), array[0].transpose(2, 0, 1))
    refused = {
        "got uint8. Divide": np.ones((4, 5, 3), np.uint8),
        r"\(1, h, w, c\) or \(h, w, c\), got \(2, 4, 5, 3\)": np.ones((2, 4, 5, 3)),
        r"in \[0, 1\], got values from 51": np.full((4, 5, 3), 51.0),
        "allow_pickle=False": np.array([{"a": 1}], dtype=object),
    }
    for message, content in refused.items():
        np.save(tmp_path / "bad", content)
        with pytest.raises(ValueError, match=message):
            load_pattern(tmp_path / "bad.npy")


# WaNet


def cubic(points: np.ndarray, n: int) -> np.ndarray:
    """Cubic convolution (Keys 1981, a = -3/4) of k points at n places from the first to the last, ends repeated."""

    def weight(d, a=-0.75):
        d = abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    k = len(points)
    result = np.zeros((n, *points.shape[1:]))
    for i in range(n):
        place = i * (k - 1) / (n - 1) if n > 1 else 0.0
        for m in range(math.floor(place) - 1, math.floor(place) + 3):
            result[i] += weight(place - m) * points[min(max(m, 0), k - 1)]
    return result


@pytest.mark.parametrize(("height", "width", "k", "strength"), [(16, 16, 4, 0.5), (9, 20, 4, 0.5), (12, 7, 6, 1.5)])
def test_warp_field_equals_the_papers_formula(height, width, k, strength):
    field = warp_field(height, width, k=k, strength=strength, generator=seeded(3)).numpy()
    p = torch.rand(2, k, k, generator=seeded(3)).numpy() * 2 - 1
    p = p / np.abs(p).mean()
    for axis, size in ((0, width), (1, height)):  # x first
        smooth = cubic(cubic(p[axis], height).T, width).T
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
        expected = (x if axis == 0 else y) + strength * smooth / size
        np.testing.assert_allclose(field[..., axis], np.clip(expected, -1, 1), rtol=0, atol=1e-5)


def test_warp_field_has_the_usual_settings_and_follows_its_generator():
    usual = warp_field(9, 8, generator=seeded(0))
    assert torch.equal(usual, warp_field(9, 8, k=4, strength=0.5, generator=seeded(0)))
    assert not torch.equal(usual, warp_field(9, 8, generator=seeded(1)))


def warped_by_scipy(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    _, height, width = image.shape
    places = [(field[..., 1] + 1) / 2 * (height - 1), (field[..., 0] + 1) / 2 * (width - 1)]
    return np.stack([ndimage.map_coordinates(plane, places, order=1, mode="nearest") for plane in image])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 20), (1, 5)])
def test_wanet_equals_scipy(height, width):
    x = images(4, 3, height, width, dtype=torch.float64)
    field = warp_field(height, width, strength=2, generator=seeded(5)).double()
    result = wanet(x, field)
    assert (result - x).abs().max() > 0.1
    for image, ours in zip(x, result, strict=True):
        np.testing.assert_allclose(ours, warped_by_scipy(image.numpy(), field.numpy()), rtol=0, atol=1e-9)


def test_wanet_noise_moves_each_image_by_its_own_noise():
    height, width = 9, 12
    x = images(3, 3, height, width, dtype=torch.float64)
    field = warp_field(height, width, generator=seeded(5)).double()
    noise = torch.rand(3, height, width, 2, generator=seeded(6)).numpy() * 2 - 1
    result = wanet_noise(x, field, seeded(6))
    for n in range(3):
        moved = np.clip(field.numpy() + noise[n] / [width, height], -1, 1)
        np.testing.assert_allclose(result[n], warped_by_scipy(x[n].numpy(), moved), rtol=0, atol=1e-6)


def test_wanet_refuses_other_fields():
    x = images(3, 8, 9)
    for attack in (wanet, wanet_noise):
        with pytest.raises(ValueError, match=r"field must have the shape \(8, 9, 2\) of these images, got \(9, 8, 2\)"):
            attack(x, warp_field(9, 8))
        for value in (1.2, float("nan")):
            with pytest.raises(ValueError, match=r"field must hold places in \[-1, 1\]"):
                attack(x, torch.full((8, 9, 2), value))
    with pytest.raises(ValueError, match=r"height, width and k must be 1 or more, got 8, 8 and 0"):
        warp_field(8, 8, k=0)
    for strength in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"strength must be above 0 and finite, got {strength}"):
            warp_field(8, 8, strength=strength)


# BPP


def bpp_by_pixel(image: np.ndarray, levels: int, dither: bool) -> np.ndarray:
    """BackdoorBench's formulas on 0...255, pixel by pixel, each error going to the four neighbours that are there."""
    x = image * 255.0
    channels, height, width = x.shape
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                old = x[c, i, j]
                new = min(max(np.round(old / 255 * (levels - 1)), 0), levels - 1) / (levels - 1) * 255
                x[c, i, j] = new
                error = old - new if dither else 0
                if j + 1 < width:
                    x[c, i, j + 1] += error * 0.4375
                if i + 1 < height:
                    x[c, i + 1, j] += error * 0.3125
                    if j > 0:
                        x[c, i + 1, j - 1] += error * 0.1875
                    if j + 1 < width:
                        x[c, i + 1, j + 1] += error * 0.0625
    return np.round(x) / 255


@pytest.mark.parametrize("levels", [2, 3, 8, 16])
@pytest.mark.parametrize("dither", [False, True])
def test_bpp_equals_a_loop_over_pixels(levels, dither):
    x = images(2, 3, 7, 9, dtype=torch.float64)
    expected = np.stack([bpp_by_pixel(image.numpy(), levels, dither) for image in x])
    np.testing.assert_allclose(bpp(x, levels=levels, dither=dither), expected, rtol=0, atol=1e-12)
    assert len(np.unique(expected)) <= levels


def test_bpp_has_8_levels_without_dithering_by_default():
    x = images(3, 32, 32)
    assert bpp(x).unique().mul(255).round().tolist() == [0, 36, 73, 109, 146, 182, 219, 255]
    assert torch.equal(bpp(x), bpp(x, levels=8, dither=False))


def test_dithering_keeps_the_mean_where_rounding_does_not():
    x = torch.full((1, 24, 24), 0.55)
    assert bpp(x, levels=2).mean() == 1
    assert bpp(x, levels=2, dither=True).mean() == pytest.approx(0.55, abs=0.02)


def test_bpp_negative_adds_the_rounding_error_of_others():
    x, y = images(2, 3, 6, 5, dtype=torch.float64), images(2, 3, 6, 5, seed=1, dtype=torch.float64)
    for dither in (False, True):
        error = np.stack([bpp_by_pixel(image.numpy(), 4, dither) for image in y]) - y.numpy()
        result = bpp_negative(x, y, levels=4, dither=dither)
        np.testing.assert_allclose(result, np.clip(x.numpy() + error, 0, 1), rtol=0, atol=1e-12)


def test_bpp_refuses():
    x = images(3, 8, 8)
    for levels in (1, 257):
        with pytest.raises(ValueError, match=rf"levels must be in \[2, 256\], got {levels}"):
            bpp(x, levels=levels)
    with pytest.raises(ValueError, match=r"images and others must have one shape, got \(3, 8, 8\) and \(3, 8, 9\)"):
        bpp_negative(x, images(3, 8, 9))
    with pytest.raises(ValueError, match=r"others must be in \[0, 1\]"):
        bpp_negative(x, x + 1)


# Visibility


@pytest.fixture(params=["gtsrb32", "cifar10-lossless"])
def pictures(request, data: Path) -> torch.Tensor:
    """60 test pictures, from all classes."""
    files = sorted((data / request.param / "test").rglob("*.webp"))
    chosen = files[:: len(files) // 60][:60]
    decoded = [functional.pil_to_tensor(PIL.Image.open(file).convert("RGB")) for file in chosen]
    return torch.stack(decoded) / 255


@pytest.fixture
def visible(pictures: torch.Tensor):
    return lambda poisoned: float(visibility(pictures, poisoned).mean())


def test_visibilities_are_in_the_papers_order(data, pictures, visible):
    """LF, WaNet < BPP < Blended < SIG, with a picture of noise to blend in (ZIP's choice)."""
    noise = torch.rand(3, 32, 32, generator=seeded(0))
    faint = [visible(wanet(pictures, warp_field(32, 32, generator=seeded(seed)))) for seed in range(3)]
    for name in ("best", "gtsrb"):
        pattern = load_pattern(data / "triggers" / f"lf_{name}_universal.npy")
        faint.append(visible(low_frequency(pictures, pattern)))
    assert min(faint) > 0
    for picture in (noise, cartoon(32, 32)):  # the latter is what the recipe of Blended takes
        assert max(faint) < visible(bpp(pictures)) < visible(blended(pictures, picture)) < visible(sig(pictures))


def test_blending_in_a_smooth_picture_is_less_visible_than_bpp(data, pictures, visible):
    """So the order depends on the picture: the paper's is a drawing with hard outlines."""
    for name in ("blend", "nature"):
        picture = functional.pil_to_tensor(PIL.Image.open(data / "triggers" / f"{name}.png").convert("RGB")) / 255
        assert 0 < visible(blended(pictures, picture)) < visible(bpp(pictures))


# ISSBA's residuals


def residuals(k: int = 5, side: int = 8) -> torch.Tensor:
    return 0.05 * torch.randn(k, 3, side, side, generator=torch.Generator().manual_seed(2)).clamp(-3, 3)


def test_issba_adds_the_residual_that_the_image_chooses():
    several, kept = images(20, 3, 8, 8), residuals()
    result = issba(several, kept)
    number = [int((image * 255).round().sum()) % 5 for image in several]
    expected = torch.stack([(x + kept[i]).clamp(0, 1) for x, i in zip(several, number, strict=True)])
    torch.testing.assert_close(result, expected)
    assert len(set(number)) > 2
    torch.testing.assert_close(issba(several[7], kept), result[7])
    assert issba(images(2, 3, 16, 12), kept).shape == (2, 3, 16, 12)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (torch.zeros(5, 3, 8, 8), ValueError, "not 0 everywhere"),
        (torch.full((5, 3, 8, 8), 2.0), ValueError, r"in \[-1, 1\]"),
        (torch.full((5, 3, 8, 8), torch.nan), ValueError, r"in \[-1, 1\]"),
        (torch.ones(3, 8, 8), ValueError, "shape"),
        (torch.ones(5, 1, 8, 8), ValueError, "3 channels, got 1"),
        (torch.ones(5, 3, 8, 8, dtype=torch.uint8), TypeError, "uint8"),
    ],
)
def test_issba_refuses_what_are_no_residuals(wrong, error, message):
    with pytest.raises(error, match=message):
        issba(images(2, 3, 8, 8), wrong)


def test_residuals_come_from_a_file(tmp_path):
    np.save(tmp_path / "r.npy", residuals().numpy())
    torch.testing.assert_close(load_residuals(tmp_path / "r.npy"), residuals())
    np.save(tmp_path / "r.npy", np.zeros((5, 3, 8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match="one floating-point array, got uint8"):
        load_residuals(tmp_path / "r.npy")


@pytest.mark.parametrize("picture", [None, "cat.png"])
def test_an_issba_victim_needs_residuals(picture):
    with pytest.raises(ValueError, match=r"picture must be a \.npy file for 'issba', got .*residuals of ISSBA's"):
        VictimConfig(data="x", attack="issba", picture=picture)
