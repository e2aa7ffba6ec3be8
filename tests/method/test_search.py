"""From logits to a mask, beside scipy's labels and dilation; and large images, searched at the size that is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import CALIBRATION, RED, WhiteIsForeign, as_it_is, run
from scipy import ndimage

from sampdetox_transforms.method import search
from sampdetox_transforms.method.search import (
    dilate,
    enlarge,
    enlarge_map,
    hysteresis,
    local_suspicion,
    locate,
    shrink,
)

EIGHT = np.ones((3, 3))
NETWORKS = WhiteIsForeign()  # as they are up to 48 pixels, else 32


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


def test_hysteresis_ends_in_a_maze_and_reaches_the_end_of_straight_ways_at_once(monkeypatch):
    stairs, line = torch.eye(400) * 2 - 1, torch.full((400, 400), -1.0)
    line[7] = line[:, 9] = 1
    for logits in (stairs, line):
        logits[logits > 0] = 1
    stairs[0, 0] = line[7, 0] = 3
    rounds = []
    monkeypatch.setattr(search, "dilate", lambda mask, pixels: rounds.append(1) or dilate(mask, pixels))
    assert hysteresis(line[None, None], 2.0, 0.0).sum() == 799 and len(rounds) <= 3
    rounds.clear()
    assert 100 <= hysteresis(stairs[None, None], 2.0, 0.0).sum() < 400 and len(rounds) == search.ROUNDS


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


def test_suspicion_over_another_window():
    logits = torch.full((1, 1, 9, 9), -4.0)
    logits[..., 2:6, 2:6] = 4
    assert local_suspicion(logits, 4).tolist() == pytest.approx([(4 + 2 + 2) / 3])


@pytest.mark.parametrize(("size", "margin", "grown"), [(32, 0, 0), (32, 1, 1), (96, 1, 3), (8, 1, 1), (320, 2, 20)])
def test_the_margin_is_in_pixels_of_an_image_of_32(size, margin, grown):
    logits = torch.full((1, 1, size, size + 5), -8.0)
    logits[..., size // 2, size // 2] = 8
    found = locate(logits, NETWORKS, margin)
    side = min(2 * grown + 1, size)
    assert found.sum() == side * side and found[..., size // 2, size // 2].all()


def test_what_is_certain_and_what_is_possible_is_the_networks():
    networks = WhiteIsForeign()
    networks.certain, networks.possible = 3.0, 1.0
    logits = torch.tensor([[[[0.0, 2, 4, 2, 0, 2]]]])
    assert locate(logits, networks, 0).flatten().tolist() == [False, True, True, True, False, False]


# Large images


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (48, 200), (7, 500)])
def test_images_that_the_network_knows_stay(size):
    x = pixels(2, 3, *size)
    assert shrink(x, NETWORKS) is x
    assert enlarge(x, x, -x) is not x and torch.equal(enlarge(x, x, -x), -x)


@pytest.mark.parametrize(("size", "small"), [((49, 49), (32, 32)), ((96, 128), (32, 43)), ((1024, 64), (512, 32))])
def test_larger_ones_are_averaged(size, small):
    x = pixels(2, 3, *size)
    assert shrink(x, NETWORKS).shape == (2, 3, *small) and min(shrink(x, NETWORKS).shape[-2:]) == 32
    torch.testing.assert_close(shrink(x * 0 + 0.25, NETWORKS), torch.full((2, 3, *small), 0.25))
    twice = pixels(1, 3, 64, 64)
    torch.testing.assert_close(shrink(twice, NETWORKS), torch.nn.functional.avg_pool2d(twice, 2))


def test_what_was_not_changed_stays_and_the_rest_follows():
    x0 = pixels(1, 3, 80, 96)
    small = shrink(x0, NETWORKS)
    torch.testing.assert_close(enlarge(x0, small, small), x0)
    torch.testing.assert_close(enlarge(x0 * 0.5, small * 0.5, small * 0.5 + 0.25), x0 * 0.5 + 0.25)
    mask = torch.zeros(1, 1, *small.shape[-2:], dtype=torch.bool)
    mask[..., 4:8, 10:20] = True
    filled = enlarge(x0, small, torch.where(mask, 0.5, small), mask)
    inside = enlarge_map(mask.float(), x0) > 0
    middle = torch.zeros_like(inside)
    middle[..., 14:17, 32:45] = True
    assert (inside | ~middle).all() and float((filled - 0.5)[middle.expand_as(x0)].abs().max()) < 0.3
    assert (filled != x0)[inside.expand_as(x0)].all()
    far = torch.ones_like(inside)
    far[..., 5:25, 20:60] = False
    torch.testing.assert_close(filled[far.expand_as(x0)], x0[far.expand_as(x0)])


def test_nothing_of_the_large_patch_is_left():
    x0 = pixels(2, 3, 96, 128) * 0.5
    x0[1, :, 30:48, 60:78] = 1
    result = as_it_is(x0, WhiteIsForeign())
    assert result.image.shape == x0.shape
    assert result.found.mask.shape == result.found.probability.shape == (2, 1, 96, 128)
    torch.testing.assert_close(result.image[0], x0[0])
    assert not result.found.mask[0].any() and result.found.mask[1, :, 30:48, 60:78].all()
    assert 0.02 < float(result.found.mask[1].float().mean()) < 0.06
    red = torch.tensor(RED)[:, None, None]
    assert float((result.image[1, :, 30:48, 60:78] - red).abs().max()) < 0.15  # bicubic: near its edge not only red
    torch.testing.assert_close(result.image[1, :, 35:43, 65:73], red.expand(3, 8, 8))


def test_a_large_image_does_not_depend_on_its_batch():
    x0 = pixels(3, 3, 70, 60) * 0.5
    x0[1, :, 10:30, 10:30] = 1
    assert CALIBRATION.false_alarm_rate > float(run(x0, WhiteIsForeign()).found.p_value[1])
    together = run(x0, WhiteIsForeign())
    for i in range(3):
        torch.testing.assert_close(run(x0[i : i + 1], WhiteIsForeign()).image[0], together.image[i])


def test_sizes_are_those_of_the_networks():
    networks = WhiteIsForeign()
    networks.as_is, networks.side = 20, 10
    assert shrink(pixels(1, 3, 20, 30), networks).shape == (1, 3, 20, 30)
    assert shrink(pixels(1, 3, 40, 21), networks).shape == (1, 3, 19, 10)


@pytest.mark.parametrize("size", [(60, 1200), (1000, 50)])
def test_long_images_keep_their_shape(size):
    x0 = pixels(1, 3, *size) * 0.5
    x0[..., 10:30, 10:30] = 1
    result = as_it_is(x0, WhiteIsForeign())
    assert result.image.shape == x0.shape and result.image.isfinite().all()
    assert result.found.mask[..., 12:28, 12:28].all() and result.found.mask.float().mean() < 0.05
