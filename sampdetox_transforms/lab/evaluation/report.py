"""The JSON file that rows are kept in."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab import environment
from sampdetox_transforms.lab.evaluation.rows import Row
from sampdetox_transforms.lab.metrics import Share


class Report:
    """Rows of results, and the file that holds them: whole after every row, or not changed.

    Attributes:
        settings: what all rows share: n, seed, and what the caller adds.
        environments: hardware and versions that rows were measured on; ``Row.environment`` is an index into them.
        rows: the rows.
    """

    def __init__(self, out: str | Path | None, settings: Mapping[str, Any], device: str | torch.device = "cpu"):
        self.out = None if out is None else Path(out)
        self.settings, self.rows, self.environments = dict(settings), [], []
        if self.out is not None and self.out.exists():
            self.settings, self.environments, self.rows = read_report(self.out)
            kept = {name: value for name, value in self.settings.items() if name != "command"}
            asked = json.loads(json.dumps({name: value for name, value in settings.items() if name != "command"}))
            if kept != asked:
                different = sorted(name for name in {*kept, *asked} if kept.get(name) != asked.get(name))
                raise ValueError(
                    f"a run goes on only with the settings that {self.out} was begun with, got another "
                    f"{', '.join(different)}. Repeat them, or name another file."
                )
            self.settings.update(settings)  # the last command is the one that makes all rows
        current = environment.describe(device)
        if current not in self.environments:
            self.environments.append(current)
        self.current = self.environments.index(current)
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.write()

    @property
    def done(self) -> set[tuple[str, str]]:
        return {row.key for row in self.rows}

    def add(self, row: Row) -> None:
        self.rows.append(Row(**{**vars(row), "environment": self.current}))
        self.write()

    def write(self) -> None:
        if self.out is None:
            return
        document = {
            "settings": self.settings,
            "environments": self.environments,
            "rows": [asdict(row) for row in self.rows],
        }
        text = json.dumps(document, indent=1) + "\n"
        write_atomically(self.out, lambda path: path.write_text(text))


def read_report(path: str | Path) -> tuple[dict[str, Any], list[dict[str, str]], list[Row]]:
    """Settings, environments and rows of a file that ``evaluate`` wrote.

    Raises:
        ValueError: a file of another kind.
        OSError: no such file.
    """
    try:
        document = json.loads(Path(path).read_text())
        rows = [
            Row(**{**row, **{name: row[name] and Share(**row[name]) for name in ("ca", "pa", "asr")}})
            for row in document["rows"]
        ]
        return document["settings"], document["environments"], rows
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"results must be a file that evaluate wrote, got {path}: {error}. Name another.") from error
