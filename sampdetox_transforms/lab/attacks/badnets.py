"""BadNets (Gu et al. 2017): a small patch in a corner."""

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.checks import check_images

PATTERNS = ("white", "checker", "checker_inv")

CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")


def badnets(
    images: Float[Tensor, "*n c h w"],
    *,
    pattern: str = "white",
    size: int = 3,
    margin: int = 0,
    corner: str = "bottom-right",
    opacity: float = 1.0,
) -> Float[Tensor, "*n c h w"]:
    """Put a square patch on images in [0, 1]: x' = (1 - opacity) x + opacity P inside it.

    The paper (A.1) writes of a "3 x 3 black and white checkerboard in the lower right corner"; the pictures that its
    authors published show "checker_inv", BackdoorBench's default is "white". The patch has ``size`` pixels on images
    of any size, where BackdoorBench scales it with the image, and black is 0, where BackdoorBench writes 1/255.

    Args:
        images: (..., c, h, w) in [0, 1].
        pattern: "white", "checker" (white where row + column of the patch is even) or "checker_inv" (where it is odd).
        size, margin: side of the patch and its distance from both borders, in pixels.
        corner: "top-left", "top-right", "bottom-left" or "bottom-right".
        opacity: in (0, 1].

    Raises:
        ValueError: images outside [0, 1], an unknown pattern or corner, a patch that does not fit.
        TypeError: images that are no floating-point tensor.
    """
    check_images(images)
    check_choice("pattern", pattern, PATTERNS)
    check_choice("corner", corner, CORNERS)
    height, width = images.shape[-2:]
    if size < 1 or margin < 0:
        raise ValueError(f"size must be 1 or more and margin 0 or more, got {size} and {margin}. 3 and 0 are usual.")
    if size + margin > min(height, width):
        raise ValueError(
            f"size + margin must be at most the image's shorter side {min(height, width)}, got {size} + {margin}. "
            "Take a smaller patch or larger images."
        )
    if not 0 < opacity <= 1:
        raise ValueError(f"opacity must be in (0, 1], got {opacity}. 1 hides what is below the patch.")
    side = torch.arange(size, device=images.device)
    even = (side[:, None] + side) % 2 == 0
    patch = {"white": torch.ones_like(even), "checker": even, "checker_inv": ~even}[pattern].to(images)
    vertical, horizontal = corner.split("-")
    top = margin if vertical == "top" else height - margin - size
    left = margin if horizontal == "left" else width - margin - size
    result = images.clone()
    place = result[..., top : top + size, left : left + size]
    place.copy_((1 - opacity) * place + opacity * patch)
    return result
