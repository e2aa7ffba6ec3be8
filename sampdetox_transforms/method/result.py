"""What a purification did to a batch: the same fields for every algorithm."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Found:
    """What the search for triggers says of a batch (``Restore`` only).

    Attributes:
        probability: (b, 1, h, w), float64, that a pixel belongs to a trigger on a part of the image.
        mask: (b, 1, h, w), the pixels that were taken out and filled.
        dense: (b,), whether the image was answered as one with a trigger all over it.
        p_value: (b,), float64, the share of clean images that look at least as suspicious, of both kinds of trigger.
    """

    probability: Float[Tensor, "*b 1 h w"]
    mask: Bool[Tensor, "*b 1 h w"]
    dense: Bool[Tensor, "*b"]
    p_value: Float[Tensor, "*b"]


@dataclass(frozen=True)
class Retouched:
    """What else than noise, filling and the networks' estimate changed the images of a batch (``Restore`` only).

    Attributes:
        colour: (b,), float64, the share of the smooth colour that was taken away, in [0, 1].
        waves: (b,), whether a wave over the whole image was taken out.
        jittered: (b,), float64, the standard deviation in pixels by which pixels were displaced; 0 for none.
        resampled: (b,), float64, the factor that the result was shrunk by and enlarged again; 1 for nothing.
        sharpened: (b,), float64, the amount of the unsharp mask; 0 for none.
    """

    colour: Float[Tensor, "*b"]
    waves: Bool[Tensor, "*b"]
    jittered: Float[Tensor, "*b"]
    resampled: Float[Tensor, "*b"]
    sharpened: Float[Tensor, "*b"]


@dataclass(frozen=True)
class Purified:
    """What an algorithm did.

    Attributes:
        image: (b, c, h, w) in [-1, 1], the result.
        stage1: (b, c, h, w) in [-1, 1], the image after the global stage, and as a result where nothing is found.
        timestep_map: (b, 1, h, w), float64, the noise level of each pixel in the local stage; 0 where it had none.
        network_calls: (b,), how often each image went through a network.
        sigma1: noise std of the global stage, beside an image in [-1, 1]; times 127.5 in grey levels.
        sigma2: noise std of a pixel at level t2 in the local stage.
        difference_map: (b, 1, h, w), float64, how much the global stage changed each pixel, before it is brought to
            [0, 1]; None for an algorithm that has no such map.
        found: what the search found; None for an algorithm that does not search.
        lightened: (b, c, h, w), what was taken from the image before the noise of the global stage: image - start, in
            units of [-1, 1]; None for an algorithm that takes nothing.
        matched: (b,), whether a shared trigger was recognised and taken out first; None where none is known.
        retouched: what was done without a network; None for an algorithm that does nothing of the kind.
        level1: (b,), float64, the noise level of each image in the global stage; None where all have the same, that of
            ``sigma1``.
    """

    image: Float[Tensor, "b c h w"]
    stage1: Float[Tensor, "b c h w"]
    timestep_map: Float[Tensor, "b 1 h w"]
    network_calls: Int[Tensor, " b"]
    sigma1: float
    sigma2: float
    difference_map: Float[Tensor, "b 1 h w"] | None = None
    found: Found | None = None
    lightened: Float[Tensor, "b c h w"] | None = None
    matched: Bool[Tensor, " b"] | None = None
    retouched: Retouched | None = None
    level1: Float[Tensor, " b"] | None = None


def joined(parts: Sequence[Any]) -> Any:
    """Results of several batches as one: tensors one after the other, of all else the first."""
    first = parts[0]
    if len(parts) == 1:  # a large photograph is not copied
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, (Purified, Found, Retouched)):
        names = [field.name for field in fields(first)]
        return type(first)(**{name: joined([getattr(part, name) for part in parts]) for name in names})
    return first
