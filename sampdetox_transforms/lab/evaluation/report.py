"""The JSON file that rows of victims behind defenses are kept in."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sampdetox_transforms.lab.evaluation.rows import Row
from sampdetox_transforms.lab.evaluation.sheet import Sheet, read_sheet
from sampdetox_transforms.lab.metrics import Share


class Report:
    """Rows of results, and the file that holds them: whole after every row, or not changed.

    Attributes:
        settings: what all rows share: n, seed, and what the caller adds.
        environments: hardware and versions that rows were measured on; ``Row.environment`` is an index into them.
        rows: the rows.
    """

    def __init__(self, out: str | Path | None, settings: Mapping[str, Any], device: str | torch.device = "cpu"):
        self.sheet = Sheet(out, settings, device)
        self.settings, self.environments = self.sheet.settings, self.sheet.environments
        self.rows = _rows(self.sheet.rows, out)

    @property
    def done(self) -> set[tuple[str, str]]:
        return {row.key for row in self.rows}

    def add(self, row: Row) -> None:
        self.rows += _rows([self.sheet.add(asdict(row))], self.sheet.out)


def read_report(path: str | Path) -> tuple[dict[str, Any], list[dict[str, str]], list[Row]]:
    """Settings, environments and rows of a file that ``evaluate`` wrote.

    Raises:
        ValueError: a file of another kind.
        OSError: no such file.
    """
    document = read_sheet(path)
    return document["settings"], document["environments"], _rows(document["rows"], path)


def _rows(rows: list[dict[str, Any]], path: object) -> list[Row]:
    def share(value: Any) -> Share | None:
        return value if value is None or isinstance(value, Share) else Share(**value)

    try:
        return [Row(**{**row, **{name: share(row[name]) for name in ("ca", "pa", "asr")}}) for row in rows]
    except (KeyError, TypeError) as error:
        raise ValueError(f"results must be a file that evaluate wrote, got {path}: {error}. Name another.") from error
