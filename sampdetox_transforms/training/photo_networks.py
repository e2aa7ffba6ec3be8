"""Make all that images above 48 pixels need: both networks for photographs, and thresholds from held-out images."""

import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.v2 import functional

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.calibration import (
    ONLY_LOCAL,
    Calibration,
    Calibrations,
    calibrate,
    images_needed,
    strictest,
)
from sampdetox_transforms.networks.photographs import PHOTOGRAPHS, Photographs, save_photographs
from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.data import held_out
from sampdetox_transforms.training.loop import Progress, silent
from sampdetox_transforms.training.photo_restoring import RESTORING, train_photo_restoring
from sampdetox_transforms.training.photo_search import WEIGHTS, train_photo_search

SETTINGS = "photographs-training.json"  # what the networks of a folder were trained with

SIDES = (64, 256)  # pixels of the shorter side at which images are measured, at least and at most
MEASURED = 400  # images of a folder at most


def train_photographs(
    config: PhotoTrainingConfig,
    out: str | Path,
    *,
    networks: Photographs | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Path:
    """Train both networks, measure thresholds, or resume, and return ``out``, where ``load_photographs`` finds them.

    Args:
        config: of each of the two networks.
        networks: to start from; random weights if None.
        progress: called with "search" or "restoring", the steps done of both, the steps of both, and the loss.

    Raises:
        ValueError: settings that do not fit, too few images, or a folder of another run.
        OSError: data that cannot be read, or ``out`` that cannot be written.
    """
    out, total = Path(out), 2 * config.steps
    measured = held_out(config.data, config.held_out, images_needed(config.false_alarm_rate, ONLY_LOCAL))
    if (out / PHOTOGRAPHS).exists():
        return out
    torch.manual_seed(config.seed)
    networks = Photographs() if networks is None else networks
    search, restoring = out / "search", out / "restoring"
    if not (search / WEIGHTS).exists():
        train_photo_search(
            config,
            search,
            network=networks.search,
            device=device,
            progress=lambda name, step, _, loss: progress(name, step, total, loss),
        )
    if not (restoring / RESTORING).exists():
        train_photo_restoring(
            config,
            restoring,
            network=networks.restoring,
            device=device,
            progress=lambda name, step, _, loss: progress(name, config.steps + step, total, loss),
        )
    networks.search.load_state_dict({k: v.float() for k, v in load_file(search / WEIGHTS).items()})
    networks.restoring.load_state_dict({k: v.float() for k, v in load_file(restoring / RESTORING).items()})
    networks.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    networks = networks.eval().requires_grad_(False)
    calibrations = measure(networks, measured, config.false_alarm_rate, device)
    record = json.dumps({"training": config.record()}, indent=1) + "\n"
    write_atomically(out / SETTINGS, lambda path: path.write_text(record))
    save_photographs(out, networks, calibrations)
    for folder in (search, restoring):
        shutil.rmtree(folder)
    return out


def is_finished(out: Path) -> bool:
    """Whether a folder holds the networks and what they were trained with."""
    return (out / PHOTOGRAPHS).exists() and (out / SETTINGS).exists()


def measure(
    networks: Photographs, folders: dict[str, list[Path]], false_alarm_rate: float, device: str | torch.device
) -> Calibrations:
    """Thresholds that keep the rate on each of the folders: one for images that are enlarged, one for larger ones."""
    parts: dict[str, list[Calibration]] = {}
    for folder, every in folders.items():
        paths = every[:MEASURED]
        side, data = usual_side(paths), f"{len(paths)} images of {Path(folder).name}"
        seen_by = networks.of_enlarged() if side < networks.least else networks
        found = calibrate(seen_by, squares(paths, side, device), false_alarm_rate=false_alarm_rate, data=data)
        parts.setdefault(seen_by.name, []).append(found)
    large = parts.get("large") or parts["medium"]
    return Calibrations(None, strictest(large), strictest(parts["medium"]) if "medium" in parts else None)


def usual_side(paths: list[Path]) -> int:
    """The median of the shorter sides, in pixels, within ``SIDES``."""
    sides = []
    for path in paths:
        with Image.open(path) as image:
            sides.append(min(image.size))
    return round(min(max(statistics.median(sides), SIDES[0]), SIDES[1]))


def squares(paths: list[Path], side: int, device: str | torch.device) -> Iterator[Float[Tensor, "1 3 s s"]]:
    """The middle of each image, in [-1, 1]."""
    for path in paths:
        with Image.open(path) as image:
            whole = functional.pil_to_tensor(image.convert("RGB"))
        square = functional.resize(functional.center_crop(whole, [min(whole.shape[-2:])] * 2), [side, side])
        yield (square[None].to(device).float() / 127.5 - 1).clamp(-1, 1)
