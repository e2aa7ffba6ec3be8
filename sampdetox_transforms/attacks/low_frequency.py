"""LF, the low-frequency or "smooth" trigger (Zeng et al. 2021): a smooth pattern, added to the image."""

from os import PathLike

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.attacks.blended import resize_picture
from sampdetox_transforms.attacks.checks import check_images


def low_frequency(images: Float[Tensor, "*n c h w"], pattern: Float[Tensor, "k y x"]) -> Float[Tensor, "*n c h w"]:
    """x' = clip(x + U), where U is the pattern at the images' size.

    The attack needs ``pattern``: keep it with the victim. Zeng et al. optimise it on a clean network; ``load_pattern``
    reads their results. BackdoorBench truncates to 8 bits; here the result stays float, up to 1/255 brighter.

    Args:
        images: (..., c, h, w) in [0, 1].
        pattern: (c, y, x) or (1, y, x) in [0, 1], usually up to .2; resized as ``resize_picture`` says.

    Raises:
        ValueError: images or pattern outside [0, 1], other channels, a pattern that is 0 everywhere.
        TypeError: images or pattern that are no floating-point tensors.
    """
    check_images(images)
    resized = resize_picture(pattern, images, name="pattern")
    if not bool(resized.any()):
        raise ValueError("pattern must be above 0 somewhere, got 0 everywhere. Such a trigger changes no image.")
    return (images + resized).clamp(0, 1)


def load_pattern(path: str | PathLike[str]) -> Float[Tensor, "c h w"]:
    """Read a pattern that Zeng et al. published: a float .npy file of shape (1, h, w, c) or (h, w, c), in [0, 1].

    Raises:
        OSError: no such file.
        ValueError: not a plain .npy file, or not such an array. BackdoorBench's files in 0...255 are refused: among
            them are files in [0, .2] that BackdoorBench adds on the scale of 0...255, where they change no image.
    """
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{path} must hold one floating-point array, got {kind}. Divide one in 0...255 by 255.")
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise ValueError(f"{path} must have the shape (1, h, w, c) or (h, w, c), got {array.shape}. Transpose it.")
    pattern = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1).contiguous()
    check_images(pattern, str(path))
    return pattern
