"""Pictures for people: panels of an image's way through the method, and loss curves. Drawn without pyplot's state."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sampdetox_transforms.checkpoints import write_atomically
from sampdetox_transforms.transforms import Explanation

FORMATS = (".png", ".pdf", ".svg")
TILE = 1.9  # inches
INK, FAINT, LINE = "#222222", "#b5b5b5", "#c0392b"
FACTORS = (1, 2, 3, 5, 10, 20, 50, 100)


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
    changed, levels = (pick(values)[0].float().numpy() for values in (explained.ssim_map, explained.timestep_map))
    highest = max(float(levels.max()) if t2 is None else t2, 1)
    if explained.mask is None:
        why = Tile("map: changed by stage 1", changed, "magma", min(0, float(changed.min())))
        where = Tile("noise levels of stage 2", levels, "viridis", 0, highest)
    else:
        why = Tile("suspicion of each pixel", changed, "magma", 0, 1)
        where = Tile("filled pixels", pick(explained.mask)[0].float().numpy(), "gray", 0, 1)
    return [
        Tile("input", before),
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


def draw_loss_curve(losses: Sequence[float], out: str | Path) -> None:
    """Draw the loss of each step, and its moving average, into the file ``out``; raises as ``draw_panel``."""
    if not len(losses):
        raise ValueError("a loss curve must have a step at least, got none. Train for a step or more.")
    values = np.asarray(losses, dtype=float)
    width = min(max(1, len(values) // 50), 500)
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, len(values) + 1)
    few = {"marker": "o", "markersize": 3} if len(values) <= 50 else {}
    axes.plot(steps, values, color=FAINT, linewidth=0.6, label="each step", **few)
    if width > 1:
        axes.plot(steps[width - 1 :], smooth, color=LINE, linewidth=1.6, label=f"mean of {width} steps")
        axes.legend(frameon=False, fontsize=8)
    finite = values[np.isfinite(values)]
    if len(finite) and 0 < 10 * finite.min() < finite.max():
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, ("step", "loss (squared error of the noise)"))
    _save(figure, Path(out))


def draw_scatter(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], out: str | Path, axes_titles) -> None:
    """Draw named groups of dots (x values, y values) into the file ``out``; raises as ``draw_panel``."""
    if not groups:
        raise ValueError("a scatter must have a group at least, got none. Give {name: (x, y)}.")
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    markers = "osv^D*PX<>hp"
    for i, (name, (x, y)) in enumerate(groups.items()):
        axes.scatter(x, y, s=14, alpha=0.7, color=f"C{i % 10}", marker=markers[i % len(markers)], label=name)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    _finish(axes, axes_titles)
    _save(figure, Path(out))


def draw_bars(values: Mapping[str, float], out: str | Path, title: str) -> None:
    """Draw one horizontal bar a name, on a logarithmic scale, into the file ``out``; raises as ``draw_panel``."""
    if not values:
        raise ValueError("a bar chart must have a bar at least, got none. Give {name: value}.")
    figure = Figure(figsize=(6.4, 0.4 + 0.34 * len(values)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(values), list(values.values()), color=LINE)
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    _finish(axes, (title, ""))
    _save(figure, Path(out))


def draw_speed(rates: Mapping[int, float], shares: Mapping[str, float], out: str | Path, heading: str = "") -> None:
    """Draw images a second by batch size, and the share of each part of the time, into the file ``out``.

    Raises as ``draw_panel``; ``shares`` add up to 1.
    """
    if not rates or not shares:
        raise ValueError(f"a speed drawing must have rates and shares, got {len(rates)} and {len(shares)}. Give both.")
    figure = Figure(figsize=(7.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.plot(list(rates), list(rates.values()), color=LINE, marker="o")
    left.set_xscale("log", base=2)
    left.set_xticks(list(rates), [str(size) for size in rates])
    left.set_ylim(bottom=0)
    _finish(left, ("batch size", "images a second"))
    bars = right.barh(list(shares), [100 * share for share in shares.values()], color=LINE)
    right.bar_label(bars, fmt="%.1f %%", padding=3, fontsize=8)
    right.set_xlim(0, 125)  # room for the numbers
    right.set_xticks(range(0, 101, 25))
    right.invert_yaxis()
    _finish(right, ("share of the time, %", ""))
    if heading:
        figure.suptitle(heading, fontsize=9, color=INK)
    _save(figure, Path(out))


def _finish(axes: Axes, titles: tuple[str, str]) -> None:
    axes.set_xlabel(titles[0])
    axes.set_ylabel(titles[1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def check_format(out: str | Path) -> None:
    """Raise ValueError for a file name whose ending no picture can be drawn into."""
    if Path(out).suffix.lower() not in FORMATS:
        raise ValueError(f"a drawing must end in one of {FORMATS}, got {str(out)!r}. Rename it to end in .png.")


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


def _save(figure: Figure, out: Path) -> None:
    check_format(out)
    form = out.suffix.lower()[1:]
    write_atomically(out, lambda part: figure.savefig(part, format=form, dpi=160))
