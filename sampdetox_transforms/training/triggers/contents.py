"""Contents: (the images concerned, all images, generator) -> (n, c, h, w) in [0, 1]."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional

from sampdetox_transforms.training.triggers.draw import Every, Images, choose, pixel_grid, uniform

# Contents: (the images concerned, all images, generator) -> (n, c, h, w) in [0, 1] -----------------------------------


def colours(images: Images, generator: Generator) -> Float[Tensor, "n c 1 1"]:
    """White, black, a grey, a saturated colour or any colour."""
    n, c = images.shape[:2]
    any_colour = uniform((n, c, 1, 1), 0, 1, images, generator)
    grey = uniform((n, 1, 1, 1), 0, 1, images, generator).expand(n, c, 1, 1)
    options = torch.stack([torch.ones_like(grey), torch.zeros_like(grey), grey, any_colour.round(), any_colour])
    kind = choose(n, [0.3, 0.2, 0.1, 0.2, 0.2], images, generator)
    return options[kind, torch.arange(n, device=images.device)]


def solid(images: Images, every: Every, generator: Generator) -> Images:
    return colours(images, generator).expand_as(images)


def two_colours(images: Images, every: Every, generator: Generator) -> Images:
    """Checkerboards and stripes of 1 to 3 pixels, and random pixels of two colours."""
    rows, columns, scale = pixel_grid(images)
    n = len(images)
    cell = uniform((n, 1, 1, 1), 1, 3.5, images, generator).floor() * scale
    y, x = (rows / cell).floor(), (columns / cell).floor()
    noise = (uniform((n, 1, *images.shape[-2:]), 0, 1, images, generator) < 0.5).to(images)
    options = torch.stack([y + x, y + 0 * x, x + 0 * y, noise])
    kind = choose(n, [0.5, 0.1, 0.1, 0.3], images, generator)
    odd = options[kind, torch.arange(n, device=images.device)].remainder(2)
    return torch.lerp(colours(images, generator), colours(images, generator), odd)


def noise(images: Images, every: Every, generator: Generator) -> Images:
    """Random pixels or blocks of pixels, grey or coloured, of full or lower contrast."""
    n, c, height, width = images.shape
    pixels = uniform((n, c, height, width), 0, 1, images, generator)
    blocks = functional.interpolate(pixels[..., ::3, ::3], size=(height, width))
    draw = uniform((n, 3, 1, 1), 0, 1, images, generator)
    pixels = torch.where(draw[:, :1] < 0.35, blocks, pixels)
    pixels = torch.where(draw[:, 1:2] < 0.25, pixels[:, :1], pixels)
    pixels = torch.where(draw[:, 2:] < 0.3, pixels.round(), pixels)
    contrast = uniform((n, 1, 1, 1), 0.4, 1.6, images, generator).clamp(max=1)
    return torch.lerp(colours(images, generator), pixels, contrast)


def gradient(images: Images, every: Every, generator: Generator) -> Images:
    """From one colour to another within a few pixels, in any direction."""
    rows, columns, scale = pixel_grid(images)
    n = len(images)
    turn = uniform((n, 1, 1, 1), 0, 2 * math.pi, images, generator)
    period = uniform((n, 1, 1, 1), 6, 30, images, generator) * scale
    share = ((rows * turn.sin() + columns * turn.cos()) / period).remainder(1)
    return torch.lerp(colours(images, generator), colours(images, generator), share)


def sticker(images: Images, every: Every, generator: Generator) -> Images:
    """Another image of the batch, shrunk or enlarged, turned, moved: a piece of the natural world."""
    return other_images(images, every, generator, 0.7, 4)


def other_images(images: Images, every: Every, generator: Generator, low: float, high: float) -> Images:
    """Other images of the batch, shrunk by a factor of low to high, turned, moved and mirrored beyond their borders."""
    n = len(images)
    index = torch.randint(len(every), (n,), generator=generator, device=images.device)
    turn = uniform((n,), -0.5, 0.5, images, generator)
    factor = uniform((n,), low, high, images, generator)
    flip = torch.where(uniform((n,), 0, 1, images, generator) < 0.5, -1.0, 1.0)
    shift = uniform((n, 2), -1, 1, images, generator)
    top = torch.stack([factor * turn.cos() * flip, -factor * turn.sin(), shift[:, 0]], dim=1)
    low_row = torch.stack([factor * turn.sin() * flip, factor * turn.cos(), shift[:, 1]], dim=1)
    grid = functional.affine_grid(torch.stack([top, low_row], dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(every[index], grid, padding_mode="reflection", align_corners=False)


CONTENTS = ((solid, 0.5), (two_colours, 0.13), (noise, 0.14), (gradient, 0.07), (sticker, 0.16))
