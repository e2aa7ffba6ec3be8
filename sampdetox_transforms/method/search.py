"""Where a trigger is: from the logits of a ``Restorer`` to a mask, and to one number for the image."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def local_suspicion(logits: Float[Tensor, "b 1 h w"]) -> Float[Tensor, " b"]:
    """How clearly an image shows a local trigger: the mean of its three highest averages over 2x2 pixels.

    A pixel alone may stand out in a clean image; what a trigger covers does so together.
    """
    size = (min(2, logits.shape[-2]), min(2, logits.shape[-1]))
    pooled = functional.avg_pool2d(logits, size, stride=1).flatten(1)
    return pooled.topk(min(3, pooled.shape[1]), dim=1).values.mean(dim=1)


def hysteresis(logits: Float[Tensor, "b 1 h w"], high: float | Tensor, low: float) -> Bool[Tensor, "b 1 h w"]:
    """Pixels above ``low`` that are connected to one above ``high`` by such pixels (8 neighbours; Canny 1986, VI.C)."""
    candidates = logits > low
    mask = candidates & (logits > high)
    while True:
        wider = dilate(mask, 1) & candidates
        if torch.equal(wider, mask):
            return mask
        mask = wider


def dilate(mask: Bool[Tensor, "b 1 h w"], pixels: int) -> Bool[Tensor, "b 1 h w"]:
    """The mask grown by so many pixels in each of the 8 directions."""
    if pixels == 0:
        return mask
    return functional.max_pool2d(mask.float(), 2 * pixels + 1, stride=1, padding=pixels) > 0
