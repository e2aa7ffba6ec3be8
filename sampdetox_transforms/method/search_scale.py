"""The size at which triggers are looked for: the network that finds them was trained on 32 pixels.

A larger image is shrunk before the search, so that a trigger has the size in pixels that the network knows for its
share of the image, and so that clean images look to it like those that its thresholds come from.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

SIDE, LARGEST = 32, 48


def shrink(x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c h w"]:
    """Images with a shorter side above ``LARGEST`` at ``SIDE``, by averages of areas; smaller ones as they are."""
    short = min(x.shape[-2:])
    if short <= LARGEST:
        return x
    size = [round(side * SIDE / short) for side in x.shape[-2:]]
    return functional.interpolate(x, size=size, mode="area")


def enlarge(
    x0: Float[Tensor, "b c y x"],
    small: Float[Tensor, "b c h w"],
    restored: Float[Tensor, "b c h w"],
    mask: Bool[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, "b c y x"]:
    """What was done to ``small = shrink(x0)`` done to ``x0``: masked pixels are replaced, others get the difference."""
    if small.shape == x0.shape:
        return restored
    size = list(x0.shape[-2:])
    changed = x0 + functional.interpolate(restored - small, size=size, mode="bilinear")
    if mask is not None:
        filled = functional.interpolate(restored, size=size, mode="bicubic")
        changed = torch.where(functional.interpolate(mask.to(x0), size=size, mode="nearest-exact") > 0, filled, changed)
    return changed.clamp(-1, 1)


def enlarge_map(values: Float[Tensor, "b 1 h w"], like: Float[Tensor, "n c y x"]) -> Float[Tensor, "b 1 y x"]:
    """A map of the shrunk image for the pixels of the image itself: each takes the nearest value."""
    if values.shape[-2:] == like.shape[-2:]:
        return values
    return functional.interpolate(values, size=list(like.shape[-2:]), mode="nearest-exact")
