"""Make all that the default preset needs, for one's own kind of images: denoiser, search networks, thresholds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sampdetox_transforms.networks.checkpoints import LEVELS
from sampdetox_transforms.training import denoiser as denoiser_training
from sampdetox_transforms.training import photo_networks
from sampdetox_transforms.training import restorer as restorer_training
from sampdetox_transforms.training.config import (
    PhotoTrainingConfig,
    RestorerTrainingConfig,
    RunConfig,
    TrainingConfig,
)
from sampdetox_transforms.training.loop import Progress, silent

RESTORER_FOLDER = "restorer"


def train_all(
    data: Sequence[str | Path],
    out: str | Path,
    *,
    denoiser: Mapping[str, Any] | None = None,
    restorer: Mapping[str, Any] | None = None,
    photographs: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    init: str | Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Train all networks on image folders and calibrate them, or resume, and return ``out``.

    ``load_denoiser(out)`` reads the denoiser and ``load_restorer(out / "restorer")`` the search networks with their
    thresholds. Started again with the same settings, a killed run goes on, and does not repeat what is finished.

    Args:
        denoiser: settings of ``TrainingConfig`` other than the default ones.
        restorer: settings of ``RestorerTrainingConfig`` other than the default ones.
        photographs: the same of ``PhotoTrainingConfig``; None leaves the networks for images above 48 pixels out.
        init: weights to start the denoiser from.
        progress: called after each step with the network's name ("denoiser", "local", "dense", "light",
            "search" or "restoring"), the steps done, the steps of all networks and the loss.

    Raises:
        ValueError: settings that do not fit, too few images, or a folder of another run.
        OSError: data that cannot be read, or ``out`` that cannot be written.
    """
    out, folders = Path(out), tuple(map(str, data))
    first = TrainingConfig(data=folders, **(denoiser or {}))
    second = RestorerTrainingConfig(data=folders, **(restorer or {}))
    restorer_training.split(second)  # too few images is said before hours of training
    third = None if photographs is None else PhotoTrainingConfig(data=folders, **photographs)
    total = steps_of_all(first, second, third)
    if not is_finished(out, "the denoiser", denoiser_training.is_finished(out), LEVELS, first):
        denoiser_training.train(
            first, out, device=device, init=init, progress=lambda step, loss: progress("denoiser", step, total, loss)
        )
    below = out / RESTORER_FOLDER
    if not is_finished(
        below, "the search networks", restorer_training.is_finished(below), restorer_training.SETTINGS, second
    ):
        restorer_training.train_restorer(
            second,
            below,
            device=device,
            progress=lambda name, step, _, loss: progress(name, first.steps + step, total, loss),
        )
    if third is not None and not is_finished(
        below, "the networks of photographs", photo_networks.is_finished(below), photo_networks.SETTINGS, third
    ):
        before = steps_of_all(first, second)
        photo_networks.train_photographs(
            third,
            below,
            device=device,
            progress=lambda name, step, _, loss: progress(name, before + step, total, loss),
        )
    return out


def steps_of_all(
    denoiser: TrainingConfig, restorer: RestorerTrainingConfig, photographs: PhotoTrainingConfig | None = None
) -> int:
    """Steps of all networks: the denoiser, those for small images with their encoders, and two for photographs."""
    return denoiser.steps + restorer_training.all_steps(restorer) + 2 * (photographs.steps if photographs else 0)


def is_finished(folder: Path, what: str, finished: bool, settings: str, config: RunConfig) -> bool:
    """Whether a folder holds the finished result of these settings.

    Raises:
        ValueError: the finished result of others.
    """
    if not finished:
        return False
    found = json.loads((folder / settings).read_text())["training"]
    wanted = json.loads(json.dumps(config.record()))
    differ = sorted(key for key, value in wanted.items() if found.get(key) != value)
    if differ:
        raise ValueError(
            f"out must be a new folder, or that of a run with the same settings, got {folder} with {what} of another "
            f"{', '.join(differ)}. Name another folder, or repeat the settings."
        )
    return True
