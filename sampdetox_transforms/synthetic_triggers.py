"""Random triggers for training: whatever somebody could paste into, draw on or lay over an image.

None of them is an attack of a paper: shapes, contents, places and strengths are drawn anew for each image, so that a
network that learns to find them learns what does not belong to an image, not what a known attack looks like.

Pure functions of (images in [0, 1], generator), one image one trigger; the generator lives on the images' device.
Sizes are given for images of 32 pixels and grow with the shorter side.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.nn import functional

Images = Float[Tensor, "n c h w"]
Region = Float[Tensor, "n 1 h w"]


def local_triggers(images: Images, generator: Generator) -> tuple[Images, Bool[Tensor, "n 1 h w"]]:
    """A trigger on a part of each image, and the pixels that belong to it.

    A shape, a content, and a way to apply it: pasted at opacity 1 (half of them) or .3 to 1, added or subtracted.
    """
    n = len(images)
    shape = mixture(SHAPES, images, generator)
    soft = functional.avg_pool2d(shape, 3, stride=1, padding=1, count_include_pad=False)
    blurred = uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.15
    region = torch.where(blurred, soft, shape)
    content = mixture(CONTENTS, images, generator)
    kind = uniform((n, 1, 1, 1), 0, 1, images, generator)
    opacity = uniform((n, 1, 1, 1), 0.3, 1, images, generator)
    opacity = torch.where(kind < 0.6, 1, opacity) * region
    sign = torch.where(kind < 0.9, 1, -1)  # from .8 on: added, from .9 on: subtracted
    pasted = torch.lerp(images, content, opacity)
    added = (images + sign * opacity * content).clamp(0, 1)
    return torch.where(kind < 0.8, pasted, added), (region > 0.3) | (shape > 0)


def dense_triggers(images: Images, generator: Generator) -> Images:
    """A trigger all over each image."""
    return mixture(DENSE, images, generator).clamp(0, 1)


def erasures(images: Images, generator: Generator) -> Bool[Tensor, "n 1 h w"]:
    """Regions to leave out and fill: the shapes of ``local_triggers``, grown by 0 to 3 pixels."""
    region = mixture(SHAPES, images, generator)
    for _ in range(3):
        wider = functional.max_pool2d(region, 3, stride=1, padding=1)
        region = torch.where(uniform((len(images), 1, 1, 1), 0, 1, images, generator) < 0.6, wider, region)
    return region > 0


def mixture(functions: Sequence[tuple[Callable, float]], images: Images, generator: Generator) -> Tensor:
    """For each image the result of one of the functions, drawn with its weight."""
    kind, result = choose(len(images), [weight for _, weight in functions], images, generator), None
    for k, (function, _) in enumerate(functions):
        index = (kind == k).nonzero()[:, 0]
        if len(index):
            part = function(images[index], images, generator)
            result = images.new_zeros((len(images), *part.shape[1:])) if result is None else result
            result[index] = part
    assert result is not None
    return result


def uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    """Uniform numbers in [low, high) of the dtype and device of ``like``."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)


def choose(n: int, weights: Sequence[float], like: Tensor, generator: Generator) -> Tensor:
    """(n,) indices drawn with the given weights."""
    return torch.multinomial(torch.tensor(weights, device=like.device), n, replacement=True, generator=generator)


def pixel_grid(images: Images) -> tuple[Tensor, Tensor, float]:
    """Row and column numbers, (h, 1) and (1, w), and the pixels of this image to one of 32."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device, dtype=images.dtype)[:, None]
    columns = torch.arange(width, device=images.device, dtype=images.dtype)
    return rows, columns[None], min(height, width) / 32


# Shapes: (the images concerned, all images, generator) -> (n, 1, h, w) in {0, 1} -------------------------------------


def place(images: Images, height: Tensor, width: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Top and left of boxes: two in three anywhere, the others near a corner, as triggers often are."""
    n, scale = len(images), min(images.shape[-2:]) / 32
    corner = uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.33
    found = []
    for size, side in ((height, images.shape[-2]), (width, images.shape[-1])):
        free = (side - size).clamp(min=0)
        anywhere = (uniform((n, 1, 1, 1), 0, 1, images, generator) * (free + 1)).floor().minimum(free)
        margin = (uniform((n, 1, 1, 1), 0, 5, images, generator).floor() * scale).minimum(free)
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


def rectangles(images: Images, every: Images, generator: Generator, low: float = 2, high: float = 10) -> Region:
    v, u = box(images, low, high, generator)
    return torch.maximum(v.abs(), u.abs()).le(1).to(images)


def shapes_in_boxes(images: Images, every: Images, generator: Generator, low: float = 4, high: float = 13) -> Region:
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


def lines(images: Images, every: Images, generator: Generator) -> Region:
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


def frames(images: Images, every: Images, generator: Generator) -> Region:
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


def scattered(images: Images, every: Images, generator: Generator) -> Region:
    """4 to 40 single pixels, all over the image or in a box."""
    n, (height, width) = len(images), images.shape[-2:]
    allowed = rectangles(images, every, generator, 6, 24) > 0
    allowed = allowed | (uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.5)
    number = 4 * 10 ** uniform((n, 1, 1, 1), 0, 1, images, generator)
    draw = uniform((n, 1, height, width), 0, 1, images, generator)
    return (allowed & (draw < number / allowed.sum(dim=(2, 3), keepdim=True).clamp(min=1))).to(images)


def strokes(images: Images, every: Images, generator: Generator) -> Region:
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


def blobs(images: Images, every: Images, generator: Generator) -> Region:
    """Smooth noise above a threshold, within a disc: the outline of some object."""
    v, u = box(images, 8, 24, generator)
    noise = smooth_noise(images, 1, generator, low=4, high=9)
    level = uniform((len(images), 1, 1, 1), 0.25, 0.6, images, generator)
    return ((noise > level) & (v.square() + u.square() <= 1)).to(images)


def mirrored(images: Images, every: Images, generator: Generator) -> Region:
    """The same small rectangle in two to four corners."""
    region = rectangles(images, every, generator, 1, 5)
    chance = uniform((len(images), 3, 1, 1), 0, 1, images, generator) < 0.75
    result = region
    for k, dims in enumerate(((-1,), (-2,), (-2, -1))):
        result = torch.maximum(result, region.flip(dims) * chance[:, k : k + 1])
    return result


def several(images: Images, every: Images, generator: Generator) -> Region:
    """Two or three rectangles or other shapes."""
    first = rectangles(images, every, generator, 2, 7)
    second = rectangles(images, every, generator, 2, 7)
    third = shapes_in_boxes(images, every, generator)
    chance = uniform((len(images), 1, 1, 1), 0, 1, images, generator)
    return torch.maximum(first, torch.where(chance < 0.6, second, torch.maximum(third, second * (chance < 0.8))))


# Contents: (the images concerned, all images, generator) -> (n, c, h, w) in [0, 1] -----------------------------------


def colours(images: Images, generator: Generator) -> Float[Tensor, "n c 1 1"]:
    """White, black, a grey, a saturated colour or any colour."""
    n, c = images.shape[:2]
    any_colour = uniform((n, c, 1, 1), 0, 1, images, generator)
    grey = uniform((n, 1, 1, 1), 0, 1, images, generator).expand(n, c, 1, 1)
    options = torch.stack([torch.ones_like(grey), torch.zeros_like(grey), grey, any_colour.round(), any_colour])
    kind = choose(n, [0.3, 0.2, 0.1, 0.2, 0.2], images, generator)
    return options[kind, torch.arange(n, device=images.device)]


def solid(images: Images, every: Images, generator: Generator) -> Images:
    return colours(images, generator).expand_as(images)


def two_colours(images: Images, every: Images, generator: Generator) -> Images:
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


def noise(images: Images, every: Images, generator: Generator) -> Images:
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


def gradient(images: Images, every: Images, generator: Generator) -> Images:
    """From one colour to another within a few pixels, in any direction."""
    rows, columns, scale = pixel_grid(images)
    n = len(images)
    turn = uniform((n, 1, 1, 1), 0, 2 * math.pi, images, generator)
    period = uniform((n, 1, 1, 1), 6, 30, images, generator) * scale
    share = ((rows * turn.sin() + columns * turn.cos()) / period).remainder(1)
    return torch.lerp(colours(images, generator), colours(images, generator), share)


def sticker(images: Images, every: Images, generator: Generator) -> Images:
    """Another image of the batch, shrunk or enlarged, turned, moved: a piece of the natural world."""
    return other_images(images, every, generator, 0.7, 4)


def other_images(images: Images, every: Images, generator: Generator, low: float, high: float) -> Images:
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


# Dense triggers: (the images concerned, all images, generator) -> images with the trigger ----------------------------


def smooth_noise(images: Images, channels: int, generator: Generator, low: int = 2, high: int = 7) -> Tensor:
    """Random values on a coarse grid of low to high points a side, interpolated, each plane spread over [0, 1]."""
    size = int(torch.randint(low, high + 1, (1,), generator=generator, device=images.device))
    coarse = uniform((len(images), channels, size, size), 0, 1, images, generator)
    fine = functional.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=True)
    lowest, highest = fine.amin(dim=(2, 3), keepdim=True), fine.amax(dim=(2, 3), keepdim=True)
    return (fine - lowest) / (highest - lowest).clamp(min=1e-6)


def waves(images: Images, every: Images, generator: Generator) -> Images:
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


def blends(images: Images, every: Images, generator: Generator) -> Images:
    """Mixed with 8 to 35 % of a picture: another image, or coloured shapes on a coloured ground."""
    n = len(images)
    drawing = mixture(CONTENTS, images, generator)
    for _ in range(4):
        drawing = torch.lerp(drawing, colours(images, generator), mixture(LARGE_SHAPES, images, generator))
    picture = other_images(images, every, generator, 0.4, 1.5)
    picture = torch.where(uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.6, picture, drawing)
    return torch.lerp(images, picture, uniform((n, 1, 1, 1), 0.08, 0.35, images, generator))


def noise_patterns(images: Images, every: Images, generator: Generator) -> Images:
    """Blended with, or plus, random pixels, their range 3 to 30 % of all grey levels."""
    n = len(images)
    pattern = uniform(tuple(images.shape), 0, 1, images, generator)
    pattern = torch.where(uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.3, pattern.round(), pattern)
    mixed = torch.lerp(images, pattern, uniform((n, 1, 1, 1), 0.03, 0.3, images, generator))
    added = images + (pattern - 0.5) * uniform((n, 1, 1, 1), 0.03, 0.3, images, generator)
    return torch.where(uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.5, mixed, added)


def smooth_patterns(images: Images, every: Images, generator: Generator) -> Images:
    """Plus or minus a smooth pattern of 10 to 60 grey levels, of one colour (tint, vignette) or of many."""
    n, c = images.shape[:2]
    pattern = smooth_noise(images, c, generator, 2, 10)
    one = uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.4
    pattern = torch.where(one, pattern[:, :1] * uniform((n, c, 1, 1), 0, 1, images, generator), pattern)
    sign = torch.where(uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.7, 1.0, -1.0)
    return images + sign * pattern * uniform((n, 1, 1, 1), 10, 60, images, generator) / 255


def fewer_colours(images: Images, every: Images, generator: Generator) -> Images:
    """4 to 16 values a channel; half of them dithered with random noise."""
    steps = uniform((len(images), 1, 1, 1), 3, 16, images, generator).floor()
    dither = uniform(tuple(images.shape), -0.5, 0.5, images, generator)
    strength = (2 * uniform((len(images), 1, 1, 1), -0.5, 0.5, images, generator)).clamp(min=0)
    return (images * steps + strength * dither).round() / steps


def warps(images: Images, every: Images, generator: Generator) -> Images:
    """Pixels moved by up to .4 to 2 pixels along a smooth random field."""
    n, (height, width) = len(images), images.shape[-2:]
    field = smooth_noise(images, 2, generator, 3, 6) * 2 - 1
    reach = uniform((n, 1, 1, 1), 0.4, 2, images, generator)
    identity = functional.affine_grid(
        torch.eye(2, 3, device=images.device, dtype=images.dtype).expand(n, 2, 3), list(images.shape), True
    )
    moved = identity + (field * reach).permute(0, 2, 3, 1) * 2 / torch.tensor([width, height], device=images.device)
    return functional.grid_sample(images, moved, padding_mode="reflection", align_corners=True)


def encodings(images: Images, every: Images, generator: Generator) -> Images:
    """Plus what two random 3x3 convolutions make of the image and a coarse random grid: 1 to 8 grey levels strong."""
    n, c, height, width = images.shape
    message = smooth_noise(images, 1, generator, 4, 16)
    x, hidden = torch.cat([images, message], dim=1) - 0.5, 8

    def filtered(x: Tensor, planes: int) -> Tensor:
        weight = uniform((n * planes, x.shape[1], 3, 3), -1, 1, images, generator)
        padded = functional.pad(x.reshape(1, -1, height, width), (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(padded, weight, groups=n).reshape(n, planes, height, width)

    residual = filtered(filtered(x, hidden).relu(), c)
    residual = residual - residual.mean(dim=(2, 3), keepdim=True)
    residual = residual / residual.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return images + residual.clamp(-3, 3) * uniform((n, 1, 1, 1), 1, 8, images, generator) / 255


SHAPES = (
    (rectangles, 0.34),
    (shapes_in_boxes, 0.14),
    (lines, 0.1),
    (frames, 0.06),
    (scattered, 0.07),
    (strokes, 0.1),
    (blobs, 0.07),
    (mirrored, 0.05),
    (several, 0.07),
)
LARGE_SHAPES = (
    (partial(rectangles, low=4, high=30), 0.3),
    (partial(shapes_in_boxes, low=6, high=36), 0.4),
    (lines, 0.1),
    (blobs, 0.2),
)
CONTENTS = ((solid, 0.5), (two_colours, 0.13), (noise, 0.14), (gradient, 0.07), (sticker, 0.16))
DENSE = (
    (waves, 0.07),
    (blends, 0.37),
    (noise_patterns, 0.05),
    (smooth_patterns, 0.3),
    (fewer_colours, 0.06),
    (encodings, 0.11),
    (warps, 0.04),
)
