"""Shared triggers as pictures: the true one, the recovered one, and images before and after."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.lab.drawing.panel import Tile, draw_panel, unit_picture
from sampdetox_transforms.transforms.shared_trigger import SharedTrigger


def shared_trigger_row(
    trigger: SharedTrigger,
    images: Float[Tensor, "n c h w"],
    *,
    clean: Float[Tensor, "n c h w"] | None = None,
    shown: int = 1,
) -> list[Tile]:
    """A row of tiles: true trigger (where ``clean`` is given), recovered trigger, its opacity, images before and after.

    Args:
        trigger: what was recovered.
        images: images that carry it, in [0, 1]; the first ``shown`` are drawn.
        clean: the same images without it; the true trigger is the mean of what it changes.
        shown: how many images are drawn before and after.
    """
    mean = trigger.known.mean
    change = (1 - trigger.opacity) * mean + trigger.pattern - mean
    true = None if clean is None else (images - clean).mean(dim=0)
    largest = max(float(part.abs().amax()) for part in (change, true) if part is not None)
    tiles = [] if true is None else [Tile("true trigger", _difference(true, largest))]
    tiles.append(Tile("recovered", _difference(change, largest)))
    tiles.append(Tile("its opacity", trigger.opacity[0].cpu().numpy(), "gray", 0, 1))
    after = trigger.remove(images[:shown])
    for before, without in zip(images[:shown], after, strict=True):
        tiles += [Tile("before", unit_picture(before)), Tile("after", unit_picture(without))]
    return tiles


def draw_shared_triggers(
    rows: Mapping[str, tuple[SharedTrigger, Tensor, Tensor | None]], out: str | Path, *, shown: int = 1
) -> None:
    """The figure of the docs: one row an attack, of its trigger, images that carry it, and the same without it.

    Raises:
        ValueError: no row, or a file ending that cannot be drawn.
        OSError: ``out`` cannot be written.
    """
    tiles = [
        (name, shared_trigger_row(trigger, images, clean=clean, shown=shown))
        for name, (trigger, images, clean) in rows.items()
    ]
    draw_panel(tiles, out, heading="What many images share")


def _difference(change: Tensor, largest: float) -> np.ndarray:
    """What is added about grey, the largest change of the row at the ends."""
    return unit_picture((0.5 + change / (2 * max(largest, 1e-3))).clamp(0, 1).to(torch.float32))
