"""The checks of images and of files of numbers that attacks and defenses share."""

from os import PathLike

import numpy as np
from torch import Tensor


def check_images(images: Tensor, name: str = "images", *, slack: float = 0.0) -> None:
    """Refuse all but finite floating-point tensors (..., c, h, w) in [0, 1], give or take ``slack``."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor, got {kind}. Use v2.ToDtype(torch.float32, scale=True)."
        )
    if images.ndim < 3 or 0 in images.shape[-3:]:
        raise ValueError(f"{name} must have the shape (..., c, h, w), got {tuple(images.shape)}. Is a channel missing?")
    if not bool(((images >= -slack) & (images <= 1 + slack)).all()):  # NaN fails both
        raise ValueError(
            f"{name} must be in [0, 1], got values from {images.min():.4g} to {images.max():.4g}. "
            "Attacks and defenses come before Normalize; divide 8-bit images by 255."
        )


def load_floats(path: str | PathLike[str], remedy: str) -> np.ndarray:
    """The one floating-point array of a .npy file, as float32.

    Raises:
        OSError: no such file.
        ValueError: not a plain .npy file, or another array; ``remedy`` says what to do.
    """
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{path} must hold one floating-point array, got {kind}. {remedy}")
    return array.astype(np.float32)
