"""Large images are searched at the size that the network knows, and changed at their own."""

import pytest
import torch
from samples import WhiteIsForeign, as_it_is, run

from sampdetox_transforms.method.search_scale import LARGEST, SIDE, enlarge, enlarge_map, shrink


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (LARGEST, 200), (7, 500)])
def test_images_that_the_network_knows_stay(size):
    x = pixels(2, 3, *size)
    assert shrink(x) is x
    assert enlarge(x, x, -x) is not x and torch.equal(enlarge(x, x, -x), -x)


@pytest.mark.parametrize(("size", "small"), [((49, 49), (32, 32)), ((96, 128), (32, 43)), ((1024, 64), (512, 32))])
def test_larger_ones_are_averaged(size, small):
    x = pixels(2, 3, *size)
    assert shrink(x).shape == (2, 3, *small) and min(shrink(x).shape[-2:]) == SIDE
    torch.testing.assert_close(shrink(x * 0 + 0.25), torch.full((2, 3, *small), 0.25))
    torch.testing.assert_close(shrink(pixels(1, 3, 64, 64)), torch.nn.functional.avg_pool2d(pixels(1, 3, 64, 64), 2))


def test_what_was_not_changed_stays_and_the_rest_follows():
    x0 = pixels(1, 3, 80, 96)
    small = shrink(x0)
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
    result = as_it_is(x0, restorer=WhiteIsForeign())
    assert result.image.shape == x0.shape and result.mask.shape == result.ssim_map.shape == (2, 1, 96, 128)
    torch.testing.assert_close(result.image[0], x0[0])
    assert not result.mask[0].any() and result.mask[1, :, 30:48, 60:78].all()
    assert 0.02 < float(result.mask[1].float().mean()) < 0.06
    red = torch.tensor([0.5, -0.5, -0.5])[:, None, None]
    assert float((result.image[1, :, 30:48, 60:78] - red).abs().max()) < 0.15  # bicubic: near its edge not only red
    torch.testing.assert_close(result.image[1, :, 35:43, 65:73], red.expand(3, 8, 8))


def test_a_large_image_does_not_depend_on_its_batch():
    x0 = pixels(3, 3, 70, 60) * 0.5
    x0[1, :, 10:30, 10:30] = 1
    together = run(x0, restorer=WhiteIsForeign())
    for i in range(3):
        torch.testing.assert_close(run(x0[i : i + 1], restorer=WhiteIsForeign()).image[0], together.image[i])
