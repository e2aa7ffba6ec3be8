"""Plots of training, tables and speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sampdetox_transforms._common import write_atomically

FORMATS = (".png", ".pdf", ".svg")

INK, FAINT, LINE = "#222222", "#b5b5b5", "#c0392b"

FACTORS = (1, 2, 3, 5, 10, 20, 50, 100)


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


def _save(figure: Figure, out: Path) -> None:
    check_format(out)
    form = out.suffix.lower()[1:]
    write_atomically(out, lambda part: figure.savefig(part, format=form, dpi=160))
