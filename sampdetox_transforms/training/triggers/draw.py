"""Random numbers and fields for drawing triggers."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional

Images = Float[Tensor, "n c h w"]

Every = Float[Tensor, "m c h w"]  # the batch that the images concerned are a part of

Region = Float[Tensor, "n 1 h w"]


# Functions of (the images concerned, all images, generator), each with its share.
Table = Sequence[tuple[Callable, float]]


def mixture(functions: Table, images: Images, generator: Generator) -> Tensor:
    """For each image the result of one of the functions, drawn with its weight."""
    kind, result = choose(len(images), [weight for _, weight in functions], images, generator), None
    for k, (function, _) in enumerate(functions):
        index = (kind == k).nonzero()[:, 0]
        if len(index):
            part = function(images[index], images, generator)
            result = images.new_zeros((len(images), *part.shape[1:])) if result is None else result
            result[index] = part
    assert result is not None
    return result


def uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    """Uniform numbers in [low, high) of the dtype and device of ``like``."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)


def choose(n: int, weights: Sequence[float], like: Tensor, generator: Generator) -> Tensor:
    """(n,) indices drawn with the given weights."""
    return torch.multinomial(torch.tensor(weights, device=like.device), n, replacement=True, generator=generator)


def pixel_grid(images: Images) -> tuple[Tensor, Tensor, float]:
    """Row and column numbers, (h, 1) and (1, w), and the pixels of this image to one of 32."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device, dtype=images.dtype)[:, None]
    columns = torch.arange(width, device=images.device, dtype=images.dtype)
    return rows, columns[None], min(height, width) / 32


# Dense triggers: (the images concerned, all images, generator) -> images with the trigger ----------------------------


def smooth_noise(images: Images, channels: int, generator: Generator, low: int = 2, high: int = 7) -> Tensor:
    """Random values on a coarse grid of low to high points a side, interpolated, each plane spread over [0, 1]."""
    size = int(torch.randint(low, high + 1, (1,), generator=generator, device=images.device))
    coarse = uniform((len(images), channels, size, size), 0, 1, images, generator)
    fine = functional.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=True)
    lowest, highest = fine.amin(dim=(2, 3), keepdim=True), fine.amax(dim=(2, 3), keepdim=True)
    return (fine - lowest) / (highest - lowest).clamp(min=1e-6)
