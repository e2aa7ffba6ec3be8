"""Shapes: (the images concerned, all images, generator) -> (n, 1, h, w) in {0, 1}."""

import math
from functools import partial

import torch
from torch import Generator, Tensor

from sampdetox_transforms.training.triggers.draw import Every, Images, Region, choose, pixel_grid, smooth_noise, uniform

# Shapes: (the images concerned, all images, generator) -> (n, 1, h, w) in {0, 1} -------------------------------------


def place(images: Images, height: Tensor, width: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Top and left of boxes: half of them anywhere, the others in a corner or near one, as triggers often are."""
    n, scale = len(images), min(images.shape[-2:]) / 32
    corner = uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.5
    found = []
    for size, side in ((height, images.shape[-2]), (width, images.shape[-1])):
        free = (side - size).clamp(min=0)
        anywhere = (uniform((n, 1, 1, 1), 0, 1, images, generator) * (free + 1)).floor().minimum(free)
        margin = (uniform((n, 1, 1, 1), -6, 4, images, generator).floor().clamp(min=0) * scale).minimum(free)
        far = uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.5
        found.append(torch.where(corner, torch.where(far, free - margin, margin), anywhere))
    return found[0], found[1]


def box(images: Images, low: float, high: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Coordinates (n, 1, h, w) in a random box of low to high pixels a side: [-1, 1] inside it."""
    rows, columns, scale = pixel_grid(images)
    n = len(images)
    # small ones more often than large ones, two in three of them square
    height = low + (high + 0.99 - low) * uniform((n, 1, 1, 1), 0, 1, images, generator) ** 1.6
    width = low + (high + 0.99 - low) * uniform((n, 1, 1, 1), 0, 1, images, generator) ** 1.6
    width = torch.where(uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.67, height, width)
    height, width = (height.floor() * scale).round(), (width.floor() * scale).round()
    top, left = place(images, height, width, generator)
    v = (rows - top + 0.5) / height.clamp(min=1) * 2 - 1
    u = (columns - left + 0.5) / width.clamp(min=1) * 2 - 1
    return v, u


def rectangles(images: Images, every: Every, generator: Generator, low: float = 2, high: float = 10) -> Region:
    v, u = box(images, low, high, generator)
    return torch.maximum(v.abs(), u.abs()).le(1).to(images)


def shapes_in_boxes(images: Images, every: Every, generator: Generator, low: float = 4, high: float = 13) -> Region:
    """Discs, rings, outlines, plus signs, crosses, triangles and checkered boxes."""
    v, u = box(images, low, high, generator)
    inside = torch.maximum(v.abs(), u.abs()) <= 1
    radius = v.square() + u.square()
    bar = uniform((len(images), 1, 1, 1), 0.2, 0.45, images, generator)
    kinds = torch.cat(
        [
            radius <= 1.05,
            (radius <= 1.05) & (radius > 0.45),
            inside & (torch.maximum(v.abs(), u.abs()) > 1 - bar * 1.4),
            inside & ((v.abs() < bar) | (u.abs() < bar)),
            inside & (((v - u).abs() < bar * 1.5) | ((v + u).abs() < bar * 1.5)),
            inside & (v >= 2 * u.abs() - 1),
            inside & ((v * 2).floor() + (u * 2).floor()).remainder(2).eq(0),
        ],
        dim=1,
    )
    kind = choose(len(images), [1.0] * kinds.shape[1], images, generator)
    return kinds[torch.arange(len(images), device=images.device), kind][:, None].to(images)


def lines(images: Images, every: Every, generator: Generator) -> Region:
    """One or two straight lines 1 to 3 pixels wide, through the whole image or a part of it."""
    rows, columns, scale = pixel_grid(images)
    n, (height, width) = len(images), images.shape[-2:]
    region = images.new_zeros((n, 1, height, width))
    for chance in (1.0, 0.3):
        turn = uniform((n, 1, 1, 1), 0, math.pi, images, generator)
        level = uniform((n, 1, 1, 1), 0, 1, images, generator)  # half of them along an axis
        turn = torch.where(level < 0.25, 0, torch.where(level < 0.5, math.pi / 2, turn))
        y = uniform((n, 1, 1, 1), 0, height, images, generator).floor() + 0.25
        x = uniform((n, 1, 1, 1), 0, width, images, generator).floor() + 0.25
        across = (rows - y) * turn.cos() - (columns - x) * turn.sin()
        along = (rows - y) * turn.sin() + (columns - x) * turn.cos()
        thickness = uniform((n, 1, 1, 1), 0.95, 2.6, images, generator) * scale
        length = uniform((n, 1, 1, 1), 4, 60, images, generator) * scale
        drawn = (across.abs() <= thickness / 2) & (along.abs() <= length)
        drawn &= uniform((n, 1, 1, 1), 0, 1, images, generator) < chance
        region = torch.maximum(region, drawn.to(images))
    return region


def frames(images: Images, every: Every, generator: Generator) -> Region:
    """A border around the image, or on some of its sides, 1 to 4 pixels wide, up to 2 pixels from the edge."""
    rows, columns, scale = pixel_grid(images)
    n, (height, width) = len(images), images.shape[-2:]
    wide = (1 + 3.99 * uniform((n, 1, 1, 1), 0, 1, images, generator) ** 2).floor() * scale
    gap = (2.99 * uniform((n, 1, 1, 1), 0, 1, images, generator) ** 2).floor() * scale
    sides = uniform((n, 4, 1, 1), 0, 1, images, generator) < 0.3
    sides = sides | (uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.6)
    sides = sides | ~sides.any(dim=1, keepdim=True)
    far = images.new_full((), float("inf"))
    edges = torch.cat(
        [d.expand(1, 1, height, width) for d in (rows, height - 1 - rows, columns, width - 1 - columns)], dim=1
    )
    distance = torch.where(sides, edges, far).amin(dim=1, keepdim=True)
    return ((distance >= gap) & (distance < gap + wide)).to(images)


def scattered(images: Images, every: Every, generator: Generator) -> Region:
    """4 to 40 single pixels, all over the image or in a box."""
    n, (height, width) = len(images), images.shape[-2:]
    allowed = rectangles(images, every, generator, 6, 24) > 0
    allowed = allowed | (uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.5)
    number = 4 * 10 ** uniform((n, 1, 1, 1), 0, 1, images, generator)
    draw = uniform((n, 1, height, width), 0, 1, images, generator)
    return (allowed & (draw < number / allowed.sum(dim=(2, 3), keepdim=True).clamp(min=1))).to(images)


def strokes(images: Images, every: Every, generator: Generator) -> Region:
    """A scribble of short strokes in a row of cells (like writing), or of one long bent stroke."""
    rows, columns, scale = pixel_grid(images)
    n, count, side = len(images), 8, min(images.shape[-2:])
    written = uniform((n, 1), 0, 1, images, generator) < 0.5
    letter = uniform((n, 1), 4, 9, images, generator) * scale
    cell = torch.arange(count, device=images.device).div(2, rounding_mode="floor")
    points = uniform((n, count + 1, 2), -0.5, 0.5, images, generator)
    step = uniform((n, 1, 1), 3, 12, images, generator) * scale
    walk = (points * step * 2).cumsum(dim=1)
    start = torch.stack([letter * points[:, :-1, 0], letter * (points[:, :-1, 1] * 0.8 + cell)], dim=-1)
    end = torch.stack([letter * points[:, 1:, 0], letter * (points[:, 1:, 1] * 0.8 + cell)], dim=-1)
    start = torch.where(written[..., None], start, walk[:, :-1])
    end = torch.where(written[..., None], end, walk[:, 1:])
    middle = uniform((n, 1, 2), 0.2, 0.8, images, generator) * side - (start + end).mean(dim=1, keepdim=True) / 2
    start, end = (start + middle)[..., None, None], (end + middle)[..., None, None]
    dy, dx = end[:, :, 0] - start[:, :, 0], end[:, :, 1] - start[:, :, 1]
    along = ((rows - start[:, :, 0]) * dy + (columns - start[:, :, 1]) * dx) / (dy.square() + dx.square() + 1e-6)
    along = along.clamp(0, 1)
    distance = (rows - start[:, :, 0] - along * dy).square() + (columns - start[:, :, 1] - along * dx).square()
    used = torch.arange(count, device=images.device) < uniform((n, 1), 2, count + 1, images, generator)
    distance = torch.where(used[..., None, None], distance, torch.inf).amin(dim=1, keepdim=True).sqrt()
    return (distance <= uniform((n, 1, 1, 1), 0.6, 1.6, images, generator) * scale).to(images)


def blobs(images: Images, every: Every, generator: Generator) -> Region:
    """Smooth noise above a threshold, within a disc: the outline of some object."""
    v, u = box(images, 8, 24, generator)
    noise = smooth_noise(images, 1, generator, low=4, high=9)
    level = uniform((len(images), 1, 1, 1), 0.25, 0.6, images, generator)
    return ((noise > level) & (v.square() + u.square() <= 1)).to(images)


def mirrored(images: Images, every: Every, generator: Generator) -> Region:
    """The same small rectangle in two to four corners."""
    region = rectangles(images, every, generator, 1, 5)
    chance = uniform((len(images), 3, 1, 1), 0, 1, images, generator) < 0.75
    result = region
    for k, dims in enumerate(((-1,), (-2,), (-2, -1))):
        result = torch.maximum(result, region.flip(dims) * chance[:, k : k + 1])
    return result


def several(images: Images, every: Every, generator: Generator) -> Region:
    """Two or three rectangles or other shapes."""
    first = rectangles(images, every, generator, 2, 7)
    second = rectangles(images, every, generator, 2, 7)
    third = shapes_in_boxes(images, every, generator)
    chance = uniform((len(images), 1, 1, 1), 0, 1, images, generator)
    return torch.maximum(first, torch.where(chance < 0.6, second, torch.maximum(third, second * (chance < 0.8))))


SHAPES = (
    (rectangles, 0.29),
    (partial(rectangles, low=2, high=4), 0.15),
    (shapes_in_boxes, 0.12),
    (lines, 0.085),
    (frames, 0.05),
    (scattered, 0.06),
    (strokes, 0.085),
    (blobs, 0.06),
    (mirrored, 0.04),
    (several, 0.06),
)

LARGE_SHAPES = (
    (partial(rectangles, low=4, high=30), 0.3),
    (partial(shapes_in_boxes, low=6, high=36), 0.4),
    (lines, 0.1),
    (blobs, 0.2),
)
