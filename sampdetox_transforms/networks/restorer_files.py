"""A folder <-> the search networks and their calibration."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from sampdetox_transforms._common import is_number, is_whole, write_atomically
from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.networks.light_denoiser import LightDenoiser
from sampdetox_transforms.networks.restorer import Specialists
from sampdetox_transforms.networks.safe_files import (
    WeightsFileError,
    filled,
    read_json,
    read_state,
)
from sampdetox_transforms.networks.unet_config import brief

RESTORER_FOLDER = Path(__file__).parent / "weights" / "restorer"

RESTORER, CALIBRATION = "restorer.safetensors", "calibration.json"

RESTORER_SHA256 = {
    RESTORER: "333b6ec2e273c7edc8ddbb44682ae96771137889fbaefd091b0135b8ac280188",
    CALIBRATION: "e542ec3f859781c9c700a135d8a7c13ddf3f5d2901b581f5a088bf77c939328b",
}

MAX_POINTS = 100_000  # of a table of quantiles; ``calibrate`` makes 401


def load_restorer(
    folder: str | Path = RESTORER_FOLDER, *, sha256: Mapping[str, str] | None = None
) -> tuple[Specialists, Calibration]:
    """The networks in the package, or those that ``save_restorer`` wrote, and the calibration that is stored with it.

    Each call makes networks of its own; a file that has not changed is read and hashed once.

    Args:
        sha256: what each of both files must have, by its name; the package's own are pinned.

    Raises:
        WeightsFileError: a file is missing, damaged, not finite or not the pinned one.
        ValueError: weights of other networks.
    """
    folder = Path(folder)
    pins = sha256 or (RESTORER_SHA256 if folder == RESTORER_FOLDER else {})
    for name in (RESTORER, CALIBRATION):
        if not (folder / name).is_file():
            raise WeightsFileError(f"{folder} must hold {RESTORER} and {CALIBRATION}, got no {name}. Write both anew.")
    calibration = load_calibration(folder / CALIBRATION, sha256=pins.get(CALIBRATION, ""))
    state = read_state(folder / RESTORER, _unfilled, fitting="the search networks", sha256=pins.get(RESTORER, ""))
    restorer = filled(_unfilled(state), state)
    restorer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return restorer.eval().requires_grad_(False), calibration


def save_restorer(folder: str | Path, restorer: nn.Module, calibration: Calibration) -> Path:
    """Write networks, in float16, and calibration into one folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().half().contiguous() for name, value in restorer.state_dict().items()}
    write_atomically(folder / RESTORER, lambda path: save_file(state, path))
    save_calibration(folder / CALIBRATION, calibration)
    return folder


def load_calibrations(path: str | Path, *, sha256: str = "") -> Calibrations:
    """Read what ``save_calibrations`` wrote, or a file of one calibration, which counts as that of small images.

    Raises:
        WeightsFileError: no such file, another hash, or content that is no calibration.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsFileError(
            f"{path} must be a calibration file, got none there. Write one with 'sampdetox calibrate FOLDER -o FILE'."
        )
    content = read_json(path, sha256)
    parts = {"small": content} if set(content) & set(RULES) else content
    unknown = sorted(set(parts) - {"small", "large", "medium"})
    if unknown or not any(isinstance(part, dict) for part in parts.values()):
        raise WeightsFileError(
            f"{path} must hold a calibration of 'small', 'medium' or 'large' images, got {brief(unknown or parts)}. "
            "Write one with 'sampdetox calibrate FOLDER -o FILE'."
        )
    return Calibrations(**{name: None if part is None else _calibration(path, part) for name, part in parts.items()})


def save_calibrations(path: str | Path, calibrations: Calibrations) -> None:
    """Write a JSON file that appears whole or not at all; quantiles are kept to five digits."""

    def rounded(part: Calibration) -> dict[str, Any]:
        return asdict(part) | {name: [round(value, 5) for value in getattr(part, name)] for name in ("local", "dense")}

    content = {name: part and rounded(part) for name, part in vars(calibrations).items()}
    write_atomically(Path(path), lambda part: part.write_text(json.dumps(content) + "\n", encoding="utf-8"))


def load_calibration(path: str | Path, *, sha256: str = "") -> Calibration:
    """The calibration of small images in a file; raises what ``load_calibrations`` raises."""
    found = load_calibrations(path, sha256=sha256).small
    if found is None:
        raise WeightsFileError(f"{path} must hold a calibration of small images, got none. Calibrate on such images.")
    return found


def save_calibration(path: str | Path, calibration: Calibration) -> None:
    """Write the calibration of small images."""
    save_calibrations(path, Calibrations(calibration))


def _calibration(path: Path, content: Any) -> Calibration:
    if not isinstance(content, dict):
        raise WeightsFileError(f"{path}: a calibration must be a JSON object, got {brief(content)}. Write it anew.")
    for name, (allowed, rule) in RULES.items():
        if name not in content or not allowed(content[name]):
            got = brief(content[name]) if name in content else "none"
            raise WeightsFileError(f"{path}: {name} must be {rule}, got {got}. Write it anew with save_calibrations.")
    unknown = sorted(set(content) - set(RULES))
    if unknown:
        raise WeightsFileError(f"{path} may hold only {list(RULES)}, got {brief(unknown)} as well. Write it anew.")
    try:
        return Calibration(**{**content, "local": tuple(content["local"]), "dense": tuple(content["dense"])})
    except ValueError as error:
        raise WeightsFileError(f"{path}: {error} Write it anew.") from error


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and 2 <= len(value) <= MAX_POINTS and all(is_number(v, -1e9, 1e9) for v in value)


TABLE = f"a list of 2 to {MAX_POINTS} ascending numbers"

RULES = {
    "local": (_is_table, TABLE),
    "dense": (lambda value: value == [] or _is_table(value), f"{TABLE}, or an empty one"),
    "false_alarm_rate": (lambda value: is_number(value, 0, 1), "a number in (0, 1)"),
    "images": (lambda value: is_whole(value, 0, 2**53), "a whole number of 0 or more"),
    "data": (lambda value: isinstance(value, str), "a text"),
}


def _unfilled(names: Iterable[str]) -> Specialists:
    """Networks without values, for weights of these names: the light denoiser may be missing."""
    with torch.device("meta"):
        return Specialists(light=LightDenoiser() if any(name.startswith("light.") for name in names) else None)
