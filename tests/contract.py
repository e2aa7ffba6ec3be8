"""The contract of every transform here: an image comes back as the kind of thing it was, whatever stands beside it.

``check_transform(transform, image)`` asserts it for one image of any kind; ``IMAGES`` makes one of each kind. The
transform must give the same result for the same image each time: build it with a seed.
"""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

HEIGHT, WIDTH = 9, 12
# What one step of rounding makes of a difference of 1e-4, which a batch may make in float32.
TOLERANCES = {torch.uint8: 1, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-4, torch.float64: 1e-4}


def pixels(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random images in the value range of the dtype, the same each time."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (values * 255).round().to(dtype) if dtype == torch.uint8 else values.to(dtype)


def picture(channels: int) -> PIL.Image.Image:
    """A random PIL image, L or RGB."""
    return functional.to_pil_image(pixels(channels, HEIGHT, WIDTH, dtype=torch.uint8))


IMAGES: dict[str, Callable[[], Any]] = {
    "pil-L": lambda: picture(1),
    "pil-RGB": lambda: picture(3),
    "tv-image-uint8": lambda: tv_tensors.Image(pixels(3, HEIGHT, WIDTH, dtype=torch.uint8)),
    "tv-image-float32": lambda: tv_tensors.Image(pixels(1, HEIGHT, WIDTH)),
    "tv-video": lambda: tv_tensors.Video(pixels(2, 3, HEIGHT, WIDTH, dtype=torch.uint8)),
    "uint8": lambda: pixels(3, HEIGHT, WIDTH, dtype=torch.uint8),
    "float16": lambda: pixels(3, HEIGHT, WIDTH, dtype=torch.float16),
    "bfloat16": lambda: pixels(3, HEIGHT, WIDTH, dtype=torch.bfloat16),
    "float32": lambda: pixels(3, HEIGHT, WIDTH),
    "float64": lambda: pixels(3, HEIGHT, WIDTH, dtype=torch.float64),
    "grey": lambda: pixels(1, HEIGHT, WIDTH),
    "batch": lambda: pixels(2, 3, HEIGHT, WIDTH),
    "batch-of-grey": lambda: pixels(2, 1, HEIGHT, WIDTH, dtype=torch.uint8),
    "two-leading-dimensions": lambda: pixels(2, 2, 3, HEIGHT, WIDTH),
    "strided": lambda: pixels(HEIGHT, WIDTH, 3).permute(2, 0, 1),
}


def check_transform(
    transform: Callable[[Any], Any],
    image: Any,
    *,
    value_range: tuple[float, float] = (0.0, 1.0),
    batch_invariant: bool = True,
    rounding: float = 0.0,
) -> None:
    """Assert the whole contract for one image.

    Args:
        transform: a callable on images and on samples that hold one; the same for the same image each time.
        value_range: of float images, before and after.
        batch_invariant: whether an image's result must not depend on its batch.
        rounding: what a batch may change beside ``TOLERANCES``, on [0, 1]: where a network computes in bfloat16.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before, generator = copy.deepcopy(image), torch.get_rng_state()
        result = transform(image)
        assert_close(image, before, exact=True)
        assert_same_kind(result, image, value_range)
        assert not is_close(result, image), "the transform did nothing to the image"
        assert_close(transform(image), result)
        assert torch.equal(torch.get_rng_state(), generator), "a seeded transform drew from torch's generator"
        check_copies(transform, image, result)
        check_samples(transform, image, result)
        if batch_invariant:
            check_batch(transform, image, rounding=rounding)


def check_copies(transform: Callable, image: Any, result: Any) -> None:
    """Pickled, deep-copied and composed, it gives the same."""
    assert_close(pickle.loads(pickle.dumps(transform))(image), result)
    assert_close(copy.deepcopy(transform)(image), result)
    assert_close(v1.Compose([transform])(image), result)
    assert_close(v2.Compose([transform])(image), result)


def check_samples(transform: Callable, image: Any, result: Any) -> None:
    """In tuples, lists and dicts the image is transformed, and labels, masks and boxes come out as they went in."""
    mask = tv_tensors.Mask(torch.arange(HEIGHT * WIDTH, dtype=torch.uint8).reshape(1, HEIGHT, WIDTH) % 3)
    boxes = tv_tensors.BoundingBoxes([[1, 2, 5, 6]], format="XYXY", canvas_size=(HEIGHT, WIDTH))
    labels = torch.tensor([3, 1])
    samples = [
        (image, 7),
        (image, torch.tensor(7), "name.png", None),
        [image, labels, mask, boxes],
        (image, {"boxes": boxes, "labels": labels, "masks": mask}),
        {"image": image, "label": 7, "mask": mask, "boxes": boxes, "labels": labels},
    ]
    for sample in samples:
        out = v2.Compose([transform])(sample) if isinstance(sample, list) else transform(sample)
        assert type(out) is type(sample)
        items, came_in = (list(x.values()) if isinstance(x, dict) else list(x) for x in (out, sample))
        assert len(items) == len(came_in)
        assert_close(items[0], result)
        for item, given in zip(items[1:], came_in[1:], strict=True):
            assert_unchanged(item, given)


def assert_unchanged(item: Any, given: Any) -> None:
    """The same type and the same values."""
    assert type(item) is type(given)
    if isinstance(given, dict):
        assert list(item) == list(given)
        for name, value in given.items():
            assert_unchanged(item[name], value)
    elif isinstance(given, Tensor):
        assert item.dtype == given.dtype and torch.equal(item, given)
    else:
        assert item == given


def check_batch(transform: Callable, image: Any, *, rounding: float = 0.0) -> None:
    """An image comes out of a batch as it comes out alone, and as a tensor as it does as a picture."""
    if isinstance(image, PIL.Image.Image):
        as_tensor = functional.pil_to_tensor(image)
        assert_close(transform(as_tensor), functional.pil_to_tensor(transform(image)))
        return
    members = [image, image.flip(-1), image.flip(-2)]
    batch = torch.stack([member.as_subclass(Tensor) for member in members])
    together = transform(tv_tensors.wrap(batch, like=image) if isinstance(image, tv_tensors.TVTensor) else batch)
    for i, member in enumerate(members):
        alone = tv_tensors.wrap(member, like=image) if isinstance(image, tv_tensors.TVTensor) else member
        assert_close(together.as_subclass(Tensor)[i], transform(alone).as_subclass(Tensor), rounding=rounding)


def assert_same_kind(result: Any, image: Any, value_range: tuple[float, float] = (0.0, 1.0)) -> None:
    """Type, dtype, device, shape (or mode and size) and value range are the image's."""
    assert type(result) is type(image) and result is not image
    if isinstance(image, PIL.Image.Image):
        assert (result.mode, result.size) == (image.mode, image.size)
        return
    assert (result.dtype, result.device, result.shape) == (image.dtype, image.device, image.shape)
    if result.is_floating_point() and result.numel():
        low, high = float(result.amin()), float(result.amax())
        assert value_range[0] <= low and high <= value_range[1]


def assert_close(result: Any, expected: Any, *, exact: bool = False, rounding: float = 0.0) -> None:
    """Equal type, and equal values up to what a batch may change (``exact``: to the bit)."""
    assert type(result) is type(expected)
    close = is_close(result, expected, exact=exact, rounding=rounding)
    assert close, f"largest difference: {largest_difference(result, expected)}"


def is_close(result: Any, expected: Any, *, exact: bool = False, rounding: float = 0.0) -> bool:
    byte = isinstance(expected, PIL.Image.Image) or expected.dtype == torch.uint8
    tolerance = 0 if exact else TOLERANCES[torch.uint8 if byte else expected.dtype] + rounding * (255 if byte else 1)
    return largest_difference(result, expected) <= tolerance


def largest_difference(result: Any, expected: Any) -> float:
    """Between two images or tensors of one shape."""
    a, b = (functional.pil_to_tensor(x) if isinstance(x, PIL.Image.Image) else x for x in (result, expected))
    assert a.shape == b.shape and a.dtype == b.dtype
    difference = (a.as_subclass(Tensor).double() - b.as_subclass(Tensor).double()).abs()
    return float(difference.amax()) if difference.numel() else 0.0
