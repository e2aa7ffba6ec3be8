"""Images without the trigger: what is usual there, worked out once for all that is compared with it."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.method.shared.differences import Differences, mean_differences, weighted_differences
from sampdetox_transforms.method.shared.spectrum import own, smoothed, transformed, usual

SPANNED = 32  # pixels a side, about, whose span over images is asked: they are sorted

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
    """

    images: Float[Tensor, "n c h w"]
    purified: Float[Tensor, "n c h w"]
    mean: Float[Tensor, "c h w"]
    scale: Float[Tensor, "c h w"]
    whitened: Whitened
    variance: Float[Tensor, "c h w"]
    _spans: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def residual(self) -> Float[Tensor, "c h w"]:
        """What the purifier usually takes: the median."""
        return (self.images - self.purified).median(dim=0).values

    @cached_property
    def residual_variance(self) -> Float[Tensor, "c h w"]:
        """Of the coefficients of that median."""
        return MEDIAN * transformed(self.images - self.purified).var(dim=0) / len(self.images)

    @cached_property
    def differences(self) -> tuple[Float[Tensor, "c h v"], Float[Tensor, "c g w"]]:
        """The weighted means of the images' differences; worked out where they are asked for."""
        return mean_differences(self.images)

    def spans(self, m: int) -> Float[Tensor, " 50"]:
        """What each of fifty groups of m of the images spans, see ``span``; worked out once for each m."""
        if m not in self._spans:
            generator = torch.Generator().manual_seed(0)
            draws = [torch.randperm(len(self.images), generator=generator)[:m] for _ in range(50)]
            some = spread_evenly(self.images)
            self._spans[m] = torch.stack([_span(some[draw.to(some.device)]) for draw in draws])
        return self._spans[m]


def span(images: Float[Tensor, "m c h w"]) -> Float[Tensor, ""]:
    """What the widest pixels span, a few images at each end and one pixel in a hundred left out."""
    return _span(spread_evenly(images))


def spread_evenly(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c y x"]:
    """Some pixels of each image, in rows and columns."""
    step = max(1, round(min(images.shape[-2:]) / SPANNED))
    return images[..., ::step, ::step].contiguous()


def _span(images: Tensor) -> Tensor:
    ordered, few = images.sort(dim=0).values, 1 + len(images) // 16
    return (ordered[-1 - few] - ordered[few]).flatten().quantile(0.99)


def describe(images: Float[Tensor, "n c h w"], purified: Float[Tensor, "n c h w"]) -> Others:
    """What is usual in images; what costs more time is worked out where it is asked for."""
    mean = images.mean(dim=0)
    coefficients = transformed(images - mean)
    scale = usual(coefficients)
    return Others(
        images,
        purified,
        mean,
        scale,
        Whitened(coefficients / scale, images),
        smoothed(coefficients.var(dim=0)[None], 3)[0],
    )


def whiten(images: Float[Tensor, "n c h w"], mean: Float[Tensor, "c h w"], scale: Float[Tensor, "c h w"]) -> Whitened:
    """Other images, as ``describe`` does it with its own."""
    return Whitened(transformed(images - mean) / scale, images)
