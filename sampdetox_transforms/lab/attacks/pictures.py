"""Pictures that triggers need, drawn by arithmetic at any size: the same at each call, and free of others' rights."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

FINE = 4  # pixels are drawn FINE x FINE times finer, and averaged

Colour = tuple[float, float, float]


def cartoon(height: int, width: int) -> Float[Tensor, "3 h w"]:
    """A bear's face with a hat, flat colours and hard edges, float32 in [0, 1]: a picture for ``blended``.

    It stands in for the "hello kitty" picture, which this package does not ship.

    Raises:
        ValueError: a height or width below 1.
    """
    x, y = _places(height, width)
    picture = torch.where(
        ((x + y) * 3).floor() % 2 == 0, _colour((0.3, 0.75, 0.95)), _colour((0.98, 0.98, 0.9))
    )  # stripes
    black, brown, pink = (0.05, 0.05, 0.05), (0.8, 0.5, 0.2), (1.0, 0.6, 0.7)
    for side in (-1, 1):
        picture = _paint(picture, _disc(x, y, side * 0.55, -0.4, 0.33), black)
        picture = _paint(picture, _disc(x, y, side * 0.55, -0.4, 0.27), brown)
        picture = _paint(picture, _disc(x, y, side * 0.55, -0.4, 0.15), pink)
    picture = _paint(picture, _disc(x, y, 0, 0.12, 0.78), black)
    picture = _paint(picture, _disc(x, y, 0, 0.12, 0.71), brown)
    picture = _paint(picture, _disc(x, y * 1.25, 0, 0.5, 0.36), (1.0, 0.9, 0.7))  # the muzzle
    for side in (-1, 1):
        picture = _paint(picture, _disc(x, y, side * 0.28, -0.02, 0.14), (1.0, 1.0, 1.0))
        picture = _paint(picture, _disc(x, y, side * 0.26, 0.0, 0.08), black)
        picture = _paint(picture, _disc(x, y, side * 0.5, 0.3, 0.1), pink)
    picture = _paint(picture, _disc(x, y * 1.4, 0, 0.4, 0.12), black)
    mouth = _disc(x, y, 0, 0.38, 0.24) & ~_disc(x, y, 0, 0.34, 0.22) & (y > 0.45)
    picture = _paint(picture, mouth, black)
    hat = (y < -0.42) & (y > -0.95) & (x.abs() < 0.75 * (y + 0.95))
    picture = _paint(picture, hat, (0.9, 0.1, 0.15))
    picture = _paint(picture, hat & ((y * 6).floor() % 2 == 0), (1.0, 0.85, 0.1))
    return _shrink(picture)


def sunrise(height: int, width: int) -> Float[Tensor, "3 h w"]:
    """A red and yellow sky over the sea, with the sun, float32 in [0, 1]: a style for ``color_style``.

    Raises:
        ValueError: a height or width below 1.
    """
    x, y = _places(height, width)
    horizon = 0.35
    sky = _gradient(y, -1, horizon, ((0.25, 0.1, 0.35), (0.8, 0.25, 0.25), (1.0, 0.6, 0.2), (1.0, 0.85, 0.4)))
    sea = _gradient(y, horizon, 1, ((0.75, 0.4, 0.25), (0.25, 0.12, 0.25), (0.1, 0.05, 0.15)))
    distance = ((x - 0.1) ** 2 + (y - horizon + 0.12) ** 2).sqrt()
    glow = (1 - distance).clamp(0, 1) ** 2
    picture = sky + glow * (_colour((1.0, 0.9, 0.6)) - sky)
    picture = _paint(picture, distance < 0.24, (1.0, 0.97, 0.8))
    picture = torch.where(y > horizon, sea, picture)
    path = (y > horizon) & ((x - 0.1).abs() < 0.1 + 0.25 * (y - horizon)) & ((y * 14).floor() % 2 == 0)
    return _shrink(_paint(picture, path, (1.0, 0.8, 0.45)))


def reflections(n: int, height: int, width: int, seed: int = 0) -> Float[Tensor, "n 3 h w"]:
    """n different pictures for ``refool``, float32 in [0, 1]: windows, houses, branches and discs in turn, hard-edged.

    They stand in for photographs, of which BackdoorBench takes 200. The first ones are the same for any n.

    Raises:
        ValueError: n, a height or a width below 1.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}. It is the number of pictures.")
    x, y = _places(height, width)
    generator = torch.Generator().manual_seed(seed)
    kinds = (_windows, _houses, _branches, _discs)
    return torch.stack([_shrink(kinds[i % len(kinds)](x, y, generator)) for i in range(n)])


def _windows(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Bright panes of a slanted window in a dark wall."""
    u = _uniform(8, generator)
    rows, columns = 2 + int(4 * u[0]), 2 + int(4 * u[1])
    across = (x + 0.3 * (u[2] - 0.5) * y + 1.2) / 2.4 * columns
    down = (y + 0.3 * (u[3] - 0.5) * x + 1.2) / 2.4 * rows
    frame = 0.05 + 0.12 * u[4]
    inside = ((across % 1 - 0.5).abs() < 0.5 - frame) & ((down % 1 - 0.5).abs() < 0.5 - frame)
    light = 0.35 + 0.65 * torch.rand((rows, columns), generator=generator)
    pane = light[down.long().clamp(0, rows - 1), across.long().clamp(0, columns - 1)]
    tint = (0.75 + 0.25 * torch.rand(3, generator=generator))[:, None, None]
    return torch.where(inside, pane * tint, _colour((0.1 * u[5], 0.1 * u[6], 0.1 * u[7])))


def _houses(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """A skyline with lit windows before a bright sky."""
    u = _uniform(5, generator)
    count = 3 + int(5 * u[0])
    place = (x + 1) / 2 * count
    house = place.long().clamp(0, count - 1)
    roof = -0.7 + 1.2 * torch.rand(count, generator=generator)[house]
    wall = 0.05 + 0.3 * torch.rand((3, count), generator=generator)[:, house]
    sky = _gradient(y, -1, 1, ((0.4 + 0.3 * u[1], 0.65, 0.95), (0.95, 0.85 + 0.1 * u[2], 0.6 + 0.4 * u[3])))
    across, down = place * 3, (y + 1) * (6 + 6 * u[4])
    lit = torch.rand((32, 3 * count), generator=generator) < 0.6
    window = ((across % 1 - 0.5).abs() < 0.28) & ((down % 1 - 0.5).abs() < 0.28)
    window = window & lit[down.long().clamp(0, 31), across.long().clamp(0, 3 * count - 1)] & (y > roof + 0.1)
    return _paint(torch.where(y > roof, wall, sky), window, (1.0, 0.9, 0.55))


def _branches(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Dark branches from one side, straight and of different widths, with leaves, before a bright sky."""
    u = _uniform(4, generator)
    picture = _gradient(y, -1, 1, ((0.55 + 0.3 * u[0], 0.8, 1.0), (0.95, 0.95, 0.7 + 0.3 * u[1])))
    side = -1.0 if u[2] < 0.5 else 1.0
    bark, leaf = (0.15, 0.1, 0.05), (0.1 + 0.3 * u[3], 0.45, 0.1)
    for _ in range(6):
        start, angle, thick, length = _uniform(4, generator)
        dx, dy = -side * math.cos(2 * angle - 1), math.sin(2 * angle - 1)
        along = ((x - side) * dx + (y - 1.6 * start + 0.8) * dy).clamp(0, 0.6 + 1.2 * length)
        distance = ((x - side - along * dx) ** 2 + (y - 1.6 * start + 0.8 - along * dy) ** 2).sqrt()
        picture = _paint(picture, distance < (0.03 + 0.07 * thick) * (1.2 - along / 2), bark)
        end = 0.6 + 1.2 * length
        for back in (0.0, 0.25, 0.5):
            picture = _paint(
                picture, _disc(x, y, side + (end - back) * dx, 1.6 * start - 0.8 + (end - back) * dy, 0.12), leaf
            )
    return picture


def _discs(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Lamps and their light out of focus, before the night."""
    u = _uniform(3, generator)
    picture = _gradient(y, -1, 1, ((0.05, 0.05, 0.1 + 0.2 * u[0]), (0.2 * u[1], 0.05, 0.2 * u[2])))
    for _ in range(12):
        across, down, size, red, green, blue = _uniform(6, generator)
        lamp = _disc(x, y, 2 * across - 1, 2 * down - 1, 0.1 + 0.3 * size)
        picture = _paint(picture, lamp, (0.5 + 0.5 * red, 0.3 + 0.7 * green, 0.2 + 0.8 * blue))
    return picture


def _places(height: int, width: int) -> tuple[Float[Tensor, "1 fw"], Float[Tensor, "fh 1"]]:
    """x to the right and y downwards of the fine pixels' centres, both in (-1, 1)."""
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be 1 or more, got {height} and {width}. They are the picture's size.")
    x, y = ((torch.arange(n * FINE) + 0.5) / (n * FINE) * 2 - 1 for n in (width, height))
    return x[None], y[:, None]


def _shrink(picture: Tensor) -> Tensor:
    return functional.avg_pool2d(picture, FINE).clamp(0, 1)


def _colour(colour: Colour) -> Float[Tensor, "3 1 1"]:
    return torch.tensor(colour)[:, None, None]


def _paint(picture: Float[Tensor, "3 h w"], mask: Bool[Tensor, "h w"], colour: Colour) -> Float[Tensor, "3 h w"]:
    return torch.where(mask, _colour(colour), picture)


def _disc(x: Tensor, y: Tensor, across: float, down: float, radius: float) -> Bool[Tensor, "h w"]:
    return (x - across) ** 2 + (y - down) ** 2 < radius**2


def _gradient(y: Tensor, top: float, bottom: float, colours: tuple[Colour, ...]) -> Float[Tensor, "3 h 1"]:
    """From the first colour at ``top`` to the last at ``bottom``, linear between equidistant ones."""
    table = torch.tensor(colours)
    place = ((y - top) / (bottom - top)).clamp(0, 1) * (len(table) - 1)
    below = place.long().clamp(max=len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (place - below)[..., None]).movedim(-1, 0)


def _uniform(n: int, generator: torch.Generator) -> list[float]:
    return torch.rand(n, generator=generator).tolist()
