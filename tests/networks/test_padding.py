"""Padding to a multiple: mirrored borders, the image in the middle, and the way back."""

import numpy as np
import pytest
import torch

from sampdetox_transforms.networks.padding import pad_to_multiple


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 16), (9, 8), (3, 33)])
def test_borders_are_mirrored_as_numpy_does_and_the_window_is_the_image(size):
    x = torch.randn(2, 3, *size)
    padded, (rows, columns) = pad_to_multiple(x, 8)
    borders = [(-length % 8 // 2, -length % 8 - -length % 8 // 2) for length in size]
    assert np.array_equal(padded, np.pad(x, [(0, 0), (0, 0), *borders], mode="symmetric"))
    assert torch.equal(padded[..., rows, columns], x)


def test_an_image_that_fits_is_not_copied():
    x = torch.randn(1, 1, 16, 8)
    padded, _ = pad_to_multiple(x, 8)
    assert padded.data_ptr() == x.data_ptr() and padded.shape == x.shape
