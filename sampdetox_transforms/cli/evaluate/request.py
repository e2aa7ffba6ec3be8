"""What ``sampdetox evaluate`` was asked for, and how that is written beside results."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Request:
    """The command's arguments; None is what the experiment takes.

    Attributes:
        options: of --set.
        denoisers: weights to compare, by the experiments that do.
        doors: the search networks and thresholds that were given.
        fit: clean images, to which the default is fitted with each victim.
    """

    victims: Sequence[Path]
    data: str | None
    experiment: str
    defenses: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str
    full_range: str | None
    denoisers: Sequence[str] = ()
    doors: Mapping[str, Path] = field(default_factory=dict)
    fit: Path | None = None
    n: int | None
    n_slow: int | None
    batch_size: int | None
    seed: int
    dtype: str | None
    backdoorbench: bool
    device: str
    out: Path | None

    def command(self) -> str:
        """The command that makes the same results, with folders by their last names, since results are published."""
        given = {"full_range": self.full_range, **self.doors, "fit": self.fit}
        shown = ["sampdetox", "evaluate", *(folder.name for folder in self.victims)]
        shown += [] if self.data is None else ["--data", self.data_name()]
        shown += ["--experiment", self.experiment]
        shown += ["--defense", *self.defenses] if self.defenses else []
        shown += ["--set", *(f"{name}={last_name(value)}" for name, value in self.options.items())] * bool(self.options)
        shown += ["--weights", last_name(self.weights)]
        for name, value in given.items():
            shown += [] if value is None else [f"--{name.replace('_', '-')}", last_name(value)]
        shown += ["--denoisers", *map(last_name, self.denoisers)] if self.denoisers else []
        for name in ("n", "n_slow", "seed", "dtype"):
            value = getattr(self, name)
            shown += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join(shown)

    def data_name(self) -> str:
        return "/".join(Path(self.data or "").parts[-2:])


def last_name(value: object) -> str:
    """A folder or file by its last name; other values as they are written."""
    text = str(value)
    return Path(text).name if "/" in text and Path(text).exists() else text
