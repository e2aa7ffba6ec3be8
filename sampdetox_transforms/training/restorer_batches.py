"""What a step of each network of small images sees, and should say.

A step of "local" searches 72 images (24 clean, 20 with a local trigger, 28 with a dense one) and fills an erased region
of 12 others; one of "dense" searches 72 (12 clean, 12 with a local trigger, 48 with a dense one); one of "light" takes
noise away from 72, of which six are grey and 30 carry a faint dense trigger.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from sampdetox_transforms.networks.light_denoiser import SIGMAS
from sampdetox_transforms.training.data import ImageCrops
from sampdetox_transforms.training.drawings import crops_and_drawings
from sampdetox_transforms.training.triggers.dense import dense_triggers, fine_triggers
from sampdetox_transforms.training.triggers.draw import uniform
from sampdetox_transforms.training.triggers.hidden_bits import Encoder
from sampdetox_transforms.training.triggers.local import erasures, local_triggers
from sampdetox_transforms.training.triggers.pictures import Pictures


def draw(crops: ImageCrops, n: int, generator: Generator, drawn: float = 0.0) -> tuple[Tensor, Tensor]:
    """``n`` images in [0, 1], some of them drawings, varied at random, and the deviation of noise to add to each."""
    x = crops_and_drawings(crops, n, drawn, generator)
    brighten, gain, shift, by, blur, noise = uniform((6, n, 1, 1, 1), 0, 1, x, generator)
    x = x * torch.where(brighten < 0.3, 0.6 + 0.9 * gain, 1) + torch.where(shift < 0.2, 0.3 * (by - 0.5), 0)
    x = x.clamp(0, 1)
    x = torch.where(blur < 0.06, functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False), x)
    return x, torch.where(noise < 0.1, 0.3 * noise, 0)


def noised_and_rounded(images: Tensor, noise: Tensor, generator: Generator) -> Tensor:
    """Images with noise of the given standard deviations, half of them in whole 255ths."""
    images = (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    rounded = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(rounded, (images * 255).round() / 255, images)


class LocalBatch(NamedTuple):
    """What a step of "local" sees and should say: images to be searched, then images to be filled.

    Attributes:
        x: (s + f, c, h, w) in [-1, 1].
        erased: (s + f, 1, h, w), what is to be filled; nothing of the first s.
        target: the images as they were, in [-1, 1].
        region: (s, 1, h, w), the pixels of a local trigger.
        unseen: those of them that the trigger did not change, such as a white patch on white.
        is_dense: (s,), 1 where the image carries a dense trigger.
    """

    x: Tensor
    erased: Tensor
    target: Tensor
    region: Tensor
    unseen: Tensor
    is_dense: Tensor


def local_batch(
    searched: ImageCrops, filled: ImageCrops, n: int, generator: Generator, drawn: float = 0.0
) -> LocalBatch:
    """A third of ``n`` images clean, seven in eighteen with a dense trigger, the rest with a local one; n / 6 more to
    be filled."""
    clean, noise = draw(searched, n, generator, drawn)
    images, region = clean.clone(), torch.zeros_like(clean[:, :1], dtype=torch.bool)
    is_dense = torch.arange(n) >= n - round(n * 7 / 18)
    local = ~is_dense & (torch.arange(n) >= n // 3)
    images[local], region[local] = local_triggers(clean[local], generator)
    images[is_dense] = dense_triggers(clean[is_dense], generator)
    images = noised_and_rounded(images, noise, generator)
    whole, _ = draw(filled, n // 6, generator)
    erased = torch.cat([torch.zeros_like(region), erasures(whole, generator)])
    unseen = region & ((images - clean).abs().amax(dim=1, keepdim=True) <= 5 / 255)
    x, target = torch.cat([images, whole]) * 2 - 1, torch.cat([clean, whole]) * 2 - 1
    return LocalBatch(x, erased, target, region, unseen, is_dense.float())


class DenseBatch(NamedTuple):
    """What a step of "dense" sees and should say: ``x`` and ``target`` in [-1, 1], and which carry a dense trigger."""

    x: Tensor
    target: Tensor
    is_dense: Tensor


def dense_batch(
    searched: ImageCrops,
    n: int,
    generator: Generator,
    drawn: float = 0.0,
    pictures: Pictures | None = None,
    encoders: Sequence[Encoder] = (),
) -> DenseBatch:
    """Two thirds of ``n`` images with a dense trigger; half of the others with a local one."""
    clean, noise = draw(searched, n, generator, drawn)
    images, other = clean.clone(), n - 2 * n // 3
    images[other // 2 : other] = local_triggers(clean[other // 2 : other], generator)[0]
    images[other:] = dense_triggers(clean[other:], generator, pictures, encoders)
    images = noised_and_rounded(images, noise, generator)
    return DenseBatch(images * 2 - 1, clean * 2 - 1, (torch.arange(n) >= other).float())


class LightBatch(NamedTuple):
    """Images in [-1, 1], with the noise that is added to them.

    Attributes:
        x: (n, c, h, w), the images, some with a trigger.
        target: the images without.
        noise: of a standard deviation of 1.
        sigma: (n,), how much of it is added.
    """

    x: Tensor
    target: Tensor
    noise: Tensor
    sigma: Tensor


def light_batch(
    searched: ImageCrops, n: int, generator: Generator, drawn: float = 0.0, encoders: Sequence[Encoder] = ()
) -> LightBatch:
    """``n`` images; one in twelve is grey, with the same noise in each channel, as grey images get it.

    Five in twelve carry a trigger that is faint and fine, as noise is, and is to go with it.
    """
    clean, _ = draw(searched, n, generator, drawn)
    noise, grey = torch.randn(clean.shape, generator=generator), torch.arange(n) < n // 12
    clean[grey], noise[grey] = clean[grey].mean(dim=1, keepdim=True), noise[grey, :1]
    low, high = (math.log(sigma) for sigma in SIGMAS)
    sigma = uniform((n,), low, high, clean, generator).exp()
    images, triggered = clean.clone(), torch.arange(n) >= n - n * 5 // 12
    images[triggered] = fine_triggers(clean[triggered], generator, encoders)
    return LightBatch(images * 2 - 1, clean * 2 - 1, noise, sigma)
