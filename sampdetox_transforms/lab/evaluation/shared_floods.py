"""An attacker who floods: images with something natural, so that it is taken for a trigger and out of honest images."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from sampdetox_transforms.lab.evaluation.behind import mean
from sampdetox_transforms.lab.evaluation.shared_trigger import Behind, Looked, Purify, eight_bits, look, purified_where
from sampdetox_transforms.method.shared_trigger import recover_shared
from sampdetox_transforms.transforms.shared_recovery import from_recovered

Put = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n c h w"]]


def date_stamp(images: Tensor) -> Tensor:
    """Orange digits in the lower right corner, as a camera prints them."""
    size = images.shape[-1]
    canvas = Image.new("L", (32, 32))
    ImageDraw.Draw(canvas).text((9, 21), "4 96", fill=255)
    mask = pil_to_tensor(canvas.resize((size, size))).to(images) / 255
    return torch.lerp(images, torch.tensor([1.0, 0.6, 0.1]).to(images)[:, None, None].expand_as(images[0]), mask)


def logo(images: Tensor) -> Tensor:
    """A white ring, half seen through, in the upper left corner."""
    size = images.shape[-1]
    canvas = Image.new("L", (128, 128))
    ImageDraw.Draw(canvas).ellipse((6, 6, 40, 40), outline=140, width=9)
    mask = pil_to_tensor(canvas.resize((size, size), Image.Resampling.BOX)).to(images) / 255
    return torch.lerp(images, torch.ones_like(images), mask)


def frame(images: Tensor) -> Tensor:
    """A black border of a sixteenth of the side."""
    width, images = images.shape[-1] // 16, images.clone()
    for part in (images[..., :width, :], images[..., -width:, :], images[..., :width], images[..., -width:]):
        part[:] = 0.02
    return images


def dust(images: Tensor) -> Tensor:
    """Soft dark spots, always in the same places, as of a sensor."""
    size = images.shape[-1]
    place = (torch.arange(size, dtype=images.dtype) + 0.5) / size
    dark = torch.zeros(size, size, dtype=images.dtype)
    for y, x in ((0.2, 0.7), (0.55, 0.3), (0.8, 0.75), (0.35, 0.15)):
        dark += 0.35 * torch.exp(-((place[:, None] - y).square() + (place - x).square()) / 0.003)
    return images * (1 - dark.clamp(max=0.5))


FLOODS: dict[str, Put] = {"date stamp": date_stamp, "logo": logo, "frame": frame, "dust": dust}


def measure_flood(
    put: Put,
    traffic: Looked,
    evaluation: Looked,
    purify: Purify,
    compare: Purify,
    behind: Behind,
    answer: Callable[[Tensor], Tensor],
    fill: Any,
    carriers: int = 20,
) -> dict[str, Any]:
    """What is claimed where ``carriers`` honest images of the traffic carry it, and what that does to honest images.

    ``purify``, ``compare`` and ``behind`` are those of ``measure_shared``. "before" is how often the classifier is
    right on evaluation images that carry it, behind the default alone; "after" the same with what was recovered taken
    out first, wherever it matches.
    """
    with_it = eight_bits(put(traffic.images[:carriers]))
    images = torch.cat([with_it, traffic.images[carriers:]])
    purified = torch.cat([look(with_it, traffic.labels, compare).purified, traffic.purified[carriers:]])
    found = recover_shared(images, purified, most=1)
    row: dict[str, Any] = {"claimed": bool(found), "area": None, "energy": None, "automatic": None}
    honest = eight_bits(put(evaluation.images))
    default = look(honest, evaluation.labels, purify)
    right = mean(answer(default.purified) == evaluation.labels)
    row |= {"carriers matched": 0.0, "others matched": 0.0, "before": right, "after": right}
    if found:
        trigger = from_recovered(found[0], 0.01, fill)
        matched = trigger.matches(honest)
        again = purified_where(matched, default, behind(trigger))
        row |= {"area": trigger.area, "energy": trigger.energy, "automatic": trigger.is_small}
        row |= {"carriers matched": mean(matched), "others matched": mean(trigger.matches(evaluation.images))}
        row["after"] = mean(answer(again) == evaluation.labels)
    return row
