"""Train the restoring network for photographs: it takes noise away, fills holes, and gives an image without a dense
trigger; which of the three it is asked for it is told with each image (``networks.photographs``)."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from sampdetox_transforms.networks.photographs import restoring_network, told
from sampdetox_transforms.networks.push_pull import push_pull
from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.loop import Progress, silent
from sampdetox_transforms.training.photo_data import PhotoCrops, whole
from sampdetox_transforms.training.photo_run import train_photo_network
from sampdetox_transforms.training.triggers.draw import choose, mixture, uniform
from sampdetox_transforms.training.triggers.local import erasures
from sampdetox_transforms.training.triggers.photographs import DENSE

RESTORING = "restoring.safetensors"
SIGMAS = (0.01, 0.3)  # std of the noise beside [-1, 1]; drawn evenly on a logarithmic scale


class RestoringBatch(NamedTuple):
    """What a step sees and should say; (b, 3, h, w) in [-1, 1].

    Attributes:
        x: images with noise, with their holes filled smoothly, or with a dense trigger.
        mask: (b, 1, h, w), 1 in holes.
        clean: the images.
        told: (b, 3), what the network is told.
        weight: (b, 1, h, w), how much an error counts.
    """

    x: Tensor
    mask: Tensor
    clean: Tensor
    told: Tensor
    weight: Tensor


def train_photo_restoring(
    config: PhotoTrainingConfig,
    out: str | Path,
    *,
    network: nn.Module | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Path:
    """Train, or resume, and return ``out``, which gains ``restoring.safetensors``: averaged weights, in float16.

    Args:
        network: as ``restoring_network``, which it is if None.
        progress: called after each step with "restoring", the steps done, all steps and the loss.

    Raises:
        ValueError: settings that do not fit, a folder without images, a finished ``out``, or a state of other settings.
        OSError: data that cannot be read, or ``out`` that cannot be written.
    """
    return train_photo_network(
        "restoring",
        config,
        out,
        make=lambda: restoring_network() if network is None else network,
        batch=restoring_batch,
        loss=restoring_loss,
        device=device,
        progress=progress,
    )


def restoring_batch(
    crops: PhotoCrops, sizes: tuple[tuple[int, int, float], ...], generator: Generator
) -> RestoringBatch:
    """Two in five images with noise, two in five with a hole, the others with a dense trigger."""
    side, n, _ = sizes[int(choose(1, [share for *_, share in sizes], torch.empty(0), generator))]
    images = crops.draw(n, side, generator)
    clean, x, mask = images * 2 - 1, images * 2 - 1, torch.zeros(n, 1, side, side, dtype=torch.bool)
    number = torch.arange(n)
    noisy, dense = number < 0.4 * n, number >= 0.8 * n
    holed = ~noisy & ~dense
    low, high = (torch.tensor(value).log().item() for value in SIGMAS)
    sigma = torch.where(noisy, uniform((n,), low, high, images, generator).exp(), 0)
    x = x + sigma[:, None, None, None] * torch.randn(x.shape, generator=generator)
    mask[holed] = holes(images[holed], generator)
    x = torch.where(mask, push_pull(x, mask), x)
    x[dense] = mixture(DENSE, images[dense], generator).clamp(0, 1) * 2 - 1
    described = torch.where(dense[:, None], told(sigma, True), told(sigma, False))
    return RestoringBatch(x, mask.to(x), clean, described, weights(sigma, mask, dense))


def holes(images: Float[Tensor, "n c h w"], generator: Generator) -> Tensor:
    """Those of ``erasures``, a pixel wider at most: masks of a search are seldom exact."""
    mask = erasures(images, generator)
    too_large = mask.float().mean(dim=(1, 2, 3), keepdim=True) > 0.4
    top = whole(0, images.shape[-2] // 2, generator)
    square = torch.zeros_like(mask)
    square[..., top : top + images.shape[-2] // 5, top : top + images.shape[-1] // 5] = True
    return torch.where(too_large, square, mask)


def weights(sigma: Float[Tensor, " n"], mask: Tensor, dense: Tensor) -> Float[Tensor, "n 1 h w"]:
    """Errors beside the noise that there was; in holes only, each hole as much as another; and of dense triggers."""
    noise = torch.where(sigma > 0, 0.7 / sigma.clamp(min=1e-6), 0)[:, None, None, None]
    hole = mask.float() / mask.float().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
    return noise + 1.5 * hole + 4 * dense.float()[:, None, None, None]


def restoring_loss(network: nn.Module, batch: RestoringBatch) -> Tensor:
    """The mean error, weighted. Absolute errors blur what cannot be known less than squared ones."""
    change = network(torch.cat([batch.x, batch.mask], dim=1), batch.told).float()
    return ((batch.x + change - batch.clean).abs() * batch.weight).mean()
