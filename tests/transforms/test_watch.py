"""One warning for images of a kind that the thresholds do not come from, none for photographs."""

import copy
import logging
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torchvision.transforms.v2.functional import pil_to_tensor

from sampdetox_transforms import SampDetox
from sampdetox_transforms.lab.demo.photographs import photographs
from sampdetox_transforms.method.result import Found, Purified
from sampdetox_transforms.transforms.watch import FEWEST, UNLIKELY, Watch, flatness, too_many, unlike_photographs


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="sampdetox_transforms")
    return lambda: [record.getMessage() for record in caplog.records]


def page(size: int = 224) -> torch.Tensor:
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    for y in range(4, size - 12, 14):
        draw.text((4, y), "A page of text is not a photograph of anything. " * 2, fill="black")
    return pil_to_tensor(image)


def noise(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def purified(p_value: torch.Tensor) -> Purified:
    """A result of which nothing but the p-values is looked at."""
    n = len(p_value)
    empty = torch.zeros(n, 1, 32, 32, dtype=torch.float64)
    found = Found(empty, empty.bool(), torch.zeros(n, dtype=torch.bool), p_value.double())
    return Purified(noise(n), noise(n), empty, torch.zeros(n, dtype=torch.long), 0.1, 0.5, found=found)


def test_what_is_flat_of_an_odd_shape_or_tiny_is_far_from_photographs():
    assert unlike_photographs(photographs() * 2 - 1).count == 0
    assert unlike_photographs(page().float()[None] / 127.5 - 1).count == 1
    assert unlike_photographs(torch.zeros(3, 3, 224, 224)).count == 3
    assert "long" in unlike_photographs(torch.rand(1, 3, 30, 600)).words
    assert "long" in unlike_photographs(torch.rand(1, 3, 600, 30)).words
    assert "side" in unlike_photographs(torch.rand(2, 3, 1, 1)).words


def test_flatness_counts_neighbours_that_are_equal():
    x = torch.zeros(1, 3, 4, 4)
    assert flatness(x) == 1
    x[..., 2:] = 1  # 4 of 12 pairs beside each other differ, none of 12 below
    assert flatness(x).item() == pytest.approx(20 / 24)
    assert flatness(noise(5)).max() < 0.05


@given(seen=st.integers(1, 400), rate=st.floats(0.01, 0.3), data=st.data())
def test_too_many_is_rarer_than_it_says_among_images_of_the_right_kind(seen, rate, data):
    flagged = data.draw(st.integers(0, seen))
    if too_many(flagged, seen, rate):
        terms = (math.comb(seen, k) * rate**k * (1 - rate) ** (seen - k) for k in range(flagged, seen + 1))
        assert sum(terms) <= UNLIKELY and flagged > 2 * rate * seen


def test_a_stream_of_flagged_images_warns_once_and_names_both_remedies(warnings):
    watch = Watch(far=True)
    result = purified(torch.tensor([0.5] * 15 + [0.001] * 5))
    for _ in range(10):
        assert watch.see(noise(20), result, 0.05) is result
    (message,) = warnings()
    assert "15 of 60 images" in message and "sampdetox calibrate" in message and "DetoxWrapper.fit" in message


def test_the_rate_that_was_asked_for_does_not_warn(warnings):
    watch = Watch(far=True)
    for _ in range(20):
        watch.count(noise(40), torch.tensor([0.5] * 38 + [0.001] * 2), 0.05)
    assert not warnings() and watch.seen == 800 and watch.flagged == 40


def test_few_images_are_not_judged_by_how_many_are_flagged(warnings):
    Watch(far=True).count(noise(FEWEST - 1), torch.zeros(FEWEST - 1), 0.05)
    assert not warnings()


def test_one_odd_image_among_many_does_not_warn(warnings):
    watch = Watch(far=True)
    batch = noise(20)
    batch[3] = 0
    watch.count(batch, torch.full((20,), 0.5), 0.05)
    assert not warnings()


def test_the_transform_warns_once_and_not_after_a_calibration(warnings):
    detox = SampDetox("bundled", seed=0)
    detox(photographs()[:1])
    assert not warnings()
    other = copy.deepcopy(pickle.loads(pickle.dumps(detox)))
    detox.with_normalisation([0.5], [0.5])  # shares the count
    for _ in range(2):
        detox(page())
    assert len(warnings()) == 1 and "text" in warnings()[0]
    other.calibrate(torch.rand(40, 3, 32, 32))
    other(page())
    assert len(warnings()) == 1


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 40), (1, 7, 2), (3, 20, 400), (3, 400, 20)])
@pytest.mark.parametrize("value", [0.0, 1.0, None])
def test_shapes_and_colours_that_no_photograph_has_come_back_finite(shape, value):
    detox = SampDetox("bundled", seed=0)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)) if value is None else torch.full(shape, value)
    told = detox.explain(x)
    assert told.image.shape == x.shape and told.found is not None
    for values in (told.image, told.stage1, told.found.probability, told.found.p_value, told.sigma_map):
        assert torch.isfinite(values).all()


def test_pages_and_drawings_come_back_finite():
    detox = SampDetox("bundled", seed=0)
    for image in (page(), page(48), torch.from_numpy(255 - page(100).numpy())):
        told = detox.explain(image)
        assert told.image.dtype == torch.uint8 and torch.isfinite(told.found.p_value).all()
