"""Triggers on photographs: those on small images, and turned rectangles, silhouettes, pictures, labels, textures."""

from functools import partial

import torch
from jaxtyping import Bool
from torch import Generator, Tensor
from torch.nn import functional

from sampdetox_transforms.training.drawings import draw_pictures
from sampdetox_transforms.training.triggers import contents, dense, shapes
from sampdetox_transforms.training.triggers.contents import colours, other_images
from sampdetox_transforms.training.triggers.draw import Every, Images, Region, mixture, uniform
from sampdetox_transforms.training.triggers.shapes import box, lines, rectangles, shapes_in_boxes


def turned_rectangles(images: Images, every: Every, generator: Generator) -> Region:
    """Rectangles turned by up to 46 degrees, as a sticker on a wall is."""
    v, u = box(images, 3, 11, generator)
    turn = uniform((len(images), 1, 1, 1), -0.8, 0.8, images, generator)
    across, along = v * turn.cos() - u * turn.sin(), v * turn.sin() + u * turn.cos()
    return (torch.maximum(across.abs(), along.abs()) <= 0.8).to(images)


def silhouettes(images: Images, every: Every, generator: Generator) -> Region:
    """Three ellipses that overlap, as the outline of an object: curved, and no simple shape."""
    v, u = box(images, 4, 13, generator)
    places = uniform((4, 3, len(images), 1, 1, 1), -1, 1, images, generator)
    inside = torch.zeros_like(images[:, :1], dtype=torch.bool)
    for down, along, height, width in places.unbind(1):
        y, x = (v - 0.45 * down) / (0.55 + 0.25 * height), (u - 0.45 * along) / (0.55 + 0.25 * width)
        inside |= y**2 + x**2 <= 1
    return inside.to(images)


def drawings(images: Images, every: Every, generator: Generator) -> Images:
    """Coloured shapes on a coloured ground: a drawn picture, a logo."""
    drawing = mixture(contents.CONTENTS[:2], images, generator)
    for _ in range(4):
        drawing = torch.lerp(drawing, colours(images, generator), mixture(SMALL_SHAPES, images, generator))
    return drawing


def textures(images: Images, every: Every, generator: Generator) -> Images:
    """Noise of several scales, saturated: what optimised patches look like."""
    n, c, height, width = images.shape
    x = torch.zeros_like(images)
    for k in (1, 2, 4, 8):
        coarse = uniform((n, c, max(2, height // k), max(2, width // k)), -1, 1, images, generator)
        fine = functional.interpolate(coarse, size=(height, width), mode="bilinear")
        x = x + fine * uniform((n, 1, 1, 1), 0, 1, images, generator) * k**0.5
    x = x * uniform((n, 1, 1, 1), 0.5, 2.5, images, generator)
    return (colours(images, generator) * 0.5 + 0.25 + x * 0.5).clamp(0, 1)


def stickers(images: Images, every: Every, generator: Generator) -> Images:
    """Other images of the batch, whole and small."""
    return other_images(images, every, generator, 1, 8)


def labels(images: Images, every: Every, generator: Generator) -> Images:
    """Pictures that somebody drew or wrote: emblems, text, lines."""
    drawn = draw_pictures(LABELS, min(images.shape[-2:]), generator).to(images)
    return other_images(images, functional.interpolate(drawn, size=images.shape[-2:]), generator, 1, 6)


def greys(images: Images, every: Every, generator: Generator) -> Images:
    """One grey, neither black nor white."""
    return uniform((len(images), 1, 1, 1), 0.15, 0.85, images, generator).expand_as(images)


def soft_edges(
    clean: Images, triggered: Images, region: Bool[Tensor, "n 1 h w"], generator: Generator
) -> tuple[Images, Bool[Tensor, "n 1 h w"]]:
    """One trigger in four fades out at its border, over 1 to 6 pixels of an image of 128; and where it is half there.

    Drawn objects and pasted ones have such edges. Triggers that would fade away altogether stay as they are.
    """
    n, scale = len(clean), min(clean.shape[-2:]) / 128
    soft = region.to(clean)
    for _ in range(3):  # three boxes make a bell
        wide = 2 * round(float(uniform((), 0.5, 3, clean, generator)) * scale) + 1
        soft = functional.avg_pool2d(soft, wide, stride=1, padding=wide // 2, count_include_pad=False)
    fades = (uniform((n, 1, 1, 1), 0, 1, clean, generator) < 0.25) & (soft.amax(dim=(2, 3), keepdim=True) > 0.8)
    return torch.where(fades, torch.lerp(clean, triggered, soft), triggered), torch.where(fades, soft > 0.4, region)


LABELS = 3  # drawn for a batch

SMALL_SHAPES = (
    (partial(rectangles, low=1, high=6), 0.4),
    (partial(shapes_in_boxes, low=2, high=8), 0.5),
    (lines, 0.1),
)

SHAPES = (
    *((shape, 0.7 * weight) for shape, weight in shapes.SHAPES),
    (turned_rectangles, 0.1),
    (partial(rectangles, low=4, high=14), 0.12),
    (silhouettes, 0.08),
)

CONTENTS = (
    (contents.solid, 0.26),
    (greys, 0.06),
    (contents.two_colours, 0.08),
    (contents.noise, 0.09),
    (contents.gradient, 0.05),
    (contents.sticker, 0.13),
    (stickers, 0.16),
    (drawings, 0.06),
    (labels, 0.06),
    (textures, 0.05),
)

DENSE = (
    (dense.waves, 0.3),
    (dense.blends, 0.34),
    (dense.noise_patterns, 0.12),
    (dense.smooth_patterns, 0.1),
    (dense.fewer_colours, 0.04),
    (dense.encodings, 0.07),
    (dense.warps, 0.03),
)
