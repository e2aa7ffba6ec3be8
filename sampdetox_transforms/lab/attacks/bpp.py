"""BPP (Wang et al. 2022): fewer colours, with or without dithering, and the negatives of its training."""

from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.lab.checks import check_images

# Floyd and Steinberg 1976: (rows down, columns right, share of the error).
DITHERING = ((0, 1, 7 / 16), (1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16))


def bpp(images: Float[Tensor, "*n c h w"], *, levels: int = 8, dither: bool = False) -> Float[Tensor, "*n c h w"]:
    """Round each value to one of ``levels`` equidistant ones, and these to 8 bits, as BackdoorBench does.

    8 levels without dithering are the original code's and BackdoorBench's defaults. ``dither`` passes each pixel's
    error on to the pixels right of and below it, in raster order, in float64.

    Args:
        images: (..., c, h, w) in [0, 1].
        levels: number of values per channel, from 2 to 256.
        dither: Floyd-Steinberg dithering: a Python loop over pixels, with all images at once.

    Raises:
        ValueError: images outside [0, 1], levels out of range.
        TypeError: images that are no floating-point tensor.
    """
    check_images(images)
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must be in [2, 256], got {levels}. 8 is the usual number.")
    x = images.double()
    x = _dithered(x, levels) if dither else _nearest(x, levels)
    return ((x * 255).round() / 255).to(images.dtype)


def bpp_negative(
    images: Float[Tensor, "*n c h w"], others: Float[Tensor, "*n c h w"], *, levels: int = 8, dither: bool = False
) -> Float[Tensor, "*n c h w"]:
    """Negatives of the contrastive training: clip(x + bpp(y) - y), the rounding error of other images y.

    The label stays true; the paper (A.1) trains with a tenth of such images. BackdoorBench's test set has the
    opposite sign; this is its training code's. Arguments and errors as for ``bpp``, with equal shapes.
    """
    check_images(images)
    check_images(others, "others")
    if images.shape != others.shape:
        raise ValueError(
            f"images and others must have one shape, got {tuple(images.shape)} and {tuple(others.shape)}. "
            "Take as others a permutation of the batch."
        )
    return (images + bpp(others, levels=levels, dither=dither) - others).clamp(0, 1)


def _nearest(x: Tensor, levels: int) -> Tensor:
    return (x * (levels - 1)).round() / (levels - 1)


def _dithered(x: Float[Tensor, "*n c h w"], levels: int) -> Float[Tensor, "*n c h w"]:
    # An error is half a step at most and the shares sum to 1, so that no value is rounded beyond 0 or 1.
    height, width = x.shape[-2:]
    x = x.movedim((-2, -1), (0, 1)).clone()  # (h, w, ..., c): pixels first
    for i in range(height):
        for j in range(width):
            nearest = _nearest(x[i, j], levels)
            error = x[i, j] - nearest
            x[i, j] = nearest
            for down, right, share in DITHERING:
                if i + down < height and 0 <= j + right < width:
                    x[i + down, j + right] += share * error
    return x.movedim((0, 1), (-2, -1)).contiguous()
