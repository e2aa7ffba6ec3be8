"""Pictures with a trigger, what was found in them, and the result: one column a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sampdetox_transforms.lab.drawing.panel import Tile, draw_panel, unit_picture
from sampdetox_transforms.lab.drawing.plots import INK
from sampdetox_transforms.method.search import dilate
from sampdetox_transforms.transforms.explanation import Explanation

FOUND, BAD = (1.0, 0.1, 0.6), "#b00020"  # the colour around what was found; of the title of what survives


class Case(NamedTuple):
    """A picture and what ``SampDetox.explain`` says of it.

    Attributes:
        title: written above the column.
        image: (c, h, w), uint8 or floats in [0, 1], as it came in.
        explained: of that image, or of a batch in which it has the place ``index``.
        good: whether the outcome is the one that is wanted; the title is red where it is not.
    """

    title: str
    image: Tensor
    explained: Explanation
    index: int | None = None
    good: bool = True


def draw_cases(cases: Sequence[Case], out: str | Path, *, heading: str = "") -> None:
    """Draw three rows, with a trigger, what was found, the result, into the file ``out``.

    Raises:
        ValueError: no case, or a file ending that cannot be drawn.
        OSError: ``out`` cannot be written.
    """
    colours = [INK if case.good else BAD for case in cases]

    def row(pictures: Sequence[np.ndarray]) -> list[Tile]:
        parts = zip(cases, pictures, colours, strict=True)
        return [Tile(case.title, picture, colour=colour) for case, picture, colour in parts]

    rows = [
        ("with a trigger", row([unit_picture(case.image) for case in cases])),
        ("what was found", row([found_picture(case.image, mask_of(case)) for case in cases])),
        ("result", row([unit_picture(picked(case, case.explained.image)) for case in cases])),
    ]
    draw_panel(rows if cases else [], out, heading=heading)


def picked(case: Case, values: Tensor) -> Tensor:
    """The part of a batch that concerns the case."""
    return values if case.index is None else values[case.index]


def mask_of(case: Case) -> Tensor:
    """(1, h, w): the pixels that were filled, or all of them where the whole picture was answered as triggered."""
    found = case.explained.found
    if found is None:
        return torch.zeros_like(case.image[:1], dtype=torch.bool)
    mask = picked(case, found.mask)
    return mask | picked(case, found.dense)


def found_picture(image: Tensor, mask: Tensor) -> np.ndarray:
    """The picture in faint grey, its masked pixels as they are, with a coloured line around them: (h, w, 3)."""
    mask = mask.detach().cpu()
    own = unit_picture(image)
    colours = own if own.ndim == 3 else np.repeat(own[..., None], 3, axis=2)
    faint = 0.72 + 0.28 * colours.mean(axis=2, keepdims=True)
    width = max(1, round(min(mask.shape[-2:]) / 100))
    edge = dilate(mask[None], width)[0] & ~mask
    inside, around = (part[0].numpy()[..., None] for part in (mask, edge))
    return np.where(around, np.array(FOUND), np.where(inside, colours, faint))
