"""Mirrored borders and means over windows: against numpy and scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sampdetox_transforms.method.windows import gaussian_window, local_mean, symmetric_pad

quick = settings(deadline=None, max_examples=50, derandomize=True)


@quick
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    pads=st.tuples(*[st.integers(0, 20)] * 4),
    seed=st.integers(0, 99),
)
def test_symmetric_pad_equals_numpy(size, pads, seed):
    x = torch.tensor(np.random.default_rng(seed).normal(size=(2, 3, *size)))
    left, right, top, bottom = pads
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), (top, bottom), (left, right)], mode="symmetric")
    np.testing.assert_array_equal(symmetric_pad(x, left, right, top, bottom), expected)


@pytest.mark.parametrize(("sigma", "radius"), [(1.5, 5), (1.0, 4), (0.3, 1)])
def test_local_mean_by_a_gaussian_equals_scipy(sigma, radius):
    x = torch.tensor(np.random.default_rng(0).normal(size=(2, 3, 7, 9)))
    window = gaussian_window(sigma, radius)
    assert window.dtype == torch.float64 and float(window.sum()) == pytest.approx(1)
    expected = ndimage.gaussian_filter(x.numpy(), sigma, mode="reflect", radius=radius, axes=(2, 3))
    np.testing.assert_allclose(local_mean(x, window), expected, rtol=1e-10, atol=1e-12)
