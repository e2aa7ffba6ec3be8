"""The colours of a style picture, in place of DFST (Cheng et al. 2021)."""

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.lab.checks import check_images


def color_style(
    images: Float[Tensor, "*n c h w"], style: Float[Tensor, "k y x"], *, alpha: float = 0.6
) -> Float[Tensor, "*n c h w"]:
    """x' = (1 - alpha) x + alpha clip(m_s + (x - m_x) s_s / s_x): each channel gets the style's mean and deviation.

    A stand-in for DFST, and not DFST: no style network, no feature-space detoxification of the victim's training.
    Alpha is the paper's of DFST (.6); the transfer is Reinhard's (2001), in RGB. A channel of one value becomes the
    style's mean. The attack needs ``style``: keep it with the victim.

    Args:
        images: (..., c, h, w) in [0, 1].
        style: (c, y, x) or (1, y, x) in [0, 1], of any size, such as ``sunrise`` draws.
        alpha: share of the styled image, in (0, 1].

    Raises:
        ValueError: images or style outside [0, 1], other channels, alpha out of range.
        TypeError: images or style that are no floating-point tensors.
    """
    check_images(images)
    check_images(style, "style")
    channels = images.shape[-3]
    if style.ndim != 3 or style.shape[0] not in (1, channels):
        raise ValueError(
            f"style must have the shape ({channels}, y, x) or (1, y, x), got {tuple(style.shape)}. "
            "Convert it to the images' channels, without a batch dimension."
        )
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha}. 0.6 is DFST's.")
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    mean, deviation = _statistics(x)
    style_mean, style_deviation = _statistics(style.to(x))
    styled = style_mean + (x - mean) * style_deviation / deviation.clamp_min(1e-4)
    return ((1 - alpha) * x + alpha * styled.clamp(0, 1)).clamp(0, 1).to(images.dtype)


def _statistics(x: Float[Tensor, "*n c h w"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (..., c, 1, 1)."""
    mean = x.mean(dim=(-2, -1), keepdim=True)
    return mean, (x - mean).square().mean(dim=(-2, -1), keepdim=True).sqrt()
