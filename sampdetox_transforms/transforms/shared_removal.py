"""Shared triggers in use: in each image that carries one it is taken out before anything else looks at the image."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import PIL.Image
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sampdetox_transforms.method.result import Purified
from sampdetox_transforms.transforms.shared_images import Fill, fill_by
from sampdetox_transforms.transforms.shared_trigger import SharedTrigger

Triggers = tuple[SharedTrigger, ...]


class TakenOut(NamedTuple):
    """Images in the core's form without the triggers that they carried, which these are, and calls of a network."""

    x: Float[Tensor, "n c h w"]
    matched: Bool[Tensor, " n"]
    calls: Int[Tensor, " n"]


def as_triggers(trigger: Any) -> Triggers:
    """A ``SharedTrigger``, its file, or several of either; none for None.

    Raises:
        TypeError: anything else.
        ValueError: triggers for different images.
        WeightsFileError: a file that cannot be read.
    """
    if trigger is None:
        return ()
    several = trigger if isinstance(trigger, Sequence) and not isinstance(trigger, str) else [trigger]
    for each in several:
        if not isinstance(each, SharedTrigger | str | os.PathLike):
            raise TypeError(
                f"trigger must be a SharedTrigger or its file, or several of these, got {type(each).__name__}. "
                "Use recover_trigger(images, detox)."
            )
    found = [each if isinstance(each, SharedTrigger) else SharedTrigger.load(each) for each in several]
    shapes = {tuple(each.pattern.shape) for each in found}
    if len(shapes) > 1:
        raise ValueError(
            f"triggers must be for images of one shape, got {sorted(shapes)}. Build one SampDetox for each size."
        )
    return tuple(replace(each, fill=None) for each in found)  # filled by who uses it


def check_shapes(triggers: Triggers, images: Sequence[Any]) -> None:
    """Raise ValueError for an image of another shape than the triggers'."""
    for image in images if triggers else ():
        if isinstance(image, PIL.Image.Image):
            shape = (len(image.getbands()), image.height, image.width)
        else:
            shape = tuple(image.shape[-3:])
        if shape != (own := tuple(triggers[0].pattern.shape)):
            raise ValueError(
                f"images must have the shape of the trigger that is to be taken out, {own}, got {shape}. Recover a "
                "trigger from images of this shape, or purify these without one."
            )


def without_triggers(
    triggers: Triggers, x0: Float[Tensor, "n c h w"], detox: Any, run: Callable[[Tensor, Tensor], Purified]
) -> Purified:
    """What ``run`` makes of the images behind the removal, and of which they are; the removal told with it."""
    taken = take_out(triggers, x0, fill_by(detox))
    result = run(taken.x, taken.matched)
    lightened = x0 - taken.x if result.lightened is None else x0 - taken.x + result.lightened
    return replace(result, lightened=lightened, matched=taken.matched, network_calls=result.network_calls + taken.calls)


def take_out(triggers: Triggers, x0: Float[Tensor, "n c h w"], fill: Fill | None) -> TakenOut:
    """One trigger after the other, out of images in [-1, 1] in as many channels as the network has.

    Gradients reach the images. Images that carry none come back as they are, to the bit.
    """
    x = own_channels(x0, triggers[0].pattern.shape[0])
    matched = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    calls = torch.zeros(len(x), dtype=torch.long, device=x.device)
    to_fill = None if fill is None else _in_core_channels(fill, x0.shape[1])
    for trigger in triggers:
        carries = trigger.matches((x.detach() + 1) / 2)
        index = carries.nonzero()[:, 0]
        if len(index):
            x = x.index_put((index,), (trigger.remove((x[index] + 1) / 2, to_fill) * 2 - 1).to(x))
            calls[index] += int(trigger.covers and to_fill is not None)
            matched |= carries
    planes = len(x0) // len(x)  # 3 where a grey network takes the colours one by one
    matched, calls = matched.repeat_interleave(planes), calls.repeat_interleave(planes)
    return TakenOut(torch.where(matched[:, None, None, None], core_channels(x, x0.shape[1]), x0), matched, calls)


def own_channels(x: Float[Tensor, "n c h w"], channels: int) -> Float[Tensor, "m k h w"]:
    """Images in the network's channels as they were: grey ones were repeated, colours were taken one by one."""
    if x.shape[1] > channels:
        return x[:, :channels]
    return x[:, 0].unflatten(0, (-1, channels)) if x.shape[1] < channels else x


def core_channels(x: Float[Tensor, "m k h w"], channels: int) -> Float[Tensor, "n c h w"]:
    """The inverse of ``own_channels``."""
    if x.shape[1] < channels:
        return x.expand(-1, channels, -1, -1)
    return x.flatten(0, 1)[:, None] if x.shape[1] > channels else x


def _in_core_channels(fill: Fill, channels: int) -> Fill:
    def fill_own(images: Tensor, mask: Tensor) -> Tensor:
        own = images.shape[1]
        core = core_channels(images, channels)
        mask = mask.repeat_interleave(len(core) // len(images), dim=0)
        return own_channels(fill(core, mask), own)

    return fill_own
