"""Maps of change: against scikit-image, scipy and numpy, borders included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.metrics import structural_similarity

from sampdetox_transforms.method.maps import absolute, minmax, squared_error_map, ssim_map, weigh_channels

SIZES = [(3, 16, 16), (3, 11, 23), (1, 32, 13)]
SMALL_SIZES = [(3, 3, 5), (1, 1, 1), (3, 2, 12)]
quick = settings(deadline=None, max_examples=50, derandomize=True)


def images(shape, seed: int = 0, amount: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Two similar images in [-1, 1], float64, as a batch of one."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (1, *shape))
    y = np.clip(x + amount * rng.normal(size=x.shape), -1, 1)
    return torch.tensor(x), torch.tensor(y)


def scikit_image_map(x, y, window, data_range, sample_covariance) -> np.ndarray:
    options = {"gaussian_weights": True, "sigma": 1.5} if window == "gaussian" else {"win_size": 7}
    return structural_similarity(
        (x[0].numpy() + 1) / 2,
        (y[0].numpy() + 1) / 2,
        data_range=data_range,
        full=True,
        channel_axis=0,
        use_sample_covariance=sample_covariance,
        **options,
    )[1].mean(axis=0)


def scipy_map(x, y, window, data_range, sample_covariance) -> np.ndarray:
    """Wang et al. 2004, equation 13, with scipy's filters, which take any size."""

    def average(plane):
        if window == "uniform":
            return ndimage.uniform_filter(plane, 7, mode="reflect")
        return ndimage.gaussian_filter(plane, 1.5, truncate=3.5, mode="reflect")

    n = 49 if window == "uniform" else 121
    factor = n / (n - 1) if sample_covariance else 1
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    planes = []
    for a, b in zip((x[0].numpy() + 1) / 2, (y[0].numpy() + 1) / 2, strict=True):
        ma, mb = average(a), average(b)
        va, vb, cov = average(a * a) - ma**2, average(b * b) - mb**2, average(a * b) - ma * mb
        s = (2 * ma * mb + c1) * (2 * factor * cov + c2)
        planes.append(s / ((ma**2 + mb**2 + c1) * (factor * (va + vb) + c2)))
    return np.mean(planes, axis=0)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("window", ["uniform", "gaussian"])
@pytest.mark.parametrize("sample_covariance", [True, False])
def test_ssim_map_equals_scikit_image(shape, window, sample_covariance):
    x, y = images(shape)
    ours = ssim_map(x, y, window=window, sample_covariance=sample_covariance)
    assert ours.shape == (1, 1, *shape[1:])
    np.testing.assert_allclose(ours[0, 0], scikit_image_map(x, y, window, 1.0, sample_covariance), atol=1e-10)


def test_ssim_map_of_float32_images_equals_scikit_image():
    x, y = images((3, 16, 16))
    ours = ssim_map(x.float(), y.float())
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours[0, 0], scikit_image_map(x, y, "uniform", 1.0, True), atol=1e-5)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_ssim_map_at_data_range_255_equals_scikit_image_after_stretching(shape, window):
    x, y = images(shape)
    ours = minmax(1 - ssim_map(x, y, window=window, data_range=255))[0, 0].numpy()
    theirs = 1 - scikit_image_map(x, y, window, 255, True)
    np.testing.assert_allclose(ours, (theirs - theirs.min()) / (theirs.max() - theirs.min()), atol=1e-6)


@pytest.mark.parametrize("shape", SMALL_SIZES)
@pytest.mark.parametrize("window", ["uniform", "gaussian"])
@pytest.mark.parametrize("sample_covariance", [True, False])
def test_ssim_map_takes_images_smaller_than_its_window(shape, window, sample_covariance):
    x, y = images(shape)
    ours = ssim_map(x, y, window=window, sample_covariance=sample_covariance)
    np.testing.assert_allclose(ours[0, 0], scipy_map(x, y, window, 1.0, sample_covariance), atol=1e-10)


def test_images_of_a_batch_do_not_mix():
    pairs = [images((3, 9, 8), seed) for seed in range(3)]
    x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
    for function in (ssim_map, squared_error_map):
        alone = torch.cat([function(*one) for one in pairs])
        torch.testing.assert_close(function(x, y), alone, rtol=0, atol=1e-12)


def test_channel_weights_weigh_the_channels_maps():
    x, y = images((3, 9, 8))
    red, green, blue = (ssim_map(x[:, [i]], y[:, [i]]) for i in range(3))
    ours = ssim_map(x, y, channel_weights=(0.11, 0.59, 0.30))
    torch.testing.assert_close(ours, 0.11 * red + 0.59 * green + 0.30 * blue, rtol=0, atol=1e-12)


def test_channel_weights_are_for_three_channels_only():
    x = torch.arange(4.0, dtype=torch.float64).view(1, 1, 2, 2)
    assert torch.equal(weigh_channels(x, (0.2, 0.3, 0.5)), x)


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
@pytest.mark.parametrize("data_range", [1.0, 255])
@quick
@given(seed=st.integers(0, 10**6), height=st.integers(1, 9), width=st.integers(1, 9))
def test_ssim_of_an_image_with_itself_is_1_and_ssim_is_symmetric(window, data_range, seed, height, width):
    x, y = images((3, height, width), seed)
    options = {"window": window, "data_range": data_range}
    torch.testing.assert_close(ssim_map(x, x, **options), torch.ones(1, 1, height, width).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(ssim_map(x, y, **options), ssim_map(y, x, **options), rtol=0, atol=1e-12)
    assert ssim_map(x, y, **options).abs().max() <= 1 + 1e-12


def test_unknown_window_is_named():
    x, y = images((3, 8, 8))
    with pytest.raises(ValueError, match=r"window must be one of .*uniform.*gaussian.*got 'hann'"):
        ssim_map(x, y, window="hann")


@pytest.mark.parametrize("shape", SIZES + SMALL_SIZES)
@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_squared_error_map_equals_scipy(shape, sigma):
    x, y = images(shape)
    difference = ((x - y)[0].numpy() / 2) ** 2
    weights = [0.299, 0.587, 0.114] if shape[0] == 3 else [1.0]
    expected = ndimage.gaussian_filter(np.tensordot(weights, difference, 1), sigma, mode="reflect", truncate=4)
    ours = squared_error_map(x, y, sigma=sigma)
    assert ours.shape == (1, 1, *shape[1:])
    np.testing.assert_allclose(ours[0, 0], expected, rtol=1e-9, atol=1e-15)


def test_squared_error_map_has_sigma_1_by_default_and_is_0_where_equal():
    x, y = images((3, 8, 8))
    assert torch.equal(squared_error_map(x, y), squared_error_map(x, y, sigma=1.0))
    assert torch.equal(squared_error_map(x, x), torch.zeros(1, 1, 8, 8).double())


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 1e-300])
def test_minmax_of_a_flat_map_is_0(value):
    result = minmax(torch.full((2, 1, 4, 4), value, dtype=torch.float64))
    assert torch.equal(result, torch.zeros(2, 1, 4, 4).double())


def test_minmax_takes_rounding_error_for_flat():
    noise = 1e-15 * torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(minmax(1 - noise), torch.zeros(1, 1, 4, 4).double())


@quick
@given(seed=st.integers(0, 10**6), spread=st.floats(1e-9, 1e3), offset=st.floats(-10, 10))
def test_minmax_stretches_each_image_alone(seed, spread, offset):
    x = torch.tensor(np.random.default_rng(seed).normal(size=(3, 1, 4, 5))) * spread + offset
    result = minmax(x)
    for n in range(3):
        a = x[n].numpy()
        np.testing.assert_allclose(result[n], (a - a.min()) / (a.max() - a.min()), rtol=0, atol=1e-12)
        assert result[n].min() == 0
        assert result[n].max() == 1


def test_minmax_of_a_flat_image_leaves_its_neighbours_alone():
    x = torch.stack([torch.zeros(1, 2, 2), torch.arange(4.0).view(1, 2, 2)])
    assert torch.equal(minmax(x)[0], torch.zeros(1, 2, 2))
    torch.testing.assert_close(minmax(x)[1], x[1] / 3)


def test_minmax_has_finite_gradients_on_flat_and_other_maps():
    x = torch.stack([torch.zeros(1, 2, 2), torch.arange(4.0).view(1, 2, 2)]).requires_grad_()
    (minmax(x) ** 2).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[1].abs().max() > 0


def test_absolute_clamps_to_its_range_and_does_not_look_at_the_image():
    x = torch.tensor([-1.0, 0.1, 0.2, 0.3, 0.6, 2.0]).view(1, 1, 2, 3)
    expected = torch.tensor([0, 0, 0, 0.25, 1, 1]).view(1, 1, 2, 3)
    torch.testing.assert_close(absolute(x, low=0.2, high=0.6), expected)
    torch.testing.assert_close(absolute(x), x.clamp(0, 1))
    torch.testing.assert_close(absolute(x[:, :, :1, :1], low=-3, high=1), torch.full((1, 1, 1, 1), 0.5))
