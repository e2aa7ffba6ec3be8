"""From logits to a mask: beside scipy's labels and dilation, and on answers that are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sampdetox_transforms.method.search import dilate, hysteresis, local_suspicion

EIGHT = np.ones((3, 3))


def logits_of(seed: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 1, height, width, generator=torch.Generator().manual_seed(seed)) * 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(1, 12), width=st.integers(1, 12), low=st.floats(-2, 1))
def test_hysteresis_keeps_the_components_that_reach_high(seed, height, width, low):
    logits, high = logits_of(seed, height, width), 2.0
    for mask, image in zip(hysteresis(logits, high, low)[:, 0].numpy(), logits[:, 0].numpy(), strict=True):
        components, _ = ndimage.label(image > low, structure=EIGHT)
        kept = np.unique(components[(image > high) & (image > low)])
        assert (mask == (np.isin(components, kept) & (components > 0))).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(1, 9), width=st.integers(1, 9), pixels=st.integers(0, 4))
def test_dilate_is_scipys(seed, height, width, pixels):
    mask = logits_of(seed, height, width) > 2
    for mine, image in zip(dilate(mask, pixels)[:, 0].numpy(), mask[:, 0].numpy(), strict=True):
        assert (mine == (ndimage.binary_dilation(image, EIGHT, iterations=pixels) if pixels else image)).all()


def test_suspicion_is_what_stands_out_together():
    logits = torch.full((3, 1, 8, 8), -4.0)
    logits[1, 0, 2:4, 2:4] = 4  # four pixels in a square
    logits[2, 0, ::4, ::4] = 4  # four pixels apart
    none, together, apart = local_suspicion(logits).tolist()
    assert none == -4
    assert together == pytest.approx((4 + 0 + 0) / 3)  # the square, and the two best of those that share half of it
    assert none < apart < together


def test_suspicion_of_images_too_small_for_a_square():
    assert local_suspicion(torch.full((1, 1, 1, 1), 3.0)).tolist() == [3]
    assert local_suspicion(torch.tensor([[[[1.0, 3.0]]]])).tolist() == [2]
