"""Differences of neighbouring pixels, none of which counts for more than a usual one: they show a picture that is mixed
into images, and that the purifier leaves there.

An image is flat nearly everywhere, and there even a faint picture decides, while its few edges say no more than a flat
place does. The gradients of photographs are mostly near 0, as Weiss (ICCV 2001) uses.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.method.shared.spectrum import transformed, unit

# Pixels a side at which images are compared at most, how steeply a difference is clamped (a usual one of the image then
# counts .999), and what a usual one is at least
SIDE, STEEP, LEAST_STEP = 112, 4.0, 0.5 / 255


def image_view(images: Float[Tensor, "n c h w"]) -> dict[str, Float[Tensor, "n d"]]:
    """The images themselves, for ``agreements``: clamped differences, each of length 1.

    As cosine coefficients, which changes no agreement: parts of these hardly depend on each other within one image,
    while those of neighbouring pixels do.
    """
    parts = [transformed(part).flatten(1) for part in _clamped(at_most(images, SIDE))]
    return {"image": unit(torch.cat(parts, dim=1))}


def clamped_differences(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """Along rows and along columns, of images of at most ``SIDE`` pixels a side; of length 1."""
    return unit(torch.cat([part.flatten(1) for part in _clamped(at_most(images, SIDE))], dim=1))


def differences(pattern: Float[Tensor, "c h w"]) -> Float[Tensor, " d"]:
    """Those of a pattern, as they are, of length 1: what ``clamped_differences`` of images that carry it are like."""
    return unit(torch.cat([part.flatten(1) for part in _differences(at_most(pattern[None], SIDE))], dim=1))[0]


def at_most(x: Float[Tensor, "n c y x"], side: int) -> Float[Tensor, "n c h w"]:
    """Images of at most so many pixels a side, larger ones shrunk by averages of areas."""
    size = min(x.shape[-2], side), min(x.shape[-1], side)
    return x if size == tuple(x.shape[-2:]) else functional.adaptive_avg_pool2d(x, size)


def _differences(x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n c h v"], Float[Tensor, "n c g w"]]:
    return x.diff(dim=-1), x.diff(dim=-2)


def _clamped(x: Float[Tensor, "n c h w"]) -> list[Tensor]:
    """Each divided by the usual one of its image, and clamped softly."""
    both = _differences(x)
    usual = torch.cat([part.abs().flatten(1) for part in both], dim=1).median(dim=1).values.clamp(min=LEAST_STEP)
    return [(STEEP * part / usual[:, None, None, None]).tanh() for part in both]
