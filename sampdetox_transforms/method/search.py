"""Where a trigger is: from the logits of the search networks to a mask, and to one number for the image.

Also the size at which an image is searched: networks know triggers of a certain size in pixels, so that an image
much larger than those that they were trained on is shrunk before the look, by averages of areas.
"""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.method.samplers import Denoiser
from sampdetox_transforms.method.schedule import Schedule

ROUNDS = 100  # of spreading along rows and columns, see ``hysteresis``


class Answer(NamedTuple):
    """What the networks say of a batch.

    Attributes:
        local: (b, 1, h, w), logit that a pixel belongs to a trigger that covers a part of the image.
        dense: (b,), logit that the image carries a trigger that covers all of it.
        image: (b, c, h, w), the image as it would be without a trigger that covers all of it, if it carries one; None
            where the networks are asked for that separately.
    """

    local: Float[Tensor, "b 1 h w"]
    dense: Float[Tensor, " b"]
    image: Float[Tensor, "b c h w"] | None = None


class SearchNetworks(Protocol):
    """Networks that find triggers in images of some range of sizes, and how to read them.

    Attributes:
        name: under which a calibration is kept for them.
        as_is, side: images with a shorter side of at most ``as_is`` pixels are looked at as they are, others with a
            shorter side of ``side``.
        window: side of the square over which logits are averaged for the image's suspicion.
        certain, possible: logits; pixels above ``possible`` that are connected to one above ``certain`` are located.
        margins: for each look at an image, how many pixels of an image of 32 the mask is grown by; what is found
            although it was filled reaches beyond the mask.
        calls: how many networks a look asks.
        suspicious_again: whether more is taken out of a filled image only where its suspicion is an alarm still.
        finds_dense: whether what they say of dense triggers tells them from clean images well enough to be used.
    """

    name: str
    as_is: int
    side: int
    window: int
    certain: float
    possible: float
    margins: tuple[int, ...]
    calls: int
    finds_dense: bool
    suspicious_again: bool

    def look(self, x: Float[Tensor, "b c h w"]) -> Answer: ...

    def estimate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]: ...

    def fill(self, x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]: ...

    def denoiser(self, schedule: Schedule, level: float) -> Denoiser | None:
        """For these images, from this level down; None takes the one that was given to the algorithm."""
        ...


def local_suspicion(logits: Float[Tensor, "b 1 h w"], window: int = 2) -> Float[Tensor, " b"]:
    """How clearly an image shows a local trigger: the mean of its three highest averages over window^2 pixels.

    A pixel alone may stand out in a clean image; what a trigger covers does so together. The loss of the search
    networks uses this function, too.
    """
    size = (min(window, logits.shape[-2]), min(window, logits.shape[-1]))
    # without the plane of one channel, which PyTorch takes for channels_last and reads slowly
    pooled = functional.avg_pool2d(logits[:, 0], size, stride=1).flatten(1)
    return pooled.topk(min(3, pooled.shape[1]), dim=1).values.mean(dim=1)


def locate(logits: Float[Tensor, "b 1 h w"], networks: SearchNetworks, margin: int) -> Bool[Tensor, "b 1 h w"]:
    """Pixels of a trigger: possible and connected to a certain one, grown by the margin."""
    pixels = max(1, round(margin * min(logits.shape[-2:]) / 32)) if margin else 0
    return dilate(hysteresis(logits, networks.certain, networks.possible), pixels)


def hysteresis(logits: Float[Tensor, "b 1 h w"], high: float | Tensor, low: float) -> Bool[Tensor, "b 1 h w"]:
    """Pixels above ``low`` that are connected to one above ``high`` by such pixels (8 neighbours; Canny 1986, VI.C).

    After ``ROUNDS`` what is reached stays: a patch takes a few, only a maze takes more.
    """
    candidates = logits > low
    mask = candidates & (logits > high)
    for _ in range(ROUNDS):
        wider = dilate(mask, 1) & candidates
        for dim in (-1, -2):
            wider = along(wider, candidates, dim)
        if torch.equal(wider, mask):
            break
        mask = wider
    return mask


def along(mask: Bool[Tensor, "b 1 h w"], candidates: Bool[Tensor, "b 1 h w"], dim: int) -> Bool[Tensor, "b 1 h w"]:
    """The mask, a part of the candidates, spread at once over each run of candidates along a dimension.

    So that rounds are as many as a shape has turns, not as its pixels.
    """
    run = (~candidates).cumsum(dim)  # one number for a run and the pixel before it, which is no candidate
    size = list(mask.shape)
    size[dim] += 1
    reached = torch.zeros(size, dtype=torch.uint8, device=mask.device)
    reached = reached.scatter_reduce(dim, run, mask.to(torch.uint8), "amax")
    return (reached.gather(dim, run) > 0) & candidates


def dilate(mask: Bool[Tensor, "b 1 h w"], pixels: int) -> Bool[Tensor, "b 1 h w"]:
    """The mask grown by so many pixels in each of the 8 directions."""
    if pixels == 0:
        return mask
    return functional.max_pool2d(mask.float(), 2 * pixels + 1, stride=1, padding=pixels) > 0


def shrink(x: Float[Tensor, "b c y x"], networks: SearchNetworks) -> Float[Tensor, "b c h w"]:
    """Images as these networks are to see them: large ones shrunk, and, for networks that have a ``least``, small ones
    enlarged, since a trigger of a few pixels hides inside of the blocks that their first layer takes at once."""
    short, least = min(x.shape[-2:]), getattr(networks, "least", 0)
    if least <= short <= networks.as_is:
        return x
    side = least if short < least else networks.side
    size = [round(length * side / short) for length in x.shape[-2:]]
    if short < least:
        return functional.interpolate(x, size=size, mode="bicubic", align_corners=False).clamp(-1, 1)
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
    if restored is small:  # nothing was done
        return x0
    size, finer = list(x0.shape[-2:]), small.shape[-1] > x0.shape[-1]
    changed = x0 + functional.interpolate(restored - small, size=size, mode="bilinear", antialias=finer)
    if mask is not None:
        filled = functional.interpolate(restored, size=size, mode="bicubic", antialias=finer)
        changed = torch.where(enlarge_map(mask.to(x0), x0) > 0, filled, changed)
    return changed.clamp(-1, 1)


def enlarge_map(values: Float[Tensor, "b 1 h w"], like: Float[Tensor, "_ c y x"]) -> Float[Tensor, "b 1 y x"]:
    """A map of the looked-at image for the image's own pixels: each takes the nearest value, or the highest."""
    if values.shape[-2:] == like.shape[-2:]:
        return values
    if values.shape[-1] > like.shape[-1]:
        return functional.adaptive_max_pool2d(values, list(like.shape[-2:]))
    return functional.interpolate(values, size=list(like.shape[-2:]), mode="nearest-exact")
