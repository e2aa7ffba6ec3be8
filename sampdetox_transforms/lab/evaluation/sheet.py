"""Rows of results in one JSON file, whole after each row, and an interrupted run that goes on where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab import environment

COMMAND = "command"  # the only setting that may differ when a run goes on


class Sheet:
    """Rows as dicts, what they share, and the file that holds them.

    Attributes:
        settings: what all rows share: n, seed, and what the caller adds.
        environments: hardware, versions and commits that rows were measured on; a row's "environment" is an index.
        rows: the rows.

    Raises:
        ValueError: a file of another kind, or of a run with other settings.
        OSError: a file that cannot be written, before any work.
    """

    def __init__(
        self, out: str | Path | None, settings: Mapping[str, Any], device: Any = "cpu", *, overwrite: bool = False
    ):
        self.out = None if out is None else Path(out)
        self.settings: dict[str, Any] = dict(settings)
        self.environments: list[dict[str, str]] = []
        self.rows: list[dict[str, Any]] = []
        if self.out is not None and self.out.exists() and not overwrite:
            document = read_sheet(self.out)
            self.settings, self.environments, self.rows = (
                document[name] for name in ("settings", "environments", "rows")
            )
            check_same(self.out, self.settings, settings)
            self.settings.update(settings)  # the last command is the one that makes all rows
        current = environment.describe(device)
        if current not in self.environments:
            self.environments.append(current)
        self.current = self.environments.index(current)
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.write()

    def known(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row that was measured for this key, if any."""
        return next((row for row in self.rows if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a row, in memory and in the file."""
        self.rows.append({**row, "environment": self.current})
        self.write()
        return self.rows[-1]

    def document(self) -> dict[str, Any]:
        return {"settings": self.settings, "environments": self.environments, "rows": self.rows}

    def write(self) -> None:
        if self.out is not None:
            text = json.dumps(self.document(), indent=1) + "\n"
            write_atomically(self.out, lambda path: path.write_text(text))


def read_sheet(path: str | Path) -> dict[str, Any]:
    """Settings, environments and rows of a file.

    Raises:
        ValueError: a file of another kind.
        OSError: no such file.
    """
    try:
        document = json.loads(Path(path).read_text())
        return {name: document[name] for name in ("settings", "environments", "rows")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"results must be a file that evaluate wrote, got {path}: {error}. Name another.") from error


def check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ValueError unless both are the settings of one run, the command aside."""
    kept = {name: value for name, value in old.items() if name != COMMAND}
    asked = json.loads(json.dumps({name: value for name, value in new.items() if name != COMMAND}))
    if kept != asked:
        different = sorted(name for name in {*kept, *asked} if kept.get(name) != asked.get(name))
        raise ValueError(
            f"a run goes on only with the settings that {path} was begun with, got another "
            f"{', '.join(different)}. Repeat them, or name another file."
        )
