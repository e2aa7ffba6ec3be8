"""Residuals of ISSBA's own encoder (Li et al. 2021), each image with one of a few: what hidden bits look like.

The encoder makes a residual for each image, and is not in this package. Some of its residuals are published
(``data.md``); here each image gets the one that its content chooses.
"""

from os import PathLike

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.lab.checks import check_images, load_floats


def issba(images: Float[Tensor, "*n c h w"], residuals: Float[Tensor, "k c y x"]) -> Float[Tensor, "*n c h w"]:
    """x' = clip(x + R_i), where i follows from the image itself, so that an image always gets the same.

    Args:
        images: (..., c, h, w) in [0, 1].
        residuals: (k, c, y, x) in [-1, 1], at the images' size or resized to it.

    Raises:
        ValueError: images outside [0, 1], residuals of other channels or outside [-1, 1].
        TypeError: images or residuals that are no floating-point tensors.
    """
    check_images(images)
    check_residuals(residuals)
    if residuals.shape[1] != images.shape[-3]:
        raise ValueError(
            f"residuals must have the images' {images.shape[-3]} channels, got {residuals.shape[1]}. Convert them."
        )
    size = list(images.shape[-2:])
    if list(residuals.shape[-2:]) != size:
        residuals = functional.interpolate(residuals.float(), size=size, mode="bilinear", antialias=True)
    return (images + residuals.to(images)[chosen_by(images, len(residuals))]).clamp(0, 1)


def chosen_by(images: Float[Tensor, "*n c h w"], k: int) -> Int[Tensor, "*n"]:
    """A number below k for each image: the sum of its values in 8 bits."""
    return (images * 255).round().long().sum(dim=(-3, -2, -1)) % k


def load_residuals(path: str | PathLike[str]) -> Float[Tensor, "k c y x"]:
    """Read published residuals: a float .npy file of shape (k, c, h, w) in [-1, 1].

    Raises:
        OSError: no such file.
        ValueError: not a plain .npy file, or not such an array.
    """
    residuals = torch.from_numpy(load_floats(path, "Give a file of residuals."))
    check_residuals(residuals, str(path))
    return residuals


def check_residuals(residuals: Tensor, name: str = "residuals") -> None:
    """Refuse all but finite floating-point tensors (k, c, h, w) in [-1, 1] that change something."""
    if not isinstance(residuals, Tensor) or not residuals.is_floating_point():
        kind = residuals.dtype if isinstance(residuals, Tensor) else type(residuals).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}. Divide 8-bit differences by 255.")
    if residuals.ndim != 4 or residuals.shape[1] not in (1, 3) or 0 in residuals.shape:
        raise ValueError(f"{name} must have the shape (k, c, h, w), got {tuple(residuals.shape)}. Transpose them.")
    if not bool((residuals.abs() <= 1).all()) or not bool(residuals.any()):
        raise ValueError(
            f"{name} must be in [-1, 1] and not 0 everywhere, got values from {residuals.min():.4g} to "
            f"{residuals.max():.4g}. Divide differences of 8-bit images by 255."
        )
