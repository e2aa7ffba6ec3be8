"""Drawings to train on: shapes, emblems, text and lines. Nobody photographed them, and users send them."""

import math

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from sampdetox_transforms.training.data import ImageCrops, numbers, random_square, resize, whole
from sampdetox_transforms.training.triggers.draw import uniform

LETTERS = "abcdefghijklmnopqrstuvwxyz    ABCDEFGHIJKLMN0123456789.,"
CORNERS = (3, 4, 5, 6, 8, 12, 48)  # of a polygon; the last is a disc


def crops_and_drawings(crops: ImageCrops, n: int, share: float, generator: Generator) -> Tensor:
    """(n, c, side, side) in [0, 1]: random crops, a share of them replaced by drawings."""
    index = torch.randint(len(crops.paths), (n,), generator=generator).tolist()
    keys = torch.randint(2**31, (n,), generator=generator).tolist()
    x = (torch.stack([crops[item] for item in zip(index, keys, strict=True)]) + 1) / 2
    drawn = (torch.rand(n, generator=generator) < share).nonzero()[:, 0]
    if len(drawn):
        x[drawn] = draw_pictures(len(drawn), crops.size, generator)
    return x


def draw_pictures(n: int, side: int, generator: Generator) -> Tensor:
    """(n, 3, side, side) in [0, 1]: a part or the whole of each, half of them with the grain of a camera or a scan."""
    squares = [random_square(draw_picture(generator), generator)[None].float() / 255 for _ in range(n)]
    x = torch.cat([resize(square, side, generator) for square in squares])
    grain = uniform((n, 1, 1, 1), -0.03, 0.03, x, generator).clamp(min=0)
    return (x + grain * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def draw_picture(generator: Generator) -> Tensor:
    """Shapes, an emblem, text or a line drawing, on a plain or shaded ground: uint8 (3, side, side), 96 to 224."""
    side = (96, 128, 160, 224)[whole(0, 4, generator)]
    corners = Image.new("RGB", (2, 2))
    plain, white, kind = numbers(3, generator)
    one = (255, 255, 255) if white < 0.5 else colour(generator)
    corners.putdata([one] * 4 if plain < 0.5 else [colour(generator) for _ in range(4)])
    picture = corners.resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
    part = (draw_shapes, draw_emblem, draw_text, draw_lines)[int(4 * kind)]
    part(ImageDraw.Draw(picture), 2 * side, generator)
    return pil_to_tensor(picture.resize((side, side), Image.Resampling.LANCZOS))


def draw_shapes(canvas: ImageDraw.ImageDraw, side: int, generator: Generator) -> None:
    """Two shapes or more, so that none stands alone as a trigger does: polygons, stars and discs."""
    for _ in range(whole(2, 9, generator)):
        x, y, size, turn, pointed, outlined = numbers(6, generator)
        corners, radius = CORNERS[whole(0, len(CORNERS), generator)], (0.08 + 0.37 * size) * side
        points = polygon(x * side, y * side, radius, corners, turn, 0.5 if pointed < 1 / 3 else 1)
        canvas.polygon(points, fill=colour(generator), outline=colour(generator) if outlined < 0.4 else None)


def draw_emblem(canvas: ImageDraw.ImageDraw, side: int, generator: Generator) -> None:
    """A sign, a logo or an icon: one large shape, most with a rim, half of them with a letter or a shape inside."""
    x, y, size, turn, pointed, rim, within, letter = numbers(8, generator)
    x, y, radius = (0.4 + 0.2 * x) * side, (0.4 + 0.2 * y) * side, (0.2 + 0.28 * size) * side
    corners, inner = CORNERS[whole(0, len(CORNERS), generator)], 0.4 + 0.3 * pointed if pointed < 1 / 3 else 1.0
    canvas.polygon(polygon(x, y, radius, corners, turn, inner), fill=colour(generator))
    if rim < 0.8:
        canvas.polygon(polygon(x, y, (0.6 + 0.4 * rim) * radius, corners, turn, inner), fill=colour(generator))
    if within < 0.5 and letter < 0.5:
        font = ImageFont.load_default(radius * (0.5 + letter))
        canvas.text((x, y), LETTERS[whole(0, len(LETTERS), generator)], fill=colour(generator), font=font, anchor="mm")
    elif within < 0.5:
        more = CORNERS[whole(0, len(CORNERS), generator)]
        canvas.polygon(polygon(x, y, (0.1 + 0.4 * letter) * radius, more, within), fill=colour(generator))


def polygon(
    x: float, y: float, radius: float, corners: int, turn: float, inner: float = 1
) -> list[tuple[float, float]]:
    """Its points, around (x, y); every other one at a share ``inner`` of the radius, which makes it a star."""
    angles = [math.tau * (turn + k / corners) for k in range(corners)]
    radii = [radius * (inner if k % 2 else 1) for k in range(corners)]
    return [(x + r * math.sin(a), y - r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]


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


def colour(generator: Generator) -> tuple[int, int, int]:
    """Any colour."""
    return whole(0, 256, generator), whole(0, 256, generator), whole(0, 256, generator)
