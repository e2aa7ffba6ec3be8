"""Differences of neighbouring pixels, each by the energy of those around it: they show a picture that is mixed into
images, and that the purifier leaves there.

An image is flat nearly everywhere, and there even a faint picture decides. Where each difference is a normal number
whose variance is that of its neighbourhood (a Gaussian scale mixture, Portilla et al. 2003), what a pattern adds is
told best by weights of one by that variance. Brightness and the two opponent colours have their own.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.method.shared.spectrum import at_most, planes, smoothed, transformed, unit

# Half periods, along both sides together, from which on images are compared
LOW = 4

# Pixels a side at which images are compared at most, pixels a side of a neighbourhood, and what is added to its
# variance: of noise, which differs from pixel to pixel by chance, and of fine detail that a pattern has itself
SIDE, WINDOW, LEAST = 56, 3, (3 / 255) ** 2


class Differences(NamedTuple):
    """Of each image along rows and along columns, (n, d).

    Attributes:
        weighted: differences by the variance around them.
        weight: one by that variance.
    """

    weighted: Float[Tensor, "n d"]
    weight: Float[Tensor, "n d"]


def image_view(images: Float[Tensor, "n c h w"]) -> dict[str, Float[Tensor, "n d"]]:
    """The images themselves, for ``agreements``: weighted differences, each of length 1.

    As cosine coefficients, which hardly depend on each other within one image, while neighbouring pixels do. The lowest
    are left out: blue skies have the same ones.
    """
    parts = []
    for part in _differences(images):
        rows, columns = (torch.arange(size, device=part.device) for size in part.shape[-2:])
        parts.append(transformed(part / _variance(part)).masked_fill(rows[:, None] + columns < LOW, 0).flatten(1))
    return {"image": unit(torch.cat(parts, dim=1))}


def weighted_differences(images: Float[Tensor, "n c h w"]) -> Differences:
    """Those of images of at most ``SIDE`` pixels a side; larger ones are shrunk."""
    parts = _differences(images)
    weight = torch.cat([_variance(part).reciprocal().flatten(1) for part in parts], dim=1)
    return Differences(torch.cat([part.flatten(1) for part in parts], dim=1) * weight, weight)


def differences(pattern: Float[Tensor, "c h w"]) -> Float[Tensor, " d"]:
    """Those of a pattern, as they are."""
    return torch.cat([part.flatten() for part in _differences(pattern[None])])


def _differences(x: Float[Tensor, "n c y x"]) -> list[Tensor]:
    """Along rows and along columns; an image of one row has no neighbours there."""
    small = planes(at_most(x, SIDE))
    return [small.diff(dim=dim) for dim in (-1, -2) if small.shape[dim] > 1]


def _variance(part: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    return smoothed(part.square(), WINDOW) + LEAST
