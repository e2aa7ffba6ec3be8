"""What the search network for photographs is trained on: crops of many kinds of images, resized, JPEG-encoded, drawn.

A photograph was resized and encoded before a trigger was put on it, and may be afterwards. Where clean and triggered
images have the same history, a network cannot take the history for the trigger.
"""

import io
import math
from collections.abc import Collection
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.data import held_out, list_images
from sampdetox_transforms.training.triggers.draw import choose, uniform

SMALLEST = 96  # pixels a side of the smallest crop, where an image is larger
LETTERS = "abcdefghijklmnopqrstuvwxyz    ABCDEFGHIJKLMN0123456789.,"


class PhotoCrops:
    """Crops of the images of folders, each folder drawn from with its share, and drawings.

    Args:
        folders: image folders, searched at any depth.
        shares: how often each is drawn from; alike where it is empty.
        drawn: the share of drawings among all.
        without: images that are not to be drawn.
    """

    def __init__(
        self,
        folders: tuple[str, ...],
        shares: tuple[float, ...] = (),
        drawn: float = 0.0,
        without: Collection[Path] = (),
    ):
        kept_out = set(without)
        self.paths = [[path for path in list_images([folder]) if path not in kept_out] for folder in folders]
        shares = shares or (1.0,) * len(folders)
        self.weights = [*((1 - drawn) * share / sum(shares) for share in shares), drawn]

    def draw(self, n: int, side: int, generator: Generator) -> Tensor:
        """(n, 3, side, side) in [0, 1]: a part or the whole of each image, mirrored, brightened, some of them JPEG."""
        kinds = choose(n, self.weights, torch.empty(0), generator).tolist()
        x = torch.stack([self._crop(kind, side, generator) for kind in kinds])
        return jpeg_some(x, 0.4, generator)

    def _crop(self, kind: int, side: int, generator: Generator) -> Tensor:
        is_drawn = kind == len(self.paths)
        image = draw_picture(generator) if is_drawn else read(self.paths[kind], generator)
        crop = random_square(image, generator)
        x = resize(crop[None].float() / 255, side, generator)[0]
        flip, brighten, gain, shift, mix = numbers(5, generator)
        x = x.flip(-1) if flip < 0.5 else x
        x = (x * (0.6 + 0.8 * gain) + 0.2 * (shift - 0.5)).clamp(0, 1) if brighten < 0.3 else x
        return x[torch.randperm(3, generator=generator)] if is_drawn and mix < 0.5 else x


def crops_of(config: PhotoTrainingConfig) -> PhotoCrops:
    """The images to learn from that the settings name."""
    measured = held_out(config.data, config.held_out)
    return PhotoCrops(config.data, config.shares, config.drawn, [p for paths in measured.values() for p in paths])


def read(paths: list[Path], generator: Generator) -> Tensor:
    """One of the images, uint8 (3, h, w)."""
    path = paths[whole(0, len(paths), generator)]
    try:
        with Image.open(path) as image:
            return pil_to_tensor(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds on damaged files
        message = f"training images must be readable, got {error} at {path}. Remove it from the data."
        raise OSError(message) from error


def random_square(image: Tensor, generator: Generator) -> Tensor:
    """A square of ``SMALLEST`` pixels up to the shorter side, three in ten of them as large as fits."""
    height, width = image.shape[-2:]
    largest = min(height, width)
    smallest = SMALLEST if largest > SMALLEST else 0.8 * largest
    anywhere, share = numbers(2, generator)
    side = round(smallest * (largest / smallest) ** share) if anywhere < 0.7 else largest
    top, left = whole(0, height - side + 1, generator), whole(0, width - side + 1, generator)
    return image[:, top : top + side, left : left + side]


def resize(x: Tensor, side: int, generator: Generator) -> Tensor:
    """(n, c, side, side), as one program or another would."""
    mode, antialias = ("bicubic", "bilinear", "bilinear")[whole(0, 3, generator)], numbers(1, generator)[0] < 0.85
    return functional.interpolate(x, (side, side), mode=mode, antialias=antialias, align_corners=False).clamp(0, 1)


def jpeg_some(x: Tensor, share: float, generator: Generator) -> Tensor:
    """A share of the images JPEG-encoded with a quality of 35 to 100."""
    x = x.clone()
    chance, quality = uniform((2, len(x)), 0, 1, x, generator)
    for i in (chance < share).nonzero()[:, 0].tolist():
        buffer = io.BytesIO()
        to_pil_image((x[i] * 255).round().clamp(0, 255).byte()).save(buffer, "JPEG", quality=int(35 + 65 * quality[i]))
        with Image.open(buffer) as image:
            x[i] = pil_to_tensor(image).to(x) / 255
    return x


def finish(x: Tensor, region: Tensor, side: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """What happens to images after a trigger was put on them or not: noised, JPEG-encoded, rounded, as in a file.

    Images larger than ``side`` are shrunk before; smaller ones are enlarged after, as ``shrink`` enlarges them.
    """
    own = x.shape[-1]
    if own > side:
        mode = ("bilinear", "bicubic", "area")[whole(0, 3, generator)]
        options = {} if mode == "area" else {"antialias": True, "align_corners": False}
        x = functional.interpolate(x, (side, side), mode=mode, **options).clamp(0, 1)
    noisy, std = uniform((2, len(x), 1, 1, 1), 0, 1, x, generator)
    std = torch.where(noisy < 0.1, 0.03 * std, 0)
    x = (x + std * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    x = (jpeg_some(x, 0.25, generator) * 255).round() / 255
    if own < side:
        x = functional.interpolate(x, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    if own != side:
        region = functional.interpolate(region.float(), (side, side), mode="area") > 0.4
    return x, region


# Drawings ------------------------------------------------------------------------------------------------------------


def draw_picture(generator: Generator) -> Tensor:
    """Shapes, a screen with text or a line drawing, on a plain or shaded ground: uint8 (3, side, side), 96 to 224."""
    side = (96, 128, 160, 224)[whole(0, 4, generator)]
    corners = Image.new("RGB", (2, 2))
    plain, white, kind = numbers(3, generator)
    one = (255, 255, 255) if white < 0.5 else colour(generator)
    corners.putdata([one] * 4 if plain < 0.5 else [colour(generator) for _ in range(4)])
    picture = corners.resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
    part = draw_shapes if kind < 0.45 else draw_text if kind < 0.75 else draw_lines
    part(ImageDraw.Draw(picture), 2 * side, generator)
    return pil_to_tensor(picture.resize((side, side), Image.Resampling.LANCZOS))


def draw_shapes(canvas: ImageDraw.ImageDraw, side: int, generator: Generator) -> None:
    """Two shapes or more, so that none stands alone as a trigger does: polygons, stars and discs."""
    for _ in range(whole(2, 9, generator)):
        x, y, size, turn, pointed, outlined = numbers(6, generator)
        corners, radius = (3, 4, 5, 6, 48)[whole(0, 5, generator)], (0.08 + 0.37 * size) * side
        inner = 0.5 if pointed < 1 / 3 else 1
        points = [
            (
                x * side + radius * (inner if k % 2 else 1) * math.sin(math.tau * (turn + k / corners)),
                y * side - radius * (inner if k % 2 else 1) * math.cos(math.tau * (turn + k / corners)),
            )
            for k in range(corners)
        ]
        canvas.polygon(points, fill=colour(generator), outline=colour(generator) if outlined < 0.4 else None)


def draw_text(canvas: ImageDraw.ImageDraw, side: int, generator: Generator) -> None:
    """Lines of random letters, half of them under a bar of one colour."""
    size, y = whole(14, 50, generator), whole(0, 20, generator)
    black, barred = numbers(2, generator)
    ink, font = (0, 0, 0) if black < 0.6 else colour(generator), ImageFont.load_default(size)
    while y < side:
        written, gap = numbers(2, generator)
        letters = [LETTERS[whole(0, len(LETTERS), generator)] for _ in range(whole(5, 60, generator))]
        if written < 0.85:
            canvas.text((whole(0, 30, generator), y), "".join(letters), fill=ink, font=font)
        y += int(size * (1.1 + 0.9 * gap))
    if barred < 0.5:
        canvas.rectangle((0, 0, side, whole(10, side // 4, generator)), fill=colour(generator))


def draw_lines(canvas: ImageDraw.ImageDraw, side: int, generator: Generator) -> None:
    """Bent lines, most of them black."""
    for _ in range(whole(4, 40, generator)):
        x, y, black = numbers(3, generator)
        steps = torch.randn(whole(1, 6, generator), 2, generator=generator) * side / 6
        walk = torch.cat([torch.zeros(1, 2), steps.cumsum(dim=0)]) + torch.tensor([x * side, y * side])
        ink = (0, 0, 0) if black < 0.7 else colour(generator)
        canvas.line([(a, b) for a, b in walk.tolist()], fill=ink, width=whole(1, 8, generator))


def numbers(n: int, generator: Generator) -> list[float]:
    """Uniform numbers in [0, 1)."""
    return torch.rand(n, generator=generator).tolist()


def whole(low: int, high: int, generator: Generator) -> int:
    """A whole number from ``low`` to below ``high``."""
    return int(torch.randint(low, high, (), generator=generator))


def colour(generator: Generator) -> tuple[int, int, int]:
    """Any colour."""
    return whole(0, 256, generator), whole(0, 256, generator), whole(0, 256, generator)
