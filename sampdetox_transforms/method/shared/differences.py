"""Differences of neighbouring pixels, each by the energy of those around it: they show a faint pattern over all of an
image, and a picture that is mixed in and that the purifier leaves there.

An image is flat nearly everywhere, and there even a faint picture decides. Where each difference is a normal number
whose variance is that of its neighbourhood (a Gaussian scale mixture, Portilla et al. 2003), what a pattern adds is
told best by weights of one by that variance. Brightness and the two opponent colours have their own.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.method.shared.spectrum import at_most, planes, smoothed, transformed, unit

# Half periods, along both sides together, from which on images are compared: blue skies have the lowest in common
LOW = 4

# Beside what is usual of each coefficient: this share of their mean, so that rare ones are not all that counts
USUAL = 0.3

# Pixels a side at which images are compared at most, pixels a side of a neighbourhood, and what is added to its
# variance: of noise, which differs from pixel to pixel by chance, and of fine detail that a pattern has itself
SIDE, WINDOW, LEAST = 56, 3, (3 / 255) ** 2

REWEIGHTED = 3  # times that a mean of differences is worked out

AT_ONCE = 8  # images: those of 224 pixels stay in the cache then


class Differences(NamedTuple):
    """Of each image along rows and along columns, (n, d).

    Attributes:
        weighted: differences by the variance around them.
        weight: one by that variance.
    """

    weighted: Float[Tensor, "n d"]
    weight: Float[Tensor, "n d"]


def difference_views(
    residuals: Float[Tensor, "n c y x"], images: Float[Tensor, "n c h w"]
) -> dict[str, Float[Tensor, "n d"]]:
    """What a purifier took, and the images themselves, for ``agreements``: weighted differences, each of length 1."""
    return {"differences": _view(residuals, 0), "images": _view(images, LOW)}


def _view(x: Float[Tensor, "n c h w"], low: int) -> Float[Tensor, "n d"]:
    """Each by what is usual, as cosine coefficients, which hardly depend on each other within one image, while
    neighbouring pixels do."""
    parts = []
    for part in _differences(x):
        rows, columns = (torch.arange(size, device=part.device) for size in part.shape[-2:])
        parts.append(transformed(part / _variance(part)).masked_fill(rows[:, None] + columns < low, 0).flatten(1))
    vectors = unit(torch.cat([x.new_zeros(len(x), 1), *parts], dim=1))  # one pixel has no neighbour
    scale = vectors.square().mean(dim=0).sqrt()
    return unit(vectors / (scale + USUAL * scale.mean()).clamp(min=1e-9))


def weighted_differences(images: Float[Tensor, "n c h w"]) -> Differences:
    """Those of images of at most ``SIDE`` pixels a side; larger ones are shrunk."""
    parts = _differences(images)
    weight = torch.cat([_variance(part).reciprocal().flatten(1) for part in parts], dim=1)
    return Differences(torch.cat([part.flatten(1) for part in parts], dim=1) * weight, weight)


def differences(pattern: Float[Tensor, "c h w"]) -> Float[Tensor, " d"]:
    """Those of a pattern, as they are."""
    return torch.cat([part.flatten() for part in _differences(pattern[None])])


def mean_differences(
    images: Float[Tensor, "m c h w"],
) -> tuple[Float[Tensor, "c h v"], Float[Tensor, "c g w"]]:
    """Weighted means over images, in rows (v = w - 1) and in columns (g = h - 1), at the images' own size.

    Iteratively reweighted least squares: the variance around a difference is that of what is left of it beside the
    mean so far, so that the edges of what all images share do not count as theirs.
    """
    means = []
    for dim in (-1, -2):
        part = planes(images).diff(dim=dim)
        mean = part.new_zeros(part.shape[1:])
        for _ in range(REWEIGHTED):
            total = weights = torch.zeros_like(mean)
            for some in part.split(AT_ONCE):
                weight = _variance(some - mean).reciprocal_()
                weights, total = weights + weight.sum(dim=0), total + (weight * some).sum(dim=0)
            mean = total / weights
        means.append(planes(mean[None], back=True)[0])
    return means[0], means[1]


def _differences(x: Float[Tensor, "n c y x"]) -> list[Tensor]:
    """Along rows and along columns; an image of one row has no neighbours there."""
    small = planes(at_most(x, SIDE))
    return [small.diff(dim=dim) for dim in (-1, -2) if small.shape[dim] > 1]


def _variance(part: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    return smoothed(part.square(), WINDOW).add_(LEAST)
