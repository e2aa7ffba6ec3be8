"""Whitening: natural images have most of their energy in few coefficients of the cosine transform; a trigger need not.

The colours are brought into brightness and two opponent planes, and each plane into its cosine transform (DCT-II, whose
mirrored borders add no edge). There each coefficient is divided by what it usually is.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

OPPONENT = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))

SMALLEST = 1e-4  # below the rounding of 8-bit images

# A coefficient's neighbourhood in one image, as a share of the plane, and how much of the whole image's energy it has
OWN_WINDOW, OWN_FLOOR = 0.47, 0.1


def transformed(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """The orthonormal cosine transform of the opponent planes; grey images have one plane."""
    rows, columns = _cosines(x.shape[-2]).to(x), _cosines(x.shape[-1]).to(x)
    return rows @ planes(x) @ columns.T


def restored(coefficients: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """The inverse of ``transformed``."""
    rows, columns = _cosines(coefficients.shape[-2]).to(coefficients), _cosines(coefficients.shape[-1]).to(coefficients)
    return planes(rows.T @ coefficients @ columns, back=True)


def usual(coefficients: Float[Tensor, "n c h w"]) -> Float[Tensor, "c h w"]:
    """How large each coefficient usually is: a robust standard deviation, smoothed over neighbours.

    A median, so that a trigger in a quarter of the images does not count as usual.
    """
    scale = coefficients.abs().median(dim=0).values / 0.6745
    return smoothed(scale[None], 3)[0] + SMALLEST


def own(whitened: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """How large the coefficients of one image are beside the usual: sharp images have much in all of them."""
    energy = whitened.square().mean(dim=1, keepdim=True)
    side = max(3, round(OWN_WINDOW * min(energy.shape[-2:])) // 2 * 2 + 1)
    local = smoothed(energy, side)
    return torch.lerp(local, energy.mean(dim=(1, 2, 3), keepdim=True), OWN_FLOOR).sqrt().clamp(min=1e-3)


def smoothed(x: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c h w"]:
    """Means over windows of ``side``; beyond the border there is nothing, not zeros.

    Products of matrices: a window may be half as wide as the image. Of three pixels, sums of neighbours.
    """
    if side == 3 and min(x.shape[-2:]) > 1:
        return _mean_of_three(_mean_of_three(x, -1), -2)
    return _means(x.shape[-2], side).to(x) @ x @ _means(x.shape[-1], side).to(x).T if side > 1 else x


def _mean_of_three(x: Tensor, dim: int) -> Tensor:
    """Of each value and its two neighbours along a dimension; at either end of two."""
    pairs = x.narrow(dim, 0, x.shape[dim] - 1) + x.narrow(dim, 1, x.shape[dim] - 1)
    mean = torch.empty_like(x)
    if x.shape[dim] > 2:
        inner = mean.narrow(dim, 1, x.shape[dim] - 2)
        torch.add(pairs.narrow(dim, 0, x.shape[dim] - 2), x.narrow(dim, 2, x.shape[dim] - 2), out=inner)
        inner.div_(3)
    for end in (0, -1):
        mean.select(dim, end).copy_(pairs.select(dim, end) / 2)
    return mean


def at_most(x: Float[Tensor, "n c y x"], side: int) -> Float[Tensor, "n c h w"]:
    """Images of at most so many pixels a side, larger ones shrunk by averages of areas."""
    size = min(x.shape[-2], side), min(x.shape[-1], side)
    return x if size == tuple(x.shape[-2:]) else functional.adaptive_avg_pool2d(x, size)


def unit(x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Each as a vector of length 1; what is nothing stays nothing."""
    flat = x.flatten(1)
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-9)


@lru_cache(maxsize=16)
def _cosines(size: int) -> Float[Tensor, "n n"]:
    place = torch.arange(size, dtype=torch.float64)
    matrix = math.sqrt(2 / size) * torch.cos(torch.pi * (place + 0.5) * place[:, None] / size)
    matrix[0] /= math.sqrt(2)
    return matrix


@lru_cache(maxsize=16)
def _means(size: int, side: int) -> Float[Tensor, "n n"]:
    """Each row the mean over a window of ``side`` places, as far as these are."""
    place = torch.arange(size)
    inside = ((place[:, None] - place).abs() <= side // 2).double()
    return inside / inside.sum(dim=1, keepdim=True)


def planes(x: Float[Tensor, "n c h w"], back: bool = False) -> Float[Tensor, "n c h w"]:
    """Colours as brightness and two opponent planes, or these ``back``; grey images have one plane."""
    if x.shape[1] != 3:
        return x
    matrix = functional.normalize(torch.tensor(OPPONENT, dtype=torch.float64), dim=1).to(x)
    return torch.einsum("po,nohw->nphw", matrix.T if back else matrix, x)
