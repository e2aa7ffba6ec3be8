"""Maps of how much two images differ at each pixel: (b, 1, h, w), full size.

All take images in [-1, 1] and compare them on [0, 1], since SSIM changes with the zero point, in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.method.windows import gaussian_window, local_mean

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601 weights of red, green and blue

WINDOWS = ("uniform", "gaussian")


def weigh_channels(x: Float[Tensor, "b c h w"], weights: tuple[float, ...] | None) -> Float[Tensor, "b 1 h w"]:
    """Weighted sum of three channels; the mean where there are no weights or another number of channels."""
    if weights is None or x.shape[1] != len(weights):
        return x.mean(dim=1, keepdim=True)
    return (x * x.new_tensor(weights)[:, None, None]).sum(dim=1, keepdim=True)


def ssim_map(
    x: Float[Tensor, "b c h w"],
    y: Float[Tensor, "b c h w"],
    *,
    window: str = "uniform",
    data_range: float = 1.0,
    sample_covariance: bool = True,
    channel_weights: tuple[float, ...] | None = None,
) -> Float[Tensor, "b 1 h w"]:
    """Structural similarity of each pixel's neighbourhood: Wang et al. 2004, equation 13; the paper's PixelSSIM (A.4).

    Equal to scikit-image's ``structural_similarity(..., full=True)`` at the same settings. It is computed channel by
    channel, then averaged. Values are in [-1, 1] with ``data_range`` 1. With ``data_range`` 255, as the authors call
    it on [0, 1] images, the constants outweigh the signal, and 1 - S becomes a blurred squared error of about 1e-3.

    Args:
        x, y: images in [-1, 1].
        window: "uniform" (7 x 7, scikit-image's default) or "gaussian" (11 x 11, sigma 1.5).
        data_range: the L of the constants (.01 L)^2 and (.03 L)^2.
        sample_covariance: divide variances by n - 1 rather than n (scikit-image's default).
        channel_weights: weights of the channels in the average; None weighs them alike.
    """
    if window == "uniform":
        weights = torch.full((7,), 1 / 7, dtype=torch.float64, device=x.device)
    elif window == "gaussian":
        weights = gaussian_window(1.5, 5, device=x.device)
    else:
        raise ValueError(f"window must be one of {WINDOWS}, got {window!r}. 'uniform' is scikit-image's default.")
    x, y = (x.double() + 1) / 2, (y.double() + 1) / 2
    moments = torch.cat([x, y, x * x, y * y, x * y])
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = local_mean(moments, weights).chunk(5)
    n = len(weights) ** 2
    correction = n / (n - 1) if sample_covariance else 1.0
    var_x, var_y = correction * (mean_xx - mean_x**2), correction * (mean_yy - mean_y**2)
    cov = correction * (mean_xy - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return weigh_channels(luminance * structure, channel_weights)


def dissimilarity_map(
    x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"], *, window: str = "uniform", data_range: float = 255.0
) -> Float[Tensor, "b 1 h w"]:
    """1 - SSIM, 0 where the images are equal; ``data_range`` as in ``ssim_map``."""
    return 1 - ssim_map(x, y, window=window, data_range=data_range)


def squared_error_map(
    x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"], *, sigma: float = 1.0
) -> Float[Tensor, "b 1 h w"]:
    """Luma-weighted squared difference on [0, 1], blurred by a Gaussian of std ``sigma`` pixels; 0 where equal."""
    difference = ((x.double() - y.double()) / 2).square()
    window = gaussian_window(sigma, max(1, round(4 * sigma)), device=x.device)
    return local_mean(weigh_channels(difference, LUMA), window)


def minmax(ssim_map: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Stretch each image's map to [0, 1]: 0 at its smallest value and 1 at its largest; all 0 where it is flat."""
    low, high = ssim_map.amin(dim=(1, 2, 3), keepdim=True), ssim_map.amax(dim=(1, 2, 3), keepdim=True)
    flat = high - low <= 1e-12
    return torch.where(flat, 0.0, (ssim_map - low) / torch.where(flat, 1.0, high - low))


def absolute(ssim_map: Float[Tensor, "b 1 h w"], *, low: float = 0.0, high: float = 1.0) -> Float[Tensor, "b 1 h w"]:
    """Map values of ``low`` and less to 0, of ``high`` and more to 1, the same for every image."""
    return ((ssim_map - low) / (high - low)).clamp(0, 1)
