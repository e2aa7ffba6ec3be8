"""Mirrored borders and means over windows: what the SSIM map, the blur and the tiles share."""

import torch
from jaxtyping import Float
from pytorch_msssim.ssim import gaussian_filter
from torch import Tensor


def symmetric_pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Mirror the image at its borders, the border pixel included, as often as the padding needs: (..., h, w)."""

    def index(size: int, before: int, after: int) -> Tensor:
        position = torch.arange(-before, size + after, device=x.device) % (2 * size)
        return torch.minimum(position, 2 * size - 1 - position)

    if not (left or right or top or bottom):
        return x
    return x[..., index(x.shape[-2], top, bottom)[:, None], index(x.shape[-1], left, right)]


def gaussian_window(sigma: float, radius: int, *, device=None) -> Float[Tensor, " n"]:
    """Normalised Gaussian weights at -radius...radius, float64."""
    x = torch.arange(-radius, radius + 1, dtype=torch.float64, device=device)
    weights = torch.exp(-((x / sigma) ** 2) / 2)
    return weights / weights.sum()


def local_mean(x: Float[Tensor, "b c h w"], window: Float[Tensor, " n"]) -> Float[Tensor, "b c h w"]:
    """Separable window average at every pixel, with symmetric borders."""
    radius = len(window) // 2
    planes = symmetric_pad(x, radius, radius, radius, radius).flatten(0, 1)[:, None]
    return gaussian_filter(planes, window[None, None, None].to(planes)).view(x.shape)
