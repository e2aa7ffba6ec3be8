"""Random triggers for training: whatever somebody could paste into, draw on or lay over an image.

None of them is an attack of a paper: shapes, contents, places and strengths are drawn anew for each image, so that a
network that learns to find them learns what does not belong to an image, not what a known attack looks like.

Pure functions of (images in [0, 1], generator), one image one trigger; the generator lives on the images' device.
Sizes are given for images of 32 pixels and grow with the shorter side.
"""

from functools import partial

import torch
from jaxtyping import Bool
from torch import Generator, Tensor
from torch.nn import functional

from sampdetox_transforms.training.triggers.contents import CONTENTS
from sampdetox_transforms.training.triggers.draw import Images, Table, mixture, uniform
from sampdetox_transforms.training.triggers.shapes import SHAPES, rectangles

# What is left out to be filled: the shapes of triggers, and larger rectangles, which are harder to fill.
HOLES = (*((shape, 0.75 * weight) for shape, weight in SHAPES), (partial(rectangles, low=5, high=14), 0.25))


def local_triggers(
    images: Images, generator: Generator, shapes: Table = SHAPES, contents: Table = CONTENTS
) -> tuple[Images, Bool[Tensor, "n 1 h w"]]:
    """A trigger on a part of each image, and the pixels that belong to it.

    A shape, a content, and a way to apply it: pasted at opacity 1 (half of them) or .3 to 1, added or subtracted.
    """
    n = len(images)
    shape = mixture(shapes, images, generator)
    soft = functional.avg_pool2d(shape, 3, stride=1, padding=1, count_include_pad=False)
    blurred = uniform((n, 1, 1, 1), 0, 1, images, generator) < 0.15
    region = torch.where(blurred, soft, shape)
    content = mixture(contents, images, generator)
    kind = uniform((n, 1, 1, 1), 0, 1, images, generator)
    opacity = uniform((n, 1, 1, 1), 0.3, 1, images, generator)
    opacity = torch.where(kind < 0.6, 1, opacity) * region
    sign = torch.where(kind < 0.9, 1, -1)  # from .8 on: added, from .9 on: subtracted
    pasted = torch.lerp(images, content, opacity)
    added = (images + sign * opacity * content).clamp(0, 1)
    return torch.where(kind < 0.8, pasted, added), (region > 0.3) | (shape > 0)


def erasures(images: Images, generator: Generator) -> Bool[Tensor, "n 1 h w"]:
    """Regions to leave out and fill: ``HOLES``, grown by 0 to 3 pixels."""
    region = mixture(HOLES, images, generator)
    for _ in range(3):
        wider = functional.max_pool2d(region, 3, stride=1, padding=1)
        region = torch.where(uniform((len(images), 1, 1, 1), 0, 1, images, generator) < 0.6, wider, region)
    return region > 0
