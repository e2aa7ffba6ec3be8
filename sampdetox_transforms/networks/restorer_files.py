"""A folder <-> the search networks and their calibration."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.calibration import Calibration
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
        calibration = Calibration.load(folder / CALIBRATION)
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
    write_atomically(folder / CALIBRATION, calibration.save)
    return folder
