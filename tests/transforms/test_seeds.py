"""A seed decides the result: whatever kind of whole number it is, and whatever dtype torch or the image has."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from contract import pixels

from sampdetox_transforms import SampDetox
from sampdetox_transforms.method.noise import SeededNoise


@pytest.fixture
def default_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_a_seed_of_any_kind_of_whole_number(tiny, kind):
    image = pixels(3, 9, 12)
    assert torch.equal(SampDetox(tiny, seed=kind(3))(image), SampDetox(tiny, seed=3)(image))


def test_a_noise_seed_of_any_kind_of_whole_number():
    x = pixels(2, 3, 4, 5)
    assert torch.equal(SeededNoise(x, np.int64(3))(x), SeededNoise(x, 3)(x))


@pytest.mark.parametrize("seed", [1.5, "3", True, np.float64(3), np.bool_(True), torch.tensor(1)])
def test_other_seeds_are_refused(tiny, seed):
    with pytest.raises((TypeError, ValueError), match=r"seed must be a whole number or None, got .*fresh noise"):
        SampDetox(tiny, seed=seed)


def test_torchs_default_dtype_changes_no_noise(default_float64):
    x = pixels(2, 3, 4, 5)
    assert x.dtype == torch.float32
    drawn = SeededNoise(x, 3)(x)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(drawn, SeededNoise(x, 3)(x))


@pytest.mark.parametrize("preset", ["restore", "ddim"])
def test_torchs_default_dtype_changes_no_result(tiny, default_float64, preset):
    image = pixels(3, 9, 12, dtype=torch.uint8)
    result = SampDetox(tiny, preset=preset, seed=3, dtype=torch.float32)(image)
    torch.set_default_dtype(torch.float32)
    expected = SampDetox(tiny, preset=preset, seed=3, dtype=torch.float32)(image)
    assert int((result.int() - expected.int()).abs().max()) <= 1


@pytest.mark.parametrize("preset", ["restore", "ddim"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_copies_of_an_image_in_other_dtypes_get_the_same_noise_and_result(tiny, preset, dtype):
    grey_levels = pixels(3, 9, 12, dtype=torch.uint8)
    image = grey_levels / 255
    copy = grey_levels if dtype == torch.uint8 else image.to(dtype)
    detox = SampDetox(tiny, preset=preset, seed=3)
    result, expected = detox(copy), detox(image)
    result = result / 255 if dtype == torch.uint8 else result
    tolerance = {torch.uint8: 0.51 / 255, torch.float16: 5e-3, torch.float64: 1e-5}[dtype]
    assert float((result.double() - expected.double()).abs().max()) <= tolerance


def test_threads_share_one_transform(tiny):
    """Calls keep no state: images that are purified at the same time come out as each does alone."""
    detox = SampDetox(tiny, seed=0)
    images = [pixels(3, 8, 8 + i % 3, seed=i) for i in range(12)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(detox, images))
    for one, image in zip(found, images, strict=True):
        torch.testing.assert_close(one, detox(image), rtol=0, atol=1e-5)
