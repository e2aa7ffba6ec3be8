"""Images as they come: normalised ones, and those that are refused, every one before a network runs."""

import numpy as np
import PIL.Image
import pytest
import torch
from contract import HEIGHT, WIDTH, assert_same_kind, picture, pixels
from torch import Tensor
from torchvision import tv_tensors

from sampdetox_transforms import SampDetox

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def detox(tiny) -> SampDetox:
    return SampDetox(tiny, t2=40, seed=0)


def normalise(x: Tensor, mean=MEAN, std=STD) -> Tensor:
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


# Normalised images


def test_mean_and_std_are_undone_and_redone(tiny):
    images = pixels(2, 3, HEIGHT, WIDTH)
    plain, behind = SampDetox(tiny, seed=0), SampDetox(tiny, seed=0, mean=list(MEAN), std=np.array(STD))
    torch.testing.assert_close(behind(normalise(images)), normalise(plain(images)), rtol=0, atol=1e-3)
    told = behind.explain(normalise(images))
    torch.testing.assert_close(told.stage1, normalise(plain.explain(images).stage1), rtol=0, atol=1e-3)
    grey = SampDetox(tiny, seed=0, mean=0.5, std=0.5)
    torch.testing.assert_close(grey(images * 2 - 1), plain(images) * 2 - 1, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (picture(3), TypeError, "with mean and std images must be float tensors, got PIL"),
        (pixels(3, 4, 4, dtype=torch.uint8), TypeError, "must be float tensors, got uint8"),
        (pixels(1, 4, 4), ValueError, "one value, or one a channel, got 3 for 1 channels"),
        (pixels(3, 4, 4) * 255, ValueError, "Do mean and std fit the data"),
        (pixels(3, 4, 4) * float("nan"), ValueError, "NaN"),
    ],
)
def test_images_that_mean_and_std_do_not_fit_are_refused(forbidden, image, kind, message):
    with pytest.raises(kind, match=message):
        SampDetox(forbidden, mean=MEAN, std=STD)(image)


# Refusals

POISONED = {name: pixels(3, 4, 4) for name in ("nan", "inf", "-inf")}
for name, values in POISONED.items():
    values[1, 2, 3] = float(name)


@pytest.mark.parametrize(
    ("sample", "kind", "parts"),
    [
        (pixels(3, 4, 4) + 0.5, ValueError, ("[0, 1]", "got values in [", "Normalize", "mean=")),
        (pixels(3, 4, 4) - 0.5, ValueError, ("[0, 1]", "got values in [-0.", "Normalize")),
        (pixels(3, 4, 4) * 255, ValueError, ("[0, 1]", "0...255", "divide by 255")),
        (POISONED["nan"], ValueError, ("finite", "got NaN")),
        (POISONED["nan"].bfloat16(), ValueError, ("finite", "got NaN")),
        (POISONED["inf"], ValueError, ("[0, 1]", "inf]")),
        (POISONED["-inf"].half(), ValueError, ("[0, 1]", "[-inf")),
        (tv_tensors.Image(POISONED["nan"]), ValueError, ("finite",)),
        (
            (torch.tensor([3, 1]), pixels(2, 3, 4, 4)),
            ValueError,
            ("(..., c, h, w)", "got (2,)", "labels", "image first"),
        ),
        ((torch.tensor(3), pixels(3, 4, 4)), ValueError, ("(..., c, h, w)", "got ()", "Put the image first")),
        ((torch.tensor(3), pixels(1, 4, 4)), ValueError, ("(..., c, h, w)", "got ()", "Put the image first")),
        (pixels(4, 4), ValueError, ("(..., c, h, w)", "got (4, 4)", "image[None]")),
        (pixels(4, 8, 8), ValueError, ("1 or 3 channels", "(4, 8, 8)", "alpha")),
        (pixels(2, 2, 8, 8), ValueError, ("1 or 3 channels", "(2, 2, 8, 8)")),
        (pixels(8, 8, 3), ValueError, ("1 or 3 channels", "(8, 8, 3)", "Permute (h, w, c)")),
        (pixels(3, 0, 4), ValueError, ("a pixel at least", "(3, 0, 4)")),
        (pixels(3, 4, 4).long(), TypeError, ("uint8, or floating-point", "torch.int64", "v2.ToDtype")),
        (pixels(3, 4, 4).int(), TypeError, ("torch.int32",)),
        (pixels(3, 4, 4).bool(), TypeError, ("torch.bool",)),
        (pixels(3, 4, 4).cfloat(), TypeError, ("torch.complex64",)),
        (pixels(3, 4, 4).to(torch.uint16), TypeError, ("torch.uint16",)),
        ("cat.png", TypeError, ("must hold an image", "got str", "v2.ToImage")),
        (np.zeros((4, 4, 3), np.uint8), TypeError, ("must hold an image", "got ndarray", "v2.ToImage")),
        (("cat.png", 3, np.zeros(2)), TypeError, ("got int, ndarray, str",)),
        ({"label": 3}, TypeError, ("must hold an image", "got int")),
        ([], TypeError, ("must hold an image",)),
        (tv_tensors.Mask(torch.zeros(1, 4, 4)), TypeError, ("must hold an image", "got Mask")),
        (
            (pixels(3, 4, 4), pixels(3, 4, 4)),
            ValueError,
            ("first pure tensor", "(3, 4, 4)", "Stack", "tv_tensors.Image"),
        ),
        ([tv_tensors.Image(pixels(3, 4, 4)), tv_tensors.Image(pixels(2, 4, 4))], ValueError, ("1 or 3 channels",)),
        (PIL.Image.new("RGBA", (4, 4)), ValueError, ("'L', 'RGB'", "got 'RGBA'", "convert('RGB')", "alpha")),
        (PIL.Image.new("P", (4, 4)), ValueError, ("got 'P'",)),
        (PIL.Image.new("I;16", (4, 4)), ValueError, ("got 'I;16'",)),
        (PIL.Image.new("CMYK", (4, 4)), ValueError, ("got 'CMYK'",)),
        (PIL.Image.new("RGB", (4, 0)), ValueError, ("a pixel at least", "got 4x0")),
    ],
)
def test_sample_that_cannot_be_purified_is_refused(forbidden, sample, kind, parts):
    detox = SampDetox(forbidden)
    with pytest.raises(kind) as caught:
        detox(sample)
    for part in parts:
        assert part in str(caught.value)


def test_rounding_of_short_floats_is_no_reason_to_refuse(detox):
    assert_same_kind(detox(pixels(3, 4, 4).half()), pixels(3, 4, 4).half())
    nearly = pixels(3, 4, 4).clamp(0, 1)
    nearly[0, 0, 0], nearly[0, 0, 1] = 1 + 1e-6, -1e-6
    assert_same_kind(detox(nearly), nearly)
    normalised = normalise(torch.tensor([0.0, 1.0]).expand(3, 2, 2)).half()
    detox.with_normalisation(MEAN, STD)(normalised)


# Tensors whose pixels cannot be read


def masked() -> Tensor:
    return torch.masked.masked_tensor(pixels(3, 4, 4), torch.ones(3, 4, 4, dtype=torch.bool))


STRANGE = {
    "float8": (lambda: pixels(3, 4, 4).to(torch.float8_e4m3fn), "torch.float8_e4m3fn", "v2.ToDtype"),
    "float8 of another kind": (lambda: pixels(3, 4, 4).to(torch.float8_e5m2), "torch.float8_e5m2", "v2.ToDtype"),
    "sparse": (lambda: pixels(3, 4, 4).to_sparse(), "torch.sparse_coo", "to_dense()"),
    "sparse rows": (lambda: pixels(3, 4, 4).to_sparse_csr(), "torch.sparse_csr", "to_dense()"),
    "nested": (lambda: torch.nested.nested_tensor([pixels(3, 4, 4), pixels(3, 5, 4)]), "a nested tensor", "one size"),
    "jagged": (
        lambda: torch.nested.nested_tensor([pixels(3, 4, 4), pixels(2, 4, 4)], layout=torch.jagged),
        "a nested tensor",
        "one size",
    ),
    "masked": (masked, "a masked tensor", "to_tensor(0.0)"),
    "quantised": (
        lambda: torch.quantize_per_tensor(pixels(3, 4, 4), 1 / 255, 0, torch.quint8),
        "a quantised tensor",
        "dequantize()",
    ),
    "meta": (lambda: torch.zeros(3, 4, 4, device="meta"), "a meta tensor", "real device"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_whose_pixels_cannot_be_read_are_refused(forbidden, kind):
    make, found, remedy = STRANGE[kind]
    detox = SampDetox(forbidden)
    for call in (detox, detox.explain, lambda x: detox((x, 3)), lambda x: detox.calibrate([x])):
        with pytest.raises(TypeError, match="image tensors must be") as caught:
            call(make())
        assert found in str(caught.value) and remedy in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", STRANGE)
def test_beside_an_image_they_pass_or_are_refused_as_a_second_image(detox, kind):
    other = STRANGE[kind][0]()
    if kind in ("nested", "jagged", "quantised"):  # has no shape, or is no float
        _, out = detox((pixels(3, 4, 4), other))
        assert out is other
        return
    with pytest.raises(ValueError, match="only the first pure tensor of a sample is taken for an image"):
        detox((pixels(3, 4, 4), other))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (2, 0, 1, 8, 8)])
def test_an_empty_grey_batch_with_three_means_is_refused(tiny, tiny_grey, channels, shape):
    detox = SampDetox(tiny if channels == 3 else tiny_grey, mean=MEAN, std=STD)
    for call in (detox, detox.explain):
        with pytest.raises(ValueError, match=r"one value, or one a channel, got 3 for 1 channels\. Give as many"):
            call(torch.zeros(shape))


def test_an_empty_grey_batch_with_one_mean_stays_grey(tiny):
    assert SampDetox(tiny, mean=0.5, std=0.5)(torch.zeros(0, 1, 8, 8)).shape == (0, 1, 8, 8)
