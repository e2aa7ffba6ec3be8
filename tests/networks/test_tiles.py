"""Tiles: they cover every image, a network without context is not changed by them, and seams do not show."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampdetox_transforms import SampDetox, load_denoiser
from sampdetox_transforms.networks.tiles import in_parts, of_any_size, ramp, spans

quick = settings(deadline=None, max_examples=60, derandomize=True)


@quick
@given(
    length=st.integers(1, 400),
    side=st.integers(1, 100),
    overlap=st.integers(0, 40),
    multiple=st.sampled_from([1, 4, 8]),
)
def test_pieces_cover_the_side_evenly_and_overlap(length, side, overlap, multiple):
    length = -(-length // multiple) * multiple
    found = list(spans(length, side, overlap, multiple))
    side = max(side // multiple * multiple, multiple)
    assert found[0][0] == 0 and found[-1][1] == length
    sizes = {end - start for start, end in found}
    assert len(sizes) == 1 and max(sizes) <= max(side, 1)
    assert len(found) == 1 or next(iter(sizes)) % multiple == 0
    shared = min(overlap, side - 1)
    fewest = 1 if length <= side else -(-(length - shared) // (side - shared))
    assert len(found) == fewest
    for (_, end), (start, _) in pairwise(found):
        assert end >= start


@pytest.mark.parametrize("size", [(1, 1), (16, 24), (17, 30)])
def test_images_of_any_size_are_mirrored_up_to_a_multiple_and_cropped(size):
    x, seen = torch.rand(2, 3, *size), []

    def network(x, t):
        seen.append(tuple(x.shape[-2:]))
        return x * t[:, None, None, None]

    times = torch.tensor([2.0, 3.0])
    assert torch.equal(of_any_size(network, x, times, 8), x * times[:, None, None, None])
    assert seen == [tuple(-(-side // 8) * 8 for side in size)]


@pytest.mark.parametrize("size", [(20, 20), (33, 64), (50, 21), (8, 300)])
@pytest.mark.parametrize("at_once", [1, 500, 10**6])
def test_a_network_of_single_pixels_is_the_same_by_tiles(size, at_once):
    x, t = torch.randn(3, 2, *size), torch.tensor([1.0, 2, 3])

    def network(x, t):
        return x.sin() * t[:, None, None, None]

    torch.testing.assert_close(in_parts(network, x, t, side=16, at_once=at_once, overlap=5), network(x, t))


@pytest.mark.parametrize(("at_once", "largest"), [(1, 1), (16 * 16 * 2, 2), (10**6, 5)])
def test_no_call_takes_more_pixels_than_it_may(at_once, largest):
    seen = []

    def network(x, t):
        assert len(x) == len(t)
        seen.append(len(x))
        return x

    x = torch.randn(5, 3, 16, 16)
    assert torch.equal(in_parts(network, x, torch.zeros(5), side=16, at_once=at_once), x)
    assert max(seen) == largest and sum(seen) == 5
    seen.clear()
    in_parts(network, torch.randn(2, 3, 40, 40), torch.zeros(2), side=16, at_once=at_once, overlap=4)
    assert sum(seen) == 2 * 9 and max(seen) <= max(1, at_once // 256)


def test_weights_fall_towards_the_ends_and_are_never_zero():
    weight = ramp(20, 4, torch.zeros(1))
    assert weight.min() > 0 and torch.equal(weight, weight.flip(0))
    assert (weight[4:16] == 1).all() and (weight[:4].diff() > 0).all()


def test_tiles_keep_gradients_and_small_images_go_whole():
    x = torch.randn(1, 1, 40, 40, requires_grad=True)
    in_parts(lambda x, t: x * 2, x, torch.zeros(1), side=16, overlap=4).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 2))
    shapes = []
    in_parts(lambda x, t: shapes.append(x.shape) or x, x, torch.zeros(1), side=40)
    assert shapes == [(1, 1, 40, 40)]


def scene(height: int, width: int) -> torch.Tensor:
    """A smooth coloured scene with edges, without anything that repeats."""
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width) / width
    red = 0.5 + 0.4 * torch.sin(5 * rows + 3 * columns * columns)
    green = ((rows - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.08).float() * 0.7 + 0.1
    blue = (rows * 0.6 + columns * 0.3).expand(height, width)
    return torch.stack([red, green, blue])


def test_seams_do_not_show():
    """Tiled and whole differ by less than two seeds of the whole image do, at the seams as well (RMS)."""
    image, denoiser = scene(96, 112), load_denoiser("bundled")

    def purified(seed, side):
        type(denoiser).largest_side = property(lambda self: side)
        return SampDetox(denoiser, preset="ddim", t1=12, t2=0, seed=seed)(image)  # the stage that every image gets

    own = type(denoiser).largest_side
    try:
        whole, other, tiled = purified(0, 512), purified(1, 512), purified(0, 64)
    finally:
        type(denoiser).largest_side = own
    seeds, tiles = (whole - other).square().mean(dim=0).sqrt(), (whole - tiled).square().mean(dim=0).sqrt()
    assert 0 < tiles.square().mean().sqrt() < seeds.square().mean().sqrt()
    for start, end in spans(96, 64, 32, 8):
        for row in {start, end - 1} - {0, 95}:
            assert tiles[row].square().mean().sqrt() < seeds.square().mean().sqrt()


@pytest.mark.parametrize("size", [(600, 520), (1, 1), (513, 7)])
def test_any_size_passes(tiny_denoiser, size):
    assert SampDetox(tiny_denoiser, t2=40)(torch.rand(3, *size)).shape == (3, *size)
