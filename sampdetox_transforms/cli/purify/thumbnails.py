"""Small pictures for a report: the original, where it was changed, and the result, as PNG files."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sampdetox_transforms.transforms.explanation import Explanation

SIDE = 256  # pixels: larger pictures are shown smaller

LEAST_SIDE = 128  # pixels: smaller pictures are shown larger, by a whole factor

MARK = (255, 0, 255)  # of masked pixels


def draw(pixels: "Tensor", explained: "Explanation") -> tuple[bytes, bytes, bytes]:
    """PNG files of at most ``SIDE`` pixels: the original, the mask over it (else the map), the result."""
    before, after = shrink(as_bytes(pixels)), shrink(as_bytes(explained.image))
    if explained.found is not None:
        where = overlay(before, explained.found.mask)
    else:
        assert explained.difference_map is not None  # what does not search has a map
        where = stretch(shrink(explained.difference_map))
    return encode(before), encode(where), encode(after)


def as_bytes(pixels: "Tensor") -> "Tensor":
    """(c, h, w), uint8 or floats in [0, 1] -> uint8."""
    import torch

    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8) if pixels.is_floating_point() else pixels


def small_size(height: int, width: int) -> tuple[int, int]:
    """Height and width with at most ``SIDE`` pixels, in proportion, 1 or more."""
    factor = min(1, SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def shrink(pixels: "Tensor") -> "Tensor":
    """(c, h, w) with at most ``SIDE`` pixels in height and width, each the mean of its area; the dtype is kept."""
    from torch.nn.functional import adaptive_avg_pool2d

    size = small_size(*pixels.shape[-2:])
    if size == pixels.shape[-2:]:
        return pixels
    mean = adaptive_avg_pool2d(pixels.float(), size)
    return (mean if pixels.is_floating_point() else mean.round()).to(pixels.dtype)


def stretch(values: "Tensor") -> "Tensor":
    """Numbers (1, h, w) -> uint8 with the largest as white, and 0, or what lies below it, as black."""
    import torch

    low, high = min(0.0, values.amin().item()), values.amax().item()
    return ((values - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8)


def overlay(small: "Tensor", mask: "Tensor") -> "Tensor":
    """A small picture, uint8, as (3, h, w) with the mask (1, h, w), of any size, marked; no masked pixel gets lost."""
    import torch
    from torch.nn.functional import adaptive_max_pool2d

    marked = adaptive_max_pool2d(mask.float(), small.shape[-2:]) > 0
    mixed = 0.4 * small.float() + 0.6 * torch.tensor(MARK, dtype=torch.float32, device=small.device)[:, None, None]
    return torch.where(marked, mixed.round().to(torch.uint8), small)


def encode(pixels: "Tensor") -> bytes:
    """(1 or 3, h, w), uint8, as a PNG file."""
    from PIL import Image

    x = pixels.detach().cpu()
    file = io.BytesIO()
    Image.fromarray((x[0] if len(x) == 1 else x.movedim(0, -1).contiguous()).numpy()).save(file, "PNG")
    return file.getvalue()


def shown_size(png: bytes) -> tuple[int, int]:
    """Width and height at which a page shows a PNG file: small ones larger by a whole factor, pixel by pixel."""
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))  # where PNG has them
    factor = max(1, -(-LEAST_SIDE // max(width, height)))
    return width * factor, height * factor
