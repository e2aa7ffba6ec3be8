"""Pictures for people: panels of an image's way through the method, and loss curves. Drawn without pyplot's state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sampdetox_transforms.lab.drawing.plots import FACTORS, FAINT, INK, _save
from sampdetox_transforms.transforms.explanation import Explanation

TILE = 1.9  # inches


class Tile(NamedTuple):
    """One picture of a panel; plain tuples of the same order do too.

    Attributes:
        title: written above it; left out where the tile above has the same.
        image: (h, w) or (h, w, 3), uint8, or floats in [0, 1]; any floats where ``cmap`` is given.
        cmap: a matplotlib colour map for (h, w) numbers, with a colour bar below; None for a picture.
        low, high: the numbers at the ends of the colour map; None for the image's own.
        colour: of the title.
    """

    title: str
    image: np.ndarray
    cmap: str | None = None
    low: float | None = None
    high: float | None = None
    colour: str = INK


def draw_panel(rows: Sequence[Any], out: str | Path, *, heading: str = "") -> None:
    """Draw rows of tiles into the file ``out``, which appears whole or not at all.

    Args:
        rows: lists of tiles, not necessarily equally long; or pairs (row title, list of tiles).
        out: a file name that ends in one of ``FORMATS``.

    Raises:
        ValueError: no tile, a shape that is not a picture's, or another file ending.
        OSError: ``out`` cannot be written.
    """
    titles, grid = _sort_out(rows)
    columns = max((len(row) for row in grid), default=0)
    if not columns:
        raise ValueError("a panel must have a tile at least, got none. Give rows of (title, image).")
    heights = [max(_tile_height(tile) for tile in row) for row in grid]
    width = columns * TILE * 1.06 + 0.17 * max(title.count("\n") + 1 if title else 0 for title in titles)
    figure = Figure(figsize=(width, sum(heights) + (0.4 if heading else 0.05)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.05, wspace=0.02, hspace=0.02)  # pyright: ignore
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for i, row in enumerate(grid):
        above = [tile.title for tile in grid[i - 1]] if i else []
        for j, tile in enumerate(row):
            _draw_tile(axes[i, j], tile, with_title=tile.title not in above[j : j + 1])
        axes[i, 0].set_ylabel(titles[i], fontsize=8, color=INK)
        for unused in axes[i, len(row) :]:
            unused.set_axis_off()
    if heading:
        figure.suptitle(heading, fontsize=10, color=INK)
    _save(figure, Path(out))


def explanation_row(
    image: torch.Tensor,
    explained: Explanation,
    index: int | None = None,
    *,
    t2: float | None = None,
    factor: int | None = None,
) -> list[Tile]:
    """What ``SampDetox.explain`` returned, as a row of tiles: input, stage 1, map, levels, result, difference.

    For a preset that searches, each pixel's suspicion and the filled pixels take the place of map and levels.

    Args:
        image: the input, (c, h, w), uint8 or floats in [0, 1].
        explained: of that image, or of a batch in which it has the place ``index``.
        t2: the end of the colour bar of the levels; None for the image's highest.
        factor: how much the difference is amplified about grey; None for as much as its largest values allow.
    """

    def pick(values: torch.Tensor) -> torch.Tensor:
        return (values if index is None else values[index]).detach().cpu()

    before, after = unit_picture(image), unit_picture(pick(explained.image))
    factor = amplification(after - before) if factor is None else factor
    difference = (0.5 + factor * (after - before)).clip(0, 1)
    levels, found = pick(explained.timestep_map)[0].float().numpy(), explained.found
    highest = max(float(levels.max()) if t2 is None else t2, 1)
    if found is None:
        assert explained.difference_map is not None  # what does not search has a map
        changed = pick(explained.difference_map)[0].float().numpy()
        why = Tile("map: changed by stage 1", changed, "magma", min(0, float(changed.min())))
        where = Tile("noise levels of stage 2", levels, "viridis", 0, highest)
    else:
        why = Tile("trigger probability of each pixel", pick(found.probability)[0].float().numpy(), "magma", 0, 1)
        where = Tile("filled pixels", pick(found.mask)[0].float().numpy(), "gray", 0, 1)
    taken: list[Tile] = []
    if explained.matched is not None and explained.lightened is not None and bool(pick(explained.matched)):
        removed = unit_picture(pick(explained.lightened))
        own = amplification(removed)
        taken = [Tile(f"shared trigger x {own}, taken out first", (0.5 + own * removed).clip(0, 1))]
    return [
        Tile("input", before),
        *taken,
        Tile("after stage 1", unit_picture(pick(explained.stage1))),
        why,
        where,
        Tile("result", after),
        Tile(f"difference x {factor} (grey: none)", difference),
    ]


def unit_picture(image: torch.Tensor) -> np.ndarray:
    """(c, h, w), uint8 or floats in [0, 1] -> (h, w) or (h, w, 3) floats in [0, 1]."""
    x = image.detach().cpu()
    x = x.double() / 255 if x.dtype == torch.uint8 else x.double()
    return x[0].numpy() if len(x) == 1 else x.movedim(0, -1).numpy()


def amplification(difference: np.ndarray) -> int:
    """The largest of ``FACTORS`` that keeps 99.5 % of the values of a difference in [-1, 1] within [-0.5, 0.5]."""
    size = float(np.quantile(np.abs(difference), 0.995))
    return max((factor for factor in FACTORS if factor * size <= 0.5), default=1)


def _tile_height(tile: Tile) -> float:
    shape = np.shape(tile.image)
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)) or 0 in shape:
        raise ValueError(f"a tile must be (h, w) or (h, w, 3), got {shape}. Use panel.unit_picture on tensors.")
    lines = tile.title.count("\n") + 1
    return TILE * _aspect(tile) + 0.16 * lines + (0.3 if tile.cmap else 0.05) + 0.08


def _sort_out(rows: Sequence[Any]) -> tuple[list[str], list[list[Tile]]]:
    """The titles and the tiles of the rows that have any."""
    pairs = [row if len(row) and isinstance(row[0], str) else ("", row) for row in rows]
    pairs = [(title, tiles) for title, tiles in pairs if len(tiles)]
    return [title for title, _ in pairs], [[Tile(*tile) for tile in tiles] for _, tiles in pairs]


def _aspect(tile: Tile) -> float:
    height, width = np.shape(tile.image)[:2]
    return min(max(height / width, 0.25), 4)


def _draw_tile(axes: Axes, tile: Tile, with_title: bool) -> None:
    options: dict[str, Any] = {"interpolation": "nearest" if max(np.shape(tile.image)[:2]) < 256 else "antialiased"}
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255 if np.asarray(tile.image).dtype == np.uint8 else 1}
    colours = {"cmap": tile.cmap, "vmin": tile.low, "vmax": tile.high} if tile.cmap else grey
    drawn = axes.imshow(tile.image, **options, **(colours if np.ndim(tile.image) == 2 else {}))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=FAINT, linewidth=0.5)
    if with_title:
        axes.set_title(tile.title, fontsize=8, color=tile.colour, pad=3)
    if tile.cmap:
        height = TILE * _aspect(tile)
        place = axes.inset_axes((0, -0.12 / height, 1, 0.07 / height))
        bar = axes.figure.colorbar(drawn, cax=place, orientation="horizontal", format="%.3g", ticks=MaxNLocator(4))
        bar.ax.tick_params(labelsize=6, length=2, pad=1, colors=INK)
        bar.outline.set_visible(False)
