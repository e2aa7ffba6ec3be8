"""Draw the figures of the docs from the JSON files of docs/results, into docs/plots.

    python docs/plots.py            # all of them
    python docs/plots.py --check    # only say which ones their results have changed under

Each PNG file holds the digest of the JSON files that it was drawn from.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PLOTS = ROOT / "docs" / "results", ROOT / "docs" / "plots"

RED, BLUE, GREEN, GREY = "#c0392b", "#3b6fb6", "#2a9d5c", "#8a8f98"
NAMES = {"none": "no defense", "sampdetox": "Algorithm 1", "ddim": "Algorithm 1", "restore": "the default"}
NAMES |= {"sampdetox-restore": "the default", "sampdetox-paper": "Algorithm 1 (`paper`)".replace("`", "")}
COLOURS = {"no defense": RED, "Algorithm 1": BLUE, "the default": GREEN}

Rows = dict[str, dict[str, tuple[float, float, float]]]  # trigger -> defense -> CA, PA, ASR in per cent


def ten_attacks() -> None:
    """The paper's ten attacks on GTSRB."""
    _dots("gtsrb-attacks", "ten-attacks")


def attacks_on_cifar10() -> None:
    """The same on CIFAR-10."""
    _dots("cifar10-attacks", "cifar10-attacks")


def patches() -> None:
    """Fifteen triggers on GTSRB, PA only, and the same on CIFAR-10."""
    names = ("restore-patches", "restore-cifar10")
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), sharey=True, layout="constrained")
    for axis, name, title in zip(axes, names, ("GTSRB", "CIFAR-10"), strict=True):
        rows = _behind(name)
        _dot_axis(axis, rows, 1, f"{title}: right class, triggered images, %")
        axis.plot([v["no defense"][0] for v in rows.values()], range(len(rows)), "|", color="black", ms=9,
                  label="clean images, no defense")  # fmt: skip
    _legend(figure, axes[0])
    _save(figure, "patches", *names)


def baselines() -> None:
    """Means over the ten attacks: what a defense costs, and what it stops."""
    rows, means = _evaluated("gtsrb-purifiers"), {}
    for defense in next(iter(rows.values())):
        found = [row[defense] for row in rows.values() if defense in row]
        means[defense] = [sum(values) / len(found) for values in zip(*found, strict=True)]
    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for defense, (ca, _, asr) in means.items():
        axis.plot(ca, asr, "o", color=COLOURS.get(defense, GREY), ms=8)
        axis.annotate(defense, (ca, asr), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    axis.set(xlabel="clean accuracy, %", ylabel="attack success, %", xlim=(72, 101), ylim=(0, 108))
    _plain(axis)
    _save(figure, "baselines", "gtsrb-purifiers")


def ablation() -> None:
    """The default without one of its parts, as means over five attacks."""
    rows, without = _behind("restore-ablation-attacks"), {}
    for setting in dict.fromkeys(name for row in rows.values() for name in row):
        values = [row[setting][2] for row in rows.values()]
        without[setting.replace("restore, ", "").replace("restore", "the default")] = sum(values) / len(values)
    names = [name for name in without if name != "no defense"]
    figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    colours = [GREEN if name == "the default" else GREY for name in names]
    axis.barh(names[::-1], [without[name] for name in names[::-1]], color=colours[::-1])
    for i, name in enumerate(names[::-1]):
        axis.text(without[name] + 0.8, i, f"{without[name]:.0f}", va="center", fontsize=9)
    axis.set(xlabel=f"attack success, mean of five attacks, % (no defense: {without['no defense']:.0f})")
    _plain(axis)
    _save(figure, "ablation", "restore-ablation-attacks")


LEVELS = ("gtsrb-levels-t1", "gtsrb-levels")


def levels() -> None:
    """Table 3: CA and ASR of Algorithm 1 by noise level, the paper's ASR beside."""
    from sampdetox_transforms.lab.evaluation.experiments import FAINT, VISIBLE
    from sampdetox_transforms.lab.evaluation.paper_results import TABLE_3

    found = [row for name in LEVELS for row in _read(name)["rows"]]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, stage, group in zip(axes, ("t1", "t2"), (FAINT, VISIBLE), strict=True):
        names = [d for d in dict.fromkeys(row["defense"] for row in found) if d.startswith(stage)]
        values = {name: [r for r in found if r["defense"] == name and r["attack"] in group] for name in names}
        x = [float(name.split("=")[1]) for name in names]
        for key, label, colour in (("ca", "clean accuracy", GREEN), ("asr", "attack success", RED)):
            mean = [100 * sum(row[key]["value"] for row in values[name]) / len(values[name]) for name in names]
            axis.plot(x, mean, "o-", color=colour, label=label)
        paper = [TABLE_3[name][2] if name in TABLE_3 else None for name in names]
        axis.plot(x, paper, "s--", color=GREY, mfc="white", label="attack success, the paper's")
        axis.set(xlabel=f"{stage} ({len(values[names[0]])} attacks)", ylim=(0, 103))
        _plain(axis)
    axes[0].set_ylabel("%")
    _legend(figure, axes[0])
    _save(figure, "levels", *LEVELS)


def adaptive() -> None:
    """A white patch, and one that was optimised against the search."""
    rows = _read("adaptive-patch")["rows"]
    figure, axis = plt.subplots(figsize=(6.5, 2.2), layout="constrained")
    for i, row in enumerate(reversed(rows)):
        for defense, name in (("no defense", "no defense"), ("restore", "the default")):
            axis.plot(_percent(row[defense]["ASR"]), i, "o", color=COLOURS[name], ms=10, label=name if i else None)
    axis.set(yticks=range(len(rows)), yticklabels=[row["trigger"] for row in reversed(rows)], xlim=(-3, 103),
             ylim=(-0.5, len(rows) - 0.5), xlabel="attack success, %")  # fmt: skip
    _plain(axis)
    _legend(figure, axis)
    _save(figure, "adaptive", "adaptive-patch")


def speed() -> None:
    """Images a second by batch size, on two cores."""
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    for name, label, colour in (("speed-restore", "the default", GREEN), ("speed", "Algorithm 1", BLUE)):
        batches = _read(name)["batches"]
        x = [str(batch["batch_size"]) for batch in batches]
        axis.plot(x, [batch["images_per_second"] for batch in batches], "o-", color=colour, label=label)
    axis.set(xlabel="batch size, images of 32x32", ylabel="images a second", ylim=(0, None))
    _plain(axis)
    _legend(figure, axis)
    _save(figure, "speed", "speed-restore", "speed")


FIGURES: Mapping[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "ten-attacks": (ten_attacks, ("gtsrb-attacks",)),
    "cifar10-attacks": (attacks_on_cifar10, ("cifar10-attacks",)),
    "patches": (patches, ("restore-patches", "restore-cifar10")),
    "baselines": (baselines, ("gtsrb-purifiers",)),
    "ablation": (ablation, ("restore-ablation-attacks",)),
    "levels": (levels, LEVELS),
    "adaptive": (adaptive, ("adaptive-patch",)),
    "speed": (speed, ("speed-restore", "speed")),
}


def stale() -> list[str]:
    """Figures that are missing, or whose results have changed."""
    return [name for name, (_, sources) in FIGURES.items() if _held(PLOTS / f"{name}.png") != digest(*sources)]


def digest(*names: str) -> str:
    return hashlib.sha256(b"".join((RESULTS / f"{name}.json").read_bytes() for name in names)).hexdigest()[:16]


def _held(path: Path) -> str:
    if not path.exists():
        return ""
    with Image.open(path) as image:
        return str(image.info.get("results", ""))


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _evaluated(name: str) -> Rows:
    """Results of ``sampdetox evaluate``."""
    rows: Rows = {}
    for row in _read(name)["rows"]:
        if row["asr"] is not None:
            values = [100 * row[key]["value"] for key in ("ca", "pa", "asr")]
            defense = NAMES.get(row["defense"], row["defense"])
            rows.setdefault(row["attack"], {})[defense] = (values[0], values[1], values[2])
    return rows


def _percent(share: Any) -> float:
    """Of a number, as older files have it, or of one with an interval."""
    return 100 * (share["value"] if isinstance(share, dict) else share)


def _behind(name: str) -> Rows:
    """Results of experiments ``restore`` and ``restore-ablation``."""
    rows: Rows = {}
    for row in _read(name)["rows"]:
        defense = NAMES.get(row["setting"], row["setting"])
        ca, pa, asr = (_percent(row[share]) for share in ("CA", "PA", "ASR"))
        rows.setdefault(row["victim"], {})[defense] = (ca, pa, asr)
    if "ablation" in name:
        return rows
    return {victim: {d: v for d, v in row.items() if d in COLOURS} for victim, row in rows.items()}


def _dots(source: str, name: str) -> None:
    """A line a trigger, a dot a defense: attack success to the left, the right class to the right."""
    rows = {attack: {d: v for d, v in own.items() if d in COLOURS} for attack, own in _evaluated(source).items()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.36 * len(rows) + 1.1), sharey=True, layout="constrained")
    _dot_axis(axes[0], rows, 2, "attack success, %  (lower is better)")
    _dot_axis(axes[1], rows, 1, "right class, triggered images, %  (higher is better)")
    _legend(figure, axes[1])
    _save(figure, name, source)


def _dot_axis(axis: Axes, rows: Rows, index: int, label: str) -> None:
    for defense, colour in COLOURS.items():
        points = [(row[defense][index], i) for i, row in enumerate(rows.values()) if defense in row]
        if points:
            axis.plot(*zip(*points, strict=True), "o", color=colour, ms=7, alpha=0.9, label=defense)
    axis.set(xlim=(-3, 103), xlabel=label, yticks=range(len(rows)), yticklabels=list(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    _plain(axis)


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)


def _legend(figure: Any, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)


def _save(figure: Any, name: str, *sources: str) -> None:
    PLOTS.mkdir(exist_ok=True)
    figure.savefig(PLOTS / f"{name}.png", dpi=130, metadata={"results": digest(*sources), "Software": None})
    plt.close(figure)


def main(arguments: Sequence[str]) -> str | int:
    old = stale()
    if "--check" in arguments:
        return f"run python docs/plots.py: {old}" if old else 0
    for draw, _ in FIGURES.values():
        draw()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
