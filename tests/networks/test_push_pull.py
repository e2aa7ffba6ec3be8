"""The smooth first filling of holes."""

import pytest
import torch
from contract import pixels

from sampdetox_transforms.networks.push_pull import push_pull


def hole(height: int, width: int, rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    mask[..., rows, columns] = True
    return mask


@pytest.mark.parametrize("size", [(32, 32), (7, 50), (1, 9), (1, 1)])
def test_known_pixels_stay_and_what_the_hole_held_does_not_matter(size):
    x = pixels(1, 3, *size)
    mask = pixels(1, 1, *size, seed=1) < 0.4
    filled = push_pull(x, mask)
    assert torch.equal(filled[~mask.expand_as(x)], x[~mask.expand_as(x)])
    assert torch.equal(filled, push_pull(torch.where(mask, 9.0, x), mask))
    assert torch.isfinite(filled).all()


def test_a_plain_image_is_filled_with_its_colour():
    x = torch.tensor([0.2, -0.5, 0.9])[None, :, None, None].expand(1, 3, 40, 56)
    filled = push_pull(x, hole(40, 56, slice(3, 30), slice(10, 50)))
    torch.testing.assert_close(filled, x, rtol=0, atol=1e-6)


def test_a_slope_goes_on_across_the_hole():
    x = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    filled = push_pull(x, hole(64, 64, slice(24, 40), slice(24, 40)))
    assert float((filled - x).abs().max()) < 0.25 and float((filled - x).abs().mean()) < 0.01
    middle = filled[0, 0, 32, 24:40]
    assert float(middle[0]) < -0.1 < 0.1 < float(middle[-1])


def test_values_lie_within_those_of_the_known_pixels_and_images_do_not_mix():
    x, mask = pixels(2, 3, 33, 20), hole(33, 20, slice(5, 30), slice(2, 18)).expand(2, -1, -1, -1)
    filled = push_pull(x, mask)
    for image, own, result in zip(x, mask, filled, strict=True):
        known = image[:, ~own[0]]
        low, high = known.amin(dim=1)[:, None, None] - 1e-6, known.amax(dim=1)[:, None, None] + 1e-6
        assert bool(((result >= low) & (result <= high)).all())
    torch.testing.assert_close(filled[:1], push_pull(x[:1], mask[:1]))


def test_an_image_without_a_known_pixel_becomes_grey():
    assert not push_pull(pixels(1, 3, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool)).any()


def test_a_pixel_takes_the_nearest_known_one_and_not_the_mean_of_all():
    x = torch.zeros(1, 3, 8, 8)
    x[..., 0, 0] = 1
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 0, 0] = mask[..., 7, 7] = False
    filled = push_pull(x, mask)
    assert float(filled[0, 0, 1, 1]) > 0.7 and float(filled[0, 0, 6, 6]) < 0.3
