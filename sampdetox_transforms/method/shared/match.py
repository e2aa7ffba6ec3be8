"""Which image carries a known pattern, and the image without it.

A matched filter, whitened by what images usually are and by what this image is: <J, P> / <P, P> estimates how much of
the pattern there is, with a known error. A smooth picture in photographs and hidden bits, which coefficients do not
tell, are told by differences of neighbouring pixels. An opaque patch leaves nothing of the image, and is compared
itself.
"""

from statistics import NormalDist
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sampdetox_transforms.method.shared.differences import Differences, differences, weighted_differences
from sampdetox_transforms.method.shared.estimate import CLIPPED, OPAQUE, Shared
from sampdetox_transforms.method.shared.others import Others, Whitened, whiten
from sampdetox_transforms.method.shared.spectrum import smoothed, transformed

HALF = 0.5  # of the pattern, in its own unit: nearer to having it than to not having it

Way = Literal["own", "usual", "differences"]

# What images that carry the pattern typically have, at least; less is taken for so much. In differences they have .15
# to .5 of a smooth picture: its estimate has noise of its own there.
TYPICAL: dict[Way, float] = {"own": 0.4, "usual": 0.4, "differences": 0.1}

NEAR = 4 / 255  # a patch's pixels are so near to it, root mean square, where nothing else is known


class Filter(NamedTuple):
    """What a match is measured against.

    Attributes:
        mean: (c, h, w), the other images' mean.
        scale: (c, h, w), how large each coefficient of them usually is.
        way: how an image is compared: as coefficients by what is "usual", by the image's "own" spectrum as well, or as
            "differences" by their own variance.
        deviation: of the other images' match, in units of what this makes of noise.
        least: how much of the pattern an image must have; half of what those that carry it typically have.
        near: for a patch, from which distance on an image does not carry it.
    """

    mean: Float[Tensor, "c h w"]
    scale: Float[Tensor, "c h w"]
    way: Way
    deviation: float
    least: float
    near: float


def make_filter(
    shared: Shared, others: Others, *, way: Way = "own", typical: float = 1.0, reached: float = 0.0
) -> Filter:
    """What images without the pattern are like.

    Args:
        shared: the pattern.
        others: images that do not carry it.
        way: as in ``Filter``.
        typical: how much of the pattern images that carry it have, where less than 1 can be recognised.
        reached: how near to a patch images that carry it are.
    """
    least = HALF * min(1.0, max(typical, TYPICAL[way]))
    known = Filter(others.mean, others.scale, way, 1.0, least, max(NEAR, 3 * reached))
    if is_patch(shared):
        return known
    _, z = strengths_in(others.whitened, shared, known)
    return known._replace(deviation=max(1.0, float((z - z.median()).abs().median()) / 0.6745))


def is_patch(shared: Shared) -> bool:
    """Whether all of the pattern is opaque."""
    return bool(shared.opaque.any()) and not bool((shared.pattern * ~shared.opaque).any())


def strengths(
    images: Float[Tensor, "n c h w"], shared: Shared, known: Filter
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """How much of the pattern is in each image, 1 being all of it, and how many deviations of noise that is."""
    if known.way == "differences":
        return _in_differences(weighted_differences(images), shared, known)
    return strengths_in(whiten(images, known.mean, known.scale), shared, known)


def strengths_in(whitened: Whitened, shared: Shared, known: Filter) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """``strengths`` in images that are whitened already."""
    if known.way == "differences":
        return _in_differences(whitened.differences, shared, known)
    pattern = transformed(shared.change(known.mean)[None])[0] / known.scale
    product = (whitened.values * pattern).sum(dim=1).flatten(1)
    energy = pattern.square().sum(dim=0).flatten().expand_as(product)
    if known.way == "own":
        weight = whitened.own.flatten(1).square().reciprocal()
        product, energy = product * weight, energy * weight
    return _amount_and_z(product.sum(dim=1), energy.sum(dim=1), known)


def _in_differences(
    seen: Differences, shared: Shared, known: Filter
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    pattern = differences(shared.change(known.mean))
    return _amount_and_z(seen.weighted @ pattern, seen.weight @ pattern.square(), known)


def _amount_and_z(
    product: Float[Tensor, " n"], energy: Float[Tensor, " n"], known: Filter
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    energy = energy.clamp(min=1e-9)
    return product / energy, product / energy.sqrt() / known.deviation


def matching(
    images: Float[Tensor, "n c h w"], shared: Shared, known: Filter, *, false_alarm_rate: float
) -> Bool[Tensor, " n"]:
    """Which images carry the pattern: enough of it, and more than the rate's share of noise has."""
    if is_patch(shared):
        return patch_distance(images, shared) <= known.near
    amount, z = strengths(images, shared, known)
    return (amount > known.least) & (z > NormalDist().inv_cdf(1 - false_alarm_rate))


def patch_distance(images: Float[Tensor, "n c h w"], shared: Shared) -> Float[Tensor, " n"]:
    """How far the opaque pixels are from the patch: root mean square, in units of the image."""
    opaque = shared.opaque.expand_as(shared.pattern)
    return (images - shared.pattern)[:, opaque].square().mean(dim=1).sqrt()


def without(
    images: Float[Tensor, "n c h w"], shared: Shared
) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, "n 1 h w"]]:
    """The images before the pattern, (J - P) / (1 - a), and the opaque pixels, whose values are only spread into.

    A value that was cut off at 0 or 1 is known on one side; within that it is taken from the pixels around it.
    """
    opaque = shared.opaque.expand(len(images), -1, -1, -1)
    share = torch.where(shared.opaque, 1, 1 - shared.opacity)
    exact = (images - shared.pattern) / share
    high = (images >= 1 - CLIPPED) & (shared.pattern > shared.opacity + CLIPPED)
    low = (images <= CLIPPED) & (shared.pattern < -CLIPPED)
    unknown = high | low | opaque
    around = spread(exact.clamp(0, 1), ~unknown)
    around = torch.where(opaque, around, torch.where(high, around.maximum(exact), around.minimum(exact)))
    return torch.where(unknown, around, exact).clamp(0, 1), opaque


def spread(x: Float[Tensor, "n c h w"], known: Bool[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Unknown values from the known ones around them: means over windows, as wide as is needed to meet one."""
    weight = known.to(x)
    result, found = torch.where(known, x, 0.5), known
    side = 3
    while side < 4 * max(x.shape[-2:]) and not bool(found.all()):
        number = smoothed(weight, side)
        mean = smoothed(x * weight, side) / number.clamp(min=1e-9)
        new = ~found & (number > 1e-6)
        result, found = torch.where(new, mean, result), found | new
        side = 2 * side + 1
    return result


__all__ = [
    "OPAQUE",
    "Filter",
    "is_patch",
    "make_filter",
    "matching",
    "patch_distance",
    "spread",
    "strengths",
    "strengths_in",
    "without",
]
