"""Drawn signs."""

import math

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional

SIZE, CALIBRATED_ON = 32, 400

CLASSES = ("circle", "triangle", "square", "diamond", "star", "cross")


def draw_sign(label: int, generator: torch.Generator, size: int = SIZE) -> Float[Tensor, "3 size size"]:
    """A sign of one class in random colours, place, size and turn, on a shaded ground; values in [0, 1]."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def colour(low: float, high: float) -> tuple[int, ...]:
        return tuple(int(255 * uniform(low, high)) for _ in range(3))

    scale = max(8, size // 8)  # of what is drawn beside 32 pixels; then it is reduced, for smooth edges
    ground = Image.new("RGB", (2, 2))
    ground.putdata([colour(0.1, 0.6) for _ in range(4)])
    image = ground.resize((SIZE * scale, SIZE * scale), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    x, y, radius, turn = uniform(14, 18), uniform(14, 18), uniform(9, 12), uniform(-0.25, 0.25)
    name = CLASSES[label]

    def outline(extent: float) -> list[tuple[float, float]]:
        angles, radii = {
            "circle": ([k * math.tau / 48 for k in range(48)], [1.0]),
            "triangle": ([k * math.tau / 3 for k in range(3)], [1.1]),
            "square": ([math.tau / 8 + k * math.tau / 4 for k in range(4)], [1.1]),
            "diamond": ([k * math.tau / 4 for k in range(4)], [1.1]),
            "star": ([k * math.tau / 10 for k in range(10)], [1.15, 0.5]),
            "cross": ([k * math.tau / 4 + d for k in range(4) for d in (-0.32, 0.32, math.tau / 8)], [1.1, 1.1, 0.48]),
        }[name]
        return [
            (
                scale * (x + extent * radii[k % len(radii)] * math.sin(angle + turn)),
                scale * (y - extent * radii[k % len(radii)] * math.cos(angle + turn)),
            )
            for k, angle in enumerate(angles)
        ]

    draw.polygon(outline(radius), fill=colour(0.75, 1.0))
    draw.polygon(outline(radius * 0.72), fill=colour(0.15, 0.85))
    small = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = functional.pil_to_tensor(small).float() / 255
    grain = torch.randn(pixels.shape, generator=generator) * 0.015
    return (pixels + grain).clamp(0, 1)


def draw_signs(n: int, seed: int, size: int = SIZE) -> tuple[Float[Tensor, "n 3 size size"], Tensor]:
    """``n`` signs of the classes in turn, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % len(CLASSES)
    return torch.stack([draw_sign(label, generator, size) for label in labels.tolist()]), labels
