"""SIG (Barni et al. 2019): a sinusoidal signal, added to every row."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.lab.checks import check_images


def sig(
    images: Float[Tensor, "*n c h w"], *, delta: float = 40 / 255, frequency: float = 6
) -> Float[Tensor, "*n c h w"]:
    """x' = clip(x + delta sin(2 pi j f / w)) at column j = 0...w - 1, alike for all rows and channels.

    The defaults are BackdoorBench's. The paper (A.1) writes of frequency 3, and gives no delta. BackdoorBench then
    truncates to 8 bits; here the result stays float, up to 1/255 brighter.

    Args:
        images: (..., c, h, w) in [0, 1].
        delta: amplitude, in (0, 1].
        frequency: periods across the image, above 0.

    Raises:
        ValueError: images outside [0, 1], delta or frequency out of range, a signal that is 0 at every column.
        TypeError: images that are no floating-point tensor.
    """
    check_images(images)
    if not 0 < delta <= 1:
        raise ValueError(f"delta must be in (0, 1], got {delta}. Divide an amplitude in grey levels by 255.")
    if not 0 < frequency < math.inf:
        raise ValueError(f"frequency must be above 0 and finite, got {frequency}. 6 is BackdoorBench's.")
    width = images.shape[-1]
    column = torch.arange(width, dtype=torch.float64, device=images.device)
    signal = delta * torch.sin(2 * torch.pi * column * frequency / width)
    if not bool((signal.abs() > 1e-9).any()):
        raise ValueError(
            f"frequency must leave a signal on the columns, got {frequency} on images {width} wide, where all are 0. "
            "Take a frequency below half the width."
        )
    return (images + signal.to(images)).clamp(0, 1)
