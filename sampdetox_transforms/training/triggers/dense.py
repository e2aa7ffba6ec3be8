"""Dense triggers: (the images concerned, all images, generator) -> images with the trigger."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import functional

from sampdetox_transforms.training.triggers.contents import CONTENTS, colours, other_images
from sampdetox_transforms.training.triggers.draw import Every, Images, Table, mixture, pixel_grid, smooth_noise, uniform
from sampdetox_transforms.training.triggers.hidden_bits import Encoder, hidden_bits
from sampdetox_transforms.training.triggers.pictures import Pictures, mixed
from sampdetox_transforms.training.triggers.shapes import LARGE_SHAPES


def dense_triggers(
    images: Images, generator: Generator, pictures: Pictures | None = None, encoders: Sequence[Encoder] = ()
) -> Images:
    """A trigger all over each image. Where there are pictures, more than half of the blends are of them."""
    table = with_encoders(DENSE, encoders, LEARNT)
    if pictures is not None:
        table = (*table[1:], (blends, BLENDS - MIXED), (partial(mixed, pictures=pictures), MIXED))
    return mixture(table, images, generator).clamp(0, 1)


def fine_triggers(images: Images, generator: Generator, encoders: Sequence[Encoder] = ()) -> Images:
    """A trigger all over each image that is faint and fine, as noise is."""
    return mixture(with_encoders(FINE, encoders, LEARNT_FINE), images, generator).clamp(0, 1)


def with_encoders(table: Table, encoders: Sequence[Encoder], share: float) -> Table:
    """Where there are encoders, hidden bits take a share, half of it from either kind of random filters."""
    if not encoders:
        return table
    less = {encodings: share / 2, grey_details: share / 2}
    others = tuple((function, weight - less.get(function, 0)) for function, weight in table)
    return (*others, (partial(hidden_bits, encoders=encoders), share))


def waves(images: Images, every: Every, generator: Generator) -> Images:
    """A periodic signal, sine or square, along any direction, 8 to 45 grey levels high."""
    rows, columns, scale = pixel_grid(images)
    n, c = images.shape[:2]
    turn = uniform((n, 1, 1, 1), 0, math.pi, images, generator)
    axis = uniform((n, 1, 1, 1), 0, 1, images, generator)
    turn = torch.where(axis < 0.3, 0, torch.where(axis < 0.6, math.pi / 2, turn))
    period = 32 / uniform((n, 1, 1, 1), 1, 14, images, generator) * scale
    phase = uniform((n, 1, 1, 1), 0, 2 * math.pi, images, generator)
    wave = (2 * math.pi * (rows * turn.sin() + columns * turn.cos()) / period + phase).sin()
    wave = torch.where(uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.25, wave.sign(), wave)
    tint = uniform((n, c, 1, 1), -1, 1, images, generator)
    tint = torch.where(uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.7, 1, tint)
    return images + uniform((n, 1, 1, 1), 8, 45, images, generator) / 255 * tint * wave


def blends(images: Images, every: Every, generator: Generator) -> Images:
    """Mixed with 8 to 35 % of a picture: another image, or coloured shapes on a coloured ground."""
    n = len(images)
    drawing = mixture(CONTENTS, images, generator)
    for _ in range(4):
        drawing = torch.lerp(drawing, colours(images, generator), mixture(LARGE_SHAPES, images, generator))
    picture = other_images(images, every, generator, 0.4, 1.5)
    picture = torch.where(uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.6, picture, drawing)
    return torch.lerp(images, picture, uniform((n, 1, 1, 1), 0.08, 0.35, images, generator))


def noise_patterns(images: Images, every: Every, generator: Generator) -> Images:
    """Blended with, or plus, random pixels, their range 3 to 30 % of all grey levels."""
    n = len(images)
    pattern = uniform(tuple(images.shape), 0, 1, images, generator)
    pattern = torch.where(uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.3, pattern.round(), pattern)
    mixed = torch.lerp(images, pattern, uniform((n, 1, 1, 1), 0.03, 0.3, images, generator))
    added = images + (pattern - 0.5) * uniform((n, 1, 1, 1), 0.03, 0.3, images, generator)
    return torch.where(uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.5, mixed, added)


def smooth_patterns(images: Images, every: Every, generator: Generator) -> Images:
    """Plus or minus a smooth pattern of 10 to 60 grey levels, of one colour (tint, vignette) or of many."""
    n, c = images.shape[:2]
    pattern = smooth_noise(images, c, generator, 2, 10)
    one = uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.4
    pattern = torch.where(one, pattern[:, :1] * uniform((n, c, 1, 1), 0, 1, images, generator), pattern)
    sign = torch.where(uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.7, 1.0, -1.0)
    return images + sign * pattern * uniform((n, 1, 1, 1), 10, 60, images, generator) / 255


def fewer_colours(images: Images, every: Every, generator: Generator) -> Images:
    """4 to 16 values a channel; half of them dithered with random noise."""
    steps = uniform((len(images), 1, 1, 1), 3, 16, images, generator).floor()
    dither = uniform(tuple(images.shape), -0.5, 0.5, images, generator)
    strength = (2 * uniform((len(images), 1, 1, 1), -0.5, 0.5, images, generator)).clamp(min=0)
    return (images * steps + strength * dither).round() / steps


def warps(images: Images, every: Every, generator: Generator) -> Images:
    """Pixels moved by up to .4 to 2 pixels along a smooth random field."""
    n, (height, width) = len(images), images.shape[-2:]
    field = smooth_noise(images, 2, generator, 3, 6) * 2 - 1
    reach = uniform((n, 1, 1, 1), 0.4, 2, images, generator)
    identity = functional.affine_grid(
        torch.eye(2, 3, device=images.device, dtype=images.dtype).expand(n, 2, 3), list(images.shape), True
    )
    moved = identity + (field * reach).permute(0, 2, 3, 1) * 2 / torch.tensor([width, height], device=images.device)
    return functional.grid_sample(images, moved, padding_mode="reflection", align_corners=True)


def encodings(images: Images, every: Every, generator: Generator) -> Images:
    """Plus what two random 3x3 convolutions make of the image and a coarse random grid: 1 to 8 grey levels strong."""
    residual = convolved(images, images.shape[1], generator, 4, 16)
    residual = standardised(residual).clamp(-3, 3)
    return images + residual * uniform((len(images), 1, 1, 1), 1, 8, images, generator) / 255


def grey_details(images: Images, every: Every, generator: Generator) -> Images:
    """Plus the fine part of what such convolutions make of this image or another, the same in every channel, as ISSBA's
    encoder hides bits: 3 to 14 grey levels strong, less in images of little contrast."""
    n = len(images)
    own = uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.5
    source = torch.where(own, images, other_images(images, every, generator, 0.4, 1.2))
    residual = convolved(source, 1, generator, 8, 32)
    small, large = (functional.avg_pool2d(residual, k, 1, k // 2, count_include_pad=False) for k in (3, 7))
    coarse = torch.lerp(small, large, uniform((n, 1, 1, 1), 0, 1, images, generator).round())
    residual = standardised(residual - coarse).clamp(-6, 6)
    contrast = images.std(dim=(1, 2, 3), keepdim=True)
    return images + residual * uniform((n, 1, 1, 1), 3, 14, images, generator) / 255 * (6 * contrast).clamp(max=1)


def convolved(images: Images, planes: int, generator: Generator, low: int, high: int) -> Tensor:
    """(n, planes, h, w): two random 3x3 convolutions, other ones for each image, of it and a random grid of ``low`` to
    ``high`` points a side."""
    n, _, height, width = images.shape
    x, hidden = torch.cat([images, smooth_noise(images, 1, generator, low, high)], dim=1) - 0.5, 8

    def filtered(x: Tensor, planes: int) -> Tensor:
        weight = uniform((n * planes, x.shape[1], 3, 3), -1, 1, images, generator)
        padded = functional.pad(x.reshape(1, -1, height, width), (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(padded, weight, groups=n).reshape(n, planes, height, width)

    return filtered(filtered(x, hidden).relu(), planes)


def standardised(residual: Tensor) -> Tensor:
    """Each plane with a mean of 0, each image with a standard deviation of 1."""
    residual = residual - residual.mean(dim=(2, 3), keepdim=True)
    return residual / residual.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)


BLENDS, MIXED = 0.38, 0.22  # shares of all triggers: blends, and those of them that are of given pictures

LEARNT, LEARNT_FINE = 0.14, 0.3  # shares of hidden bits, where there are encoders

OTHERS = (
    (waves, 0.02),
    (noise_patterns, 0.05),
    (smooth_patterns, 0.17),
    (fewer_colours, 0.05),
    (encodings, 0.1),
    (grey_details, 0.2),
    (warps, 0.03),
)

DENSE = ((blends, BLENDS), *OTHERS)

FINE = ((noise_patterns, 0.15), (encodings, 0.25), (grey_details, 0.5), (fewer_colours, 0.1))
