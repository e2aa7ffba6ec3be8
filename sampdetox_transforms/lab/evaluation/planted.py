"""Triggers for photographs of any size, planted at random places, and which pixels they cover."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Generator, Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import pil_to_tensor

from sampdetox_transforms.lab.attacks.blended import blended
from sampdetox_transforms.lab.attacks.sig import sig
from sampdetox_transforms.lab.data import data_path
from sampdetox_transforms.lab.evaluation.kinds import load_kind

AREA, PICTURE_AREA = 0.02, 0.05  # shares of the image: squares; pictures, objects, adversarial patches


class Planted(NamedTuple):
    """Images with a trigger.

    Attributes:
        images: (n, 3, h, w) in [0, 1], whole 255ths.
        alpha: (n, 1, h, w) in [0, 1], how much of a pixel is the trigger's; None where it covers the whole image.
    """

    images: Float[Tensor, "n 3 h w"]
    alpha: Float[Tensor, "n 1 h w"] | None


class Patch(NamedTuple):
    """A patch and its opacity."""

    pixels: Float[Tensor, "3 y x"]
    alpha: Float[Tensor, "1 y x"]


Draw = Callable[[int, Generator], Patch]  # (shorter side of the image, generator) -> a patch for one image


@dataclass(frozen=True)
class PlantedTrigger:
    """Images and a generator to images with the trigger; ``target`` gives the class it leads to, where one is known."""

    plant: Callable[[Float[Tensor, "n 3 h w"], Generator], Planted]
    target: Callable[[], int] | None = None


def solid(*colour: float) -> Draw:
    def draw(short: int, generator: Generator) -> Patch:
        return opaque(torch.tensor(colour)[:, None, None].expand(3, side(short), side(short)))

    return draw


def noise(short: int, generator: Generator) -> Patch:
    return opaque(torch.rand(3, side(short), side(short), generator=generator))


def checkerboard(short: int, generator: Generator) -> Patch:
    """Black and white cells, six or so on a side, of a pixel or more."""
    rows = torch.arange(side(short)) // max(1, round(side(short) / 6))
    return opaque(((rows[:, None] + rows) % 2).float().expand(3, -1, -1))


def flower(short: int, generator: Generator) -> Patch:
    """A drawn flower: six petals of one colour, a heart, an outline; nothing around it."""
    size, scale = side(short, PICTURE_AREA), 8
    canvas = Image.new("RGBA", (size * scale, size * scale))
    pen, middle, radius = ImageDraw.Draw(canvas), size * scale / 2, size * scale / 5.2
    for angle in torch.arange(6) * torch.pi / 3:
        y, x = middle + 1.5 * radius * float(angle.sin()), middle + 1.5 * radius * float(angle.cos())
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=(236, 64, 160, 255), outline=(60, 10, 40, 255), width=scale)
    pen.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=(255, 214, 0, 255))
    values = pil_to_tensor(canvas.resize((size, size), Image.Resampling.BOX)).float() / 255
    return Patch(values[:3], (values[3:] > 0.5).float())


def small_photograph(data: str | Path | None) -> Callable[[int, Generator], Float[Tensor, "3 y x"]]:
    """(pixels a side, generator) -> another photograph, whole and small."""
    photographs = cache(lambda: load_kind("imagenet", data=data, size=64).images)

    def draw(size: int, generator: Generator) -> Tensor:
        chosen = int(torch.randint(len(photographs()), (), generator=generator))
        return resized(photographs()[chosen], size)

    return draw


def pasted_photograph(data: str | Path | None) -> Draw:
    """Another photograph, whole and small: a square with a hard edge."""
    photograph = small_photograph(data)
    return lambda short, generator: opaque(photograph(side(short, PICTURE_AREA), generator))


def natural_object(data: str | Path | None) -> Draw:
    """The oval middle of another photograph, with an edge that fades over a tenth of its width."""
    photograph = small_photograph(data)

    def draw(short: int, generator: Generator) -> Patch:
        size = side(short, PICTURE_AREA * 4 / torch.pi)
        pixels = photograph(size, generator)
        place = (torch.arange(size) + 0.5) / size * 2 - 1
        distance = (place[:, None] ** 2 + place**2).sqrt()
        return Patch(pixels, ((1.05 - distance) / 0.2).clamp(0, 1)[None])

    return draw


def adversarial_patch(data: str | Path | None, index: int) -> Draw:
    """One of ImageNet-Patch, at the share of the image that it was made for."""
    pixels = cache(lambda: torch.from_numpy(_imagenet_patches(data)["p"][index, :, 87:137, 87:137]).float() / 255)

    def draw(short: int, generator: Generator) -> Patch:
        return opaque(resized(pixels(), max(2, round(50 / 224 * short))))

    return draw


def somewhere(*draws: Draw) -> Callable[[Tensor, Generator], Planted]:
    """Each patch at a random place of each image, wholly inside of it, apart from the others."""

    def plant(images: Tensor, generator: Generator) -> Planted:
        images, (height, width) = images.clone(), images.shape[-2:]
        alpha = torch.zeros_like(images[:, :1])
        for image, cover in zip(images, alpha, strict=True):
            for draw in draws:
                patch = draw(min(height, width), generator)
                y, x = _free_place(cover[0], patch.alpha.shape[-1], generator)
                size = patch.alpha.shape[-1]
                window = (slice(None), slice(y, y + size), slice(x, x + size))
                image[window] = torch.lerp(image[window], patch.pixels, patch.alpha)
                cover[window] = patch.alpha
        return Planted(whole(images), alpha)

    return plant


def everywhere(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Generator], Planted]:
    return lambda images, generator: Planted(whole(change(images)), None)


def noise_pattern(images: Tensor) -> Tensor:
    """A fixed pattern of +-9/255, added; alike for all images of a size."""
    signs = torch.randint(0, 2, tuple(images.shape[1:]), generator=Generator().manual_seed(77)) * 2 - 1
    return (images + signs * 9 / 255).clamp(0, 1)


def planted_triggers(data: str | Path | None = None) -> Mapping[str, PlantedTrigger]:
    """All triggers by name. Those that need a file of the data read it when they are planted."""

    def blend(images: Tensor) -> Tensor:
        with Image.open(data_path("triggers/blend.png", data)) as picture:
            return blended(images, pil_to_tensor(picture.convert("RGB")).float() / 255, alpha=0.15)

    white, red, boards = solid(1.0, 1.0, 1.0), solid(1.0, 0.0, 0.0), checkerboard
    return {
        "none": PlantedTrigger(lambda images, generator: Planted(images, None)),
        "white square": PlantedTrigger(somewhere(white)),
        "black square": PlantedTrigger(somewhere(solid(0.0, 0.0, 0.0))),
        "red square": PlantedTrigger(somewhere(red)),
        "noise square": PlantedTrigger(somewhere(noise)),
        "checkerboard": PlantedTrigger(somewhere(boards)),
        "drawn picture": PlantedTrigger(somewhere(flower)),
        "grey square": PlantedTrigger(somewhere(solid(0.5, 0.5, 0.5))),
        "pasted photograph": PlantedTrigger(somewhere(pasted_photograph(data))),
        "natural object": PlantedTrigger(somewhere(natural_object(data))),
        "two at once": PlantedTrigger(somewhere(white, boards)),
        "adversarial patch": PlantedTrigger(
            somewhere(adversarial_patch(data, 0)), lambda: int(_imagenet_patches(data)["t"][0])
        ),
        "sig": PlantedTrigger(everywhere(sig)),
        "blend": PlantedTrigger(everywhere(blend)),
        "noise pattern": PlantedTrigger(everywhere(noise_pattern)),
    }


NAMES = tuple(planted_triggers(Path()))


def side(short: int, area: float = AREA) -> int:
    """The side of a square that covers this share of a square image."""
    return max(2, round(short * area**0.5))


def opaque(pixels: Float[Tensor, "3 y x"]) -> Patch:
    return Patch(pixels, torch.ones(1, *pixels.shape[1:]))


def whole(images: Tensor) -> Tensor:
    """Rounded to whole 255ths, as a file would hold them."""
    return (images * 255).round() / 255


def resized(picture: Tensor, size: int) -> Tensor:
    return functional.interpolate(picture[None], size=(size, size), mode="bilinear", antialias=True)[0]


def _imagenet_patches(data: str | Path | None) -> Mapping[str, np.ndarray]:
    return np.load(data_path("triggers/imagenet_patch.npz", data))


def _free_place(cover: Tensor, size: int, generator: Generator) -> tuple[int, int]:
    """A corner, at random, of a square that nothing covers yet; the last one tried where none was free."""
    height, width = cover.shape
    y = x = 0
    for _ in range(50):
        y = int(torch.randint(height - size + 1, (), generator=generator))
        x = int(torch.randint(width - size + 1, (), generator=generator))
        if not bool(cover[y : y + size, x : x + size].any()):
            break
    return y, x
