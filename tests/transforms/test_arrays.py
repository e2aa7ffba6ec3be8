"""Images as NumPy arrays, and as a column of a batch."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampdetox_transforms import DetoxArrays, DetoxBatches, SampDetox


@pytest.fixture(scope="module")
def detox(tiny) -> SampDetox:
    return SampDetox(tiny, seed=0, device="cpu", dtype=torch.float32)


def array(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return values if dtype == "uint8" else (values / 255).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 3), (2, 9, 8, 3), (0, 9, 8, 3), (9, 3), (3, 3, 3)])
def test_an_array_comes_back_as_the_tensor_does(detox, shape, dtype):
    image = array(*shape, dtype=dtype)
    before = image.copy()
    found = DetoxArrays(detox)(image)
    assert type(found) is np.ndarray and (found.shape, found.dtype) == (image.shape, image.dtype)
    channels = torch.from_numpy(image)[..., None] if len(shape) == 2 else torch.from_numpy(image)
    expected = detox(channels.movedim(-1, -3)).movedim(-3, -1).reshape(shape)
    assert np.array_equal(found, expected.numpy()) and np.array_equal(image, before)


def test_strides_and_write_protection_do_not_matter(detox):
    image = array(9, 8, 3)
    purify = DetoxArrays(detox)
    turned = image[:, ::-1]
    locked = image.copy()
    locked.setflags(write=False)
    assert np.array_equal(purify(turned), purify(turned.copy()))
    assert np.array_equal(purify(locked), purify(image))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ([[0]], TypeError, "must be NumPy arrays, got list"),
        (array(8, 8, 4), ValueError, r"\(n, h, w, c\) with c = 1 or 3, got \(8, 8, 4\)"),
        (array(3, 8, 8), ValueError, "Put the channels last"),
        (array(8), ValueError, r"got \(8,\)"),
        (array(8, 8, 3).astype("int64"), TypeError, "must be uint8, or floating-point"),
        (array(8, 8, 3).astype("float32"), ValueError, r"float images must be in \[0, 1\]"),
    ],
)
def test_what_is_no_image_is_refused(detox, image, error, message):
    with pytest.raises(error, match=message):
        DetoxArrays(detox)(image)


def test_what_is_no_sampdetox_is_refused():
    with pytest.raises(TypeError, match="detox must be a SampDetox, got str"):
        DetoxArrays("bundled")  # type: ignore


def test_an_explanation_is_that_of_the_transform(detox):
    image = array(9, 8, 3)
    told = DetoxArrays(detox).explain(image)
    assert torch.equal(told.image, detox(torch.from_numpy(image).movedim(-1, 0)))


# Columns


@given(st.lists(st.sampled_from([(9, 8, 3), (9, 8), (7, 8, 3), (9, 8, 1)]), max_size=4))
@settings(max_examples=6, deadline=None)
def test_a_column_of_images_of_any_sizes_is_purified_one_by_one_or_together(detox, shapes):
    images = np.empty(len(shapes), dtype=object)
    images[:] = [array(*shape, seed=i) for i, shape in enumerate(shapes)] or None
    labels = np.arange(len(shapes))
    found = DetoxBatches(detox, p_value="p")({"image": images, "label": labels})
    assert found["label"] is labels and len(found["image"]) == len(found["p"]) == len(shapes)
    for before, after, p_value in zip(images, found["image"], found["p"], strict=True):
        told = DetoxArrays(detox).explain(before)
        alone = DetoxArrays(detox)(before)
        assert after.shape == before.shape and after.dtype == np.uint8
        assert np.abs(after.astype(int) - alone).max() <= 1
        assert p_value == pytest.approx(told.found.p_value.item(), abs=1e-3)


@pytest.mark.parametrize("shape", [(4, 9, 8, 3), (4, 9, 8), (4, 9, 3), (0, 9, 8, 3)])
def test_a_column_of_one_size_is_one_array(detox, shape):
    images = array(*shape)
    images.setflags(write=False)  # as Ray hands them over
    found = DetoxBatches(detox, column="x")({"x": images})
    assert set(found) == {"x"} and found["x"].shape == shape and found["x"].dtype == np.uint8
    purify = DetoxArrays(detox)
    assert all(np.abs(a.astype(int) - purify(b)).max() <= 1 for a, b in zip(found["x"], images, strict=True))


def test_it_builds_the_transform_from_settings(tiny, detox):
    images = array(2, 9, 8, 3)
    batches = DetoxBatches(str(tiny), seed=0, device="cpu", dtype=torch.float32)
    assert np.array_equal(batches({"image": images})["image"], DetoxArrays(detox)(images))
    again = pickle.loads(pickle.dumps(batches))
    assert np.array_equal(again({"image": images})["image"], DetoxArrays(detox)(images))


def test_what_does_not_fit_is_refused(tiny, detox):
    with pytest.raises(KeyError, match=r"must have the column 'image', got \['label', 'x'\]"):
        DetoxBatches(detox)({"x": array(2, 9, 8, 3), "label": np.arange(2)})
    with pytest.raises(ValueError, match="p_value needs a preset that searches"):
        DetoxBatches(str(tiny), preset="ddim", device="cpu", p_value="p")
