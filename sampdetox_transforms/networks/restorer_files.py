"""A folder <-> the search networks and their calibration."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.networks.checkpoints import WeightsFileError, verify_sha256
from sampdetox_transforms.networks.restorer import Specialists

RESTORER_FOLDER = Path(__file__).parent / "weights" / "restorer"

RESTORER, CALIBRATION = "restorer.safetensors", "calibration.json"

RESTORER_SHA256 = "ff5c2434410070a8ef4bba5828793602100bd3713fefe4cfdcdbdc94d6feff03"


def load_restorer(folder: str | Path = RESTORER_FOLDER, *, sha256: str = "") -> tuple[Specialists, Calibration]:
    """The networks in the package, or those that ``save_restorer`` wrote, and the calibration that is stored with it.

    The weights must have the given sha256, or, for the package's own, the pinned one.

    Raises:
        WeightsFileError: a file is missing, damaged or not the pinned one.
    """
    folder = Path(folder)
    path = folder / RESTORER
    try:
        expected = sha256 or (RESTORER_SHA256 if folder == RESTORER_FOLDER else "")
        if expected:
            verify_sha256(path, expected)
        restorer, state = Specialists(), load_file(path)
        restorer.load_state_dict({name: value.float() for name, value in state.items()})
        calibration = load_calibrations(folder / CALIBRATION).small
    except WeightsFileError:
        raise
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        message = (
            f"{folder} must hold {RESTORER} and {CALIBRATION} of the same networks, got: {error}. Write both anew."
        )
        raise WeightsFileError(message) from error
    restorer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return restorer.eval().requires_grad_(False), calibration


def save_restorer(folder: str | Path, restorer: nn.Module, calibration: Calibration) -> Path:
    """Write networks, in float16, and calibration into one folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().half().contiguous() for name, value in restorer.state_dict().items()}
    write_atomically(folder / RESTORER, lambda path: save_file(state, path))
    save_calibrations(folder / CALIBRATION, Calibrations(calibration))
    return folder


def save_calibrations(path: str | Path, calibrations: Calibrations) -> None:
    """Write thresholds as JSON; the file appears whole or not at all."""

    def rounded(value: Any) -> Any:
        return [round(number, 5) for number in value] if isinstance(value, (tuple, list)) else value

    content = {
        name: part and {key: rounded(value) for key, value in part.items()}
        for name, part in asdict(calibrations).items()
    }
    write_atomically(Path(path), lambda part: part.write_text(json.dumps(content) + "\n"))


def load_calibrations(path: str | Path) -> Calibrations:
    """Read what ``save_calibrations`` wrote.

    Raises:
        WeightsFileError: no such file, or something else in it.
    """
    try:
        return Calibrations.of_dict(json.loads(Path(path).read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{path} must be a calibration, got: {error}. Write one with 'sampdetox calibrate FOLDER -o FILE'."
        raise WeightsFileError(message) from error
