"""One training run of a network for photographs, whichever it is: crops, batches, the state, the averaged weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.loop import Batches, Progress, fit, to_device
from sampdetox_transforms.training.photo_data import PhotoCrops, crops_of
from sampdetox_transforms.training.state import STATE

Sizes = tuple[tuple[int, int, float], ...]


def train_photo_network(
    name: str,
    config: PhotoTrainingConfig,
    out: str | Path,
    *,
    make: Callable[[], nn.Module],
    batch: Callable[[PhotoCrops, Sizes, Generator], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    device: str | torch.device,
    progress: Progress,
) -> Path:
    """Train, or resume, and return ``out``, which gains NAME.safetensors: the averaged weights, in float16.

    Args:
        make: gives the network to train; called with the seed set.
        batch: the images of a step.
        loss: one number for the network and a batch.

    Raises:
        ValueError: settings that do not fit, a folder without images, a finished ``out``, or a state of other settings.
        OSError: data that cannot be read, or ``out`` that cannot be written.
    """
    out = Path(out)
    crops, file = crops_of(config), out / f"{name}.safetensors"
    if file.exists() and not (out / STATE).exists():
        raise ValueError(
            f"out must be a new folder, or that of an unfinished run, got {out} with finished weights. Name another."
        )
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    average, _ = fit(
        make().to(device).to(memory_format=torch.channels_last).train(),  # pyright: ignore[reportCallIssue]
        Batches(partial(batch, crops, config.sizes), config),
        lambda network, batch: loss(network, to_device(batch, device)),
        config,
        out / STATE,
        device=device,
        progress=lambda step, value: progress(name, step, config.steps, value),
    )
    weights = {key: value.detach().cpu().half().contiguous() for key, value in average.items()}
    write_atomically(file, lambda path: save_file(weights, path))
    (out / STATE).unlink(missing_ok=True)
    return out
