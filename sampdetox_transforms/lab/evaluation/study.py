"""An experiment as a small object, and the one loop that runs it: cells to rows, rows to JSON and Markdown.

A cell has a key and a function that measures it. A cell whose key the file holds already is not measured again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sampdetox_transforms._common import check_choice, write_atomically
from sampdetox_transforms.lab.environment import all_in_words
from sampdetox_transforms.lab.evaluation.sheet import Sheet
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.networks.denoiser import Denoiser
from sampdetox_transforms.transforms.presets import Preset, get_preset
from sampdetox_transforms.transforms.transform import SampDetox

NO_DEFENSE = "no defense"

Progress = Callable[[str, int, int], None]  # what, done, of how many

Document = Mapping[str, Any]


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run was asked for.

    Attributes:
        data: the folder of the data; None for the one that ``SAMPDETOX_DATA`` names.
        out: the results' path without a suffix; None to keep nothing.
        n: test images.
        seed: draws images, places and noise.
        settings: the experiment's columns.
        weights: of the denoiser.
        dtype: of all networks; None for the fastest.
        options: the experiment's own.
        restorer, calibration: search networks and thresholds of presets that search; None for those in the package.
        progress: told about long preparations.
    """

    data: Path | None = None
    out: Path | None = None
    n: int = 100
    seed: int = 0
    settings: tuple[str, ...] = ()
    weights: Any = "bundled"
    dtype: torch.dtype | None = None
    device: str | torch.device = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    restorer: Any = None
    calibration: Any = None
    progress: Progress = silent

    def detox(self, preset: str | Preset) -> SampDetox:
        """A defense with the run's weights and seed."""
        doors: dict[str, Any] = {"restorer": self.restorer, "calibration": self.calibration}
        doors = doors if isinstance(get_preset(preset), Restore) else {}
        given = {"seed": self.seed, "dtype": self.dtype, "device": self.device}
        return SampDetox(self.weights, preset=preset, **given, **doors)


@dataclass(frozen=True)
class Cell:
    """One row to be: what it is known by, and how it is measured."""

    key: Mapping[str, Any]
    measure: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A named experiment.

    Attributes:
        title: in words.
        cells: the rows of a plan, in order; nothing is measured yet.
        render: Markdown tables of a document, without the line under them.
        n: test images, if the caller does not say.
        settings: columns, if the caller does not say.
        dtype: of all networks, if the caller does not say; None for the fastest.
        allowed: all columns there are; () for any.
        options: its own keyword arguments, with defaults.
        data: what the test images are, in words, from the plan.
        finish: writes further files of a document.
    """

    title: str
    cells: Callable[[Plan], Iterable[Cell]]
    render: Callable[[Document], str]
    n: int = 500
    settings: tuple[str, ...] = ()
    dtype: torch.dtype | None = torch.float32
    allowed: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Callable[[Plan], str] = lambda plan: "test images"
    finish: Callable[[Document, Path], None] = lambda document, out: None


@dataclass(frozen=True)
class Result:
    """The Markdown of an experiment, and the document that its JSON file holds."""

    text: str
    document: Document


def run_study(
    name: str,
    study: Study,
    plan: Plan,
    *,
    command: str = "",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Result:
    """Measure what the file lacks, write JSON after every row, and the Markdown at the end.

    Raises:
        ValueError: unknown settings or options; a file of another run.
        OSError: a file that cannot be written, before any work.
        What the experiment refuses.
    """
    for setting in plan.settings:
        if study.allowed:
            check_choice("setting", setting, study.allowed)
    for option in plan.options:
        check_choice("option", option, tuple(study.options))
    chosen = {key: text(value) for key, value in plan.options.items() if value != study.options[key]}
    about = {"experiment": name, "data": study.data(plan), "n": plan.n, "seed": plan.seed, "options": chosen}
    about |= {"weights": text(plan.weights), "dtype": "fastest"}
    if plan.dtype is not None:
        about["dtype"] = str(plan.dtype).removeprefix("torch.")
    doors = {"restorer": plan.restorer, "calibration": plan.calibration}
    about |= {name: text(door) for name, door in doors.items() if door is not None}
    about |= {"command": command} if command else {}
    json_path = None if plan.out is None else beside(plan.out, ".json")
    sheet = Sheet(json_path, about, plan.device, overwrite=overwrite)
    cells = list(study.cells(plan))
    rows = []
    for i, cell in enumerate(cells):
        known = sheet.known(cell.key)
        rows.append(sheet.add({**cell.key, **cell.measure()}) if known is None else known)
        progress(" / ".join(str(value) for value in cell.key.values()), i + 1, len(cells))
    document = {**sheet.document(), "rows": rows}
    shown = f"{study.render(document)}\n\n{line_under(document)}\n"
    if plan.out is not None:
        write_atomically(beside(plan.out, ".md"), lambda path: path.write_text(shown))
        study.finish(document, plan.out)
    return Result(shown, document)


def beside(out: Path, suffix: str) -> Path:
    """One of the files of a run's results."""
    return out.with_name(out.name + suffix)


def line_under(document: Document) -> str:
    """The line under a table: command, data, number, seed, hardware, versions and commits."""
    settings = document["settings"]
    used = sorted({row["environment"] for row in document["rows"]}) or range(len(document["environments"]))
    made = all_in_words([document["environments"][i] for i in used])
    command = f"`{settings['command']}`: " if "command" in settings else ""
    options = ", ".join(f"{name} {value}" for name, value in settings["options"].items())
    rest = f"{', ' + options if options else ''}, weights {settings['weights']}"
    return f"{command}{settings['data']}, n = {settings['n']}, seed {settings['seed']}{rest}; {made}."


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(line)} |" for line in lines)]
    return "\n".join(rows)


def text(value: Any) -> Any:
    """A setting for JSON: folders by their last names, since results are published."""
    if isinstance(value, (list, tuple)):
        return [text(one) for one in value]
    if isinstance(value, Denoiser):
        value = value.source
    if isinstance(value, Path) or (isinstance(value, str) and "/" in value and Path(value).is_dir()):
        return Path(value).name
    return value if value is None or isinstance(value, (str, int, float, bool)) else type(value).__name__
