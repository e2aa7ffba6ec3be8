"""Small pictures of a report: their size, and what must not get lost in them."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from sampdetox_transforms.cli.purify import thumbnails
from sampdetox_transforms.cli.purify.thumbnails import SIDE


@pytest.mark.parametrize("size", [(1, 1), (SIDE, SIDE), (SIDE + 1, 40), (40, 900), (3, 3000)])
def test_large_pictures_are_shown_smaller_and_small_ones_larger(size):
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    png = thumbnails.encode(thumbnails.shrink(pixels))
    width, height = Image.open(io.BytesIO(png)).size
    if max(size) <= SIDE:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels.movedim(0, -1).numpy())
    else:
        assert max(width, height) == SIDE and min(width, height) >= 1
    shown = thumbnails.shown_size(png)
    assert shown[0] % width == shown[1] % height == 0 and shown[0] // width == shown[1] // height
    assert thumbnails.LEAST_SIDE <= max(shown) <= SIDE
    assert struct.unpack(">II", png[16:24]) == (width, height)


def test_a_masked_pixel_of_a_large_picture_is_not_lost():
    mask = torch.zeros(1, 2000, 3000, dtype=torch.bool)
    mask[0, 1234, 567] = True
    small = thumbnails.shrink(torch.zeros(1, 2000, 3000, dtype=torch.uint8))
    marked = (thumbnails.overlay(small, mask) != 0).any(0).nonzero().tolist()
    assert [1234 * small.shape[1] // 2000, 567 * small.shape[2] // 3000] in marked and len(marked) <= 4
