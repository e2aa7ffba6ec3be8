"""Images without the trigger: what is usual there, worked out once for all that is compared with it."""

import math
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.method.shared.differences import Differences, mean_differences, weighted_differences
from sampdetox_transforms.method.shared.spectrum import own, smoothed, transformed, usual

MEDIAN = math.pi / 2  # the variance of a median, of normal numbers, to that of their mean


@dataclass(frozen=True)
class Whitened:
    """Images as patterns are looked for in them; what costs time is worked out where it is asked for.

    Attributes:
        values: coefficients, each divided by what is usual.
        images: themselves, in [0, 1].
    """

    values: Float[Tensor, "n c h w"]
    images: Float[Tensor, "n c h w"]

    @cached_property
    def own(self) -> Float[Tensor, "n 1 h w"]:
        """How large the coefficients of one image are beside what is usual."""
        return own(self.values)

    @cached_property
    def differences(self) -> Differences:
        """Of neighbouring pixels."""
        return weighted_differences(self.images)


@dataclass(frozen=True)
class Others:
    """What images without the trigger are like.

    Attributes:
        images: (n, c, h, w) in [0, 1].
        purified: the same behind a purifier.
        mean: (c, h, w), their mean.
        scale: (c, h, w), how large each coefficient of an image minus the mean usually is.
        whitened: themselves.
        variance: (c, h, w), of each coefficient, smoothed.
        residual: (c, h, w), what the purifier usually takes: the median.
        residual_variance: (c, h, w), of that median's coefficients.
    """

    images: Float[Tensor, "n c h w"]
    purified: Float[Tensor, "n c h w"]
    mean: Float[Tensor, "c h w"]
    scale: Float[Tensor, "c h w"]
    whitened: Whitened
    variance: Float[Tensor, "c h w"]
    residual: Float[Tensor, "c h w"]
    residual_variance: Float[Tensor, "c h w"]

    @cached_property
    def differences(self) -> tuple[Float[Tensor, "c h v"], Float[Tensor, "c g w"]]:
        """The weighted means of the images' differences; worked out where they are asked for."""
        return mean_differences(self.images)


def describe(images: Float[Tensor, "n c h w"], purified: Float[Tensor, "n c h w"]) -> Others:
    """What is usual in images, and in what a purifier takes out of them."""
    mean, residuals = images.mean(dim=0), images - purified
    coefficients = transformed(images - mean)
    scale = usual(coefficients)
    return Others(
        images,
        purified,
        mean,
        scale,
        Whitened(coefficients / scale, images),
        smoothed(coefficients.var(dim=0)[None], 3)[0],
        residuals.median(dim=0).values,
        MEDIAN * transformed(residuals).var(dim=0) / len(images),
    )


def whiten(images: Float[Tensor, "n c h w"], mean: Float[Tensor, "c h w"], scale: Float[Tensor, "c h w"]) -> Whitened:
    """Other images, as ``describe`` does it with its own."""
    return Whitened(transformed(images - mean) / scale, images)
