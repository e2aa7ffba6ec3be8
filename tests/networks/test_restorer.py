"""The network: sizes, grey images, and that erased pixels are not looked at."""

import pytest
import torch

from sampdetox_transforms.networks.restorer import Restorer, RestorerConfig, Specialists


@pytest.fixture
def restorer() -> Restorer:
    return Restorer(RestorerConfig(widths=(8, 16, 16))).eval()


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (7, 50), (33, 8)])
def test_any_size_and_grey(restorer, size):
    for channels in (1, 3):
        answer = restorer(torch.rand(2, channels, *size) * 2 - 1)
        assert answer.image.shape == (2, channels, *size)
        assert answer.local.shape == (2, 1, *size)
        assert answer.dense.shape == (2,)


def test_a_grey_image_is_a_colour_image_of_three_equal_planes(restorer):
    x = torch.rand(2, 1, 16, 16)
    grey, colour = restorer(x), restorer(x.expand(-1, 3, -1, -1))
    assert torch.equal(grey.local, colour.local)
    assert torch.allclose(grey.image, colour.image.mean(dim=1, keepdim=True))


def test_nothing_in_the_answer_depends_on_erased_pixels(restorer):
    x = torch.rand(3, 3, 20, 24) * 2 - 1
    erased = torch.rand(3, 1, 20, 24) < 0.3
    other = torch.where(erased, torch.rand_like(x) * 2 - 1, x)
    for one, two in zip(restorer(x, erased), restorer(other, erased), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(restorer(x).image, restorer(other).image)


def test_an_empty_mask_is_no_mask_and_a_mask_is_seen(restorer):
    x = torch.zeros(1, 3, 16, 16)
    none = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    assert torch.equal(restorer(x).image, restorer(x, none).image)
    assert not torch.equal(restorer(x).image, restorer(x, ~none).image)


def test_an_image_does_not_depend_on_its_batch(restorer):
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    together = restorer(x)
    for i in range(4):
        for one, part in zip(restorer(x[i : i + 1]), together, strict=True):
            assert torch.allclose(one[0], part[i], atol=1e-4)


def test_it_computes_in_the_dtype_of_its_weights_and_answers_in_that_of_the_images(restorer):
    x = torch.rand(1, 3, 16, 16)
    exact = restorer(x)
    rough = restorer.to(torch.bfloat16)(x)
    assert rough.image.dtype == rough.local.dtype == rough.dense.dtype == torch.float32
    assert torch.allclose(rough.image, exact.image, atol=0.1)


def test_specialists_ask_one_where_and_the_other_whether_and_fill_with_the_first():
    torch.manual_seed(0)
    local, dense = (Restorer(RestorerConfig(widths=(8, 16, 16))).eval() for _ in range(2))
    both, x = Specialists(local, dense), torch.rand(2, 3, 16, 16) * 2 - 1
    erased = torch.rand(2, 1, 16, 16) < 0.3
    answer = both(x)
    assert torch.equal(answer.local, local(x).local)
    assert torch.equal(answer.dense, dense(x).dense) and torch.equal(answer.image, dense(x).image)
    for one, two in zip(both(x, erased), local(x, erased), strict=True):
        assert torch.equal(one, two)
