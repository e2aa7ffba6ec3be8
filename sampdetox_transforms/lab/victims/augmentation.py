"""What happens to a batch of training images at random, all in the tensors of the batch."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional

from sampdetox_transforms.lab.victims.config import VictimConfig

Batch = Float[Tensor, "b c h w"]


def augmented(x: Batch, config: VictimConfig, generator: Generator) -> Batch:
    """Noised, mirrored, brightened, turned and cropped, each image at random, as far as the settings ask for it."""
    if config.robust_noise:
        noise = torch.randn(x.shape, generator=generator) / 2  # n beside an image in [-1, 1]; half that in [0, 1]
        noised = (1 - config.robust_noise) * (x - 0.5) + 0.5 + config.robust_noise * noise
        x = torch.where(a_half(x, generator), noised, x)
    if config.flip:
        x = torch.where(a_half(x, generator), x.flip(-1), x)
    if config.brightness:
        x = (x * (1 + config.brightness * between(x, generator)[:, None, None, None])).clamp(0, 1)
    if config.rotate:
        x = rotated(x, config.rotate * between(x, generator))
    return random_crops(x, config.crop, generator)


def rotated(x: Batch, degrees: Float[Tensor, " b"]) -> Batch:
    """Each image turned by its own angle around its middle, counter-clockwise, bilinearly, with zeros around it."""
    sine, cosine = (degrees * (math.pi / 180)).sin(), (degrees * (math.pi / 180)).cos()
    height, width = x.shape[-2:]
    zero = torch.zeros_like(sine)
    across = torch.stack([cosine, -sine * (height / width), zero], dim=1)
    down = torch.stack([sine * (width / height), cosine, zero], dim=1)
    grid = functional.affine_grid(torch.stack([across, down], dim=1), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def random_crops(x: Batch, padding: int, generator: Generator) -> Batch:
    """Each image, padded with zeros, cut at its own random place."""
    if padding == 0:
        return x
    height, width = x.shape[-2:]
    padded = functional.pad(x, [padding] * 4).permute(0, 2, 3, 1)
    offsets = torch.randint(2 * padding + 1, (2, len(x), 1), generator=generator)
    rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
    index = torch.arange(len(x))[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def a_half(x: Batch, generator: Generator) -> Tensor:
    """Half of the images, at random: (b, 1, 1, 1)."""
    return (torch.rand(len(x), generator=generator) < 0.5)[:, None, None, None]


def between(x: Batch, generator: Generator) -> Float[Tensor, " b"]:
    """A number in [-1, 1) for each image."""
    return torch.rand(len(x), generator=generator) * 2 - 1
