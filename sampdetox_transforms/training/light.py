"""Train the denoiser of the light stage for small images: little noise, and nothing else."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from sampdetox_transforms.networks.light import SIGMAS
from sampdetox_transforms.networks.photographs import restoring_network, told
from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.loop import Progress, silent
from sampdetox_transforms.training.photo_data import PhotoCrops
from sampdetox_transforms.training.photo_run import Sizes, train_photo_network
from sampdetox_transforms.training.triggers.draw import choose, uniform

WEIGHTS = "light.safetensors"


class LightBatch(NamedTuple):
    """What a step sees and should say.

    Attributes:
        x: (b, 3, h, w), images in [-1, 1] with noise.
        clean: the images.
        told: (b, 3), what the network is told of the noise.
        sigma: (b,), its standard deviation.
    """

    x: Tensor
    clean: Tensor
    told: Tensor
    sigma: Tensor


def train_light(
    config: PhotoTrainingConfig,
    out: str | Path,
    *,
    network: nn.Module | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Path:
    """Train, or resume, and return ``out``, which gains ``light.safetensors``: averaged weights, in float16.

    Args:
        config: ``sizes`` of about 32 pixels.
        network: as ``restoring_network``, which it is if None; that of photographs is a good start.
        progress: called after each step with "light", the steps done, all steps and the loss.

    Raises:
        ValueError: settings that do not fit, a folder without images, a finished ``out``, or a state of other settings.
        OSError: data that cannot be read, or ``out`` that cannot be written.
    """
    return train_photo_network(
        "light",
        config,
        out,
        make=lambda: restoring_network() if network is None else network,
        batch=light_batch,
        loss=light_loss,
        device=device,
        progress=progress,
    )


def light_batch(crops: PhotoCrops, sizes: Sizes, generator: Generator) -> LightBatch:
    """Images with noise of a level that is drawn evenly on a logarithmic scale."""
    side, n, _ = sizes[int(choose(1, [share for *_, share in sizes], torch.empty(0), generator))]
    clean = crops.draw(n, side, generator) * 2 - 1
    low, high = (torch.tensor(value).log().item() for value in SIGMAS)
    sigma = uniform((n,), low, high, clean, generator).exp()
    x = clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=generator)
    return LightBatch(x, clean, told(sigma, False), sigma)


def light_loss(network: nn.Module, batch: LightBatch) -> Tensor:
    """The mean squared error of the noise, in its own unit (Ho et al. 2020, equation 14)."""
    change = network(torch.cat([batch.x, batch.x.new_zeros(batch.x[:, :1].shape)], dim=1), batch.told).float()
    return ((batch.x + change - batch.clean) / batch.sigma[:, None, None, None]).square().mean()
