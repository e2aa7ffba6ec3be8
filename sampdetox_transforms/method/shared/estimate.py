"""What a group of images shares, as J = (1 - a) I + P: the pattern P and the opacity a of each pixel.

Dekel et al. (CVPR 2017) write a W for P. Where a is 0 the trigger is added, where it is 1 nothing of the image is left.
"""

from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sampdetox_transforms.method.search import dilate
from sampdetox_transforms.method.shared.mixed import picture_in
from sampdetox_transforms.method.shared.others import Others, span
from sampdetox_transforms.method.shared.spectrum import restored, smoothed, transformed

CLIPPED = 0.5 / 255  # so near to 0 or 1 a value may have been cut off

# Frequencies, as shares of the highest, at which the gain of the residual is estimated anew
BANDS = (0.016, 0.047, 0.09, 0.144, 0.22, 0.31, 0.44, 0.63)

# Sides of the windows of coefficients that a pattern is looked for in, and in how many windows of each side noise may
# be taken for one: in a fortieth of those of an image of 32 pixels, and in no more of a larger one
WINDOWS, FALSE, SHARE = (1, 3, 7), 77, 1 / 40

# What the residual must be multiplied with where the images say little about it, and how firmly that is assumed, in one
# by a variance: of colours, which a purifier may leave for the most part, and of brightness, in which images differ
USUAL_GAIN, LEAN = 1.2, (0.3, 1.0)

# Shares of a picture that count: so much, and not so much that other images would span less than this beside it
LEAST_SHARE, WIDEST = 0.05, 0.4

# So many times the opacity is far more; for so many of a picture's pixels it must do, and so much of the energy may lie
# in the others; so much of it the images' range tells
FAR_MORE, NEARLY_ALL, LOST, LARGEST_SHARE = 2.0, 0.95, 0.2, 0.3

SEEN = 0.5 / 255  # a fainter pattern changes no image in 8 bits

OPAQUE = 0.9  # from this opacity on nothing of the image is left below the pattern


class Shared(NamedTuple):
    """What images share: ``pattern`` (c, h, w) is what is added, ``opacity`` (1, h, w) what is taken of the image."""

    pattern: Float[Tensor, "c h w"]
    opacity: Float[Tensor, "1 h w"]

    @property
    def opaque(self) -> Bool[Tensor, "1 h w"]:
        return self.opacity >= OPAQUE

    def change(self, mean: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
        """What it changes in the mean image."""
        return self.pattern - self.opacity * mean


def estimate(
    images: Float[Tensor, "m c h w"],
    purified: Float[Tensor, "m c h w"],
    others: Others,
    *,
    mixed: bool = False,
    alpha: float | None = None,
) -> Shared:
    """What ``images`` in [0, 1] share, beside ``others`` which do not.

    The residual, image minus purified, has the pattern's shape, but not its size: the purifier takes more of some
    frequencies than of others. The size is that of mean(images) - mean(others), which is right on average. Where the
    purifier leaves the trigger (``mixed``), it is a picture that is asked of the images alone, ``alpha`` of it, or as
    much as their range says.
    """
    if mixed:
        alpha = blend(images, others) if alpha is None else alpha
        return mixed_in(picture_in(images, others, alpha), alpha, others)
    unclipped, varied = _unclipped_mean(images - purified, images)
    residual = unclipped - others.residual
    noise = transformed(varied).var(dim=0) / len(images) + others.residual_variance
    patch = constant_pixels(images, residual, others.images)
    pattern = restored(_with_gain(residual, noise, images, others)[None])[0]
    if bool(patch.any()):
        picture = images.median(dim=0).values
        whole = with_changed_neighbours(patch, residual)
        for covered, share in ((whole, 0.9), (patch, 0.7)):
            inside = dilate(covered[None], 1)[0]
            if float((residual * inside).square().sum()) > share * float(residual.square().sum()):
                return Shared(torch.where(covered, picture, 0), covered.to(images))
        return Shared(torch.where(patch, picture, pattern), patch.to(images))
    return blended(pattern, blend(images, others), others)


def blended(pattern: Float[Tensor, "c h w"], alpha: float, others: Others) -> Shared:
    """A pattern with the opacity of ``blend``, or with as much as it needs: mean(J) - mean(I) = P - a mean(I) is
    a (W - mean(I)), and no picture W leaves [0, 1].

    What would need far more is no picture: an added pattern narrows the images' range, too, where values are cut off.
    """
    least = needed(pattern, others)
    return mixed_in(pattern, max(alpha, least) if least < FAR_MORE * alpha else 0.0, others)


def needed(pattern: Float[Tensor, "c h w"], others: Others, share: float = NEARLY_ALL) -> float:
    """The least opacity of which a pattern may be a picture's change, a (W - mean(I)) with W in [0, 1], at such a share
    of the pixels."""
    room = torch.maximum(-pattern / others.mean.clamp(min=SEEN), pattern / (1 - others.mean).clamp(min=SEEN))
    return float(room.flatten().quantile(share))


def as_picture(shared: Shared, others: Others) -> Shared:
    """What is added, as a picture that is mixed in with the least opacity that it needs.

    It stays as it is where it has an opacity, where the images' range would have told so much, and where it lies in few
    places, which most of the pixels or of the energy say: pictures lie in all.
    """
    alpha = needed(shared.pattern, others)
    if float(shared.opacity.amax()) > 0 or alpha > LARGEST_SHARE or needed(shared.pattern, others, 0.5) < alpha / 10:
        return shared
    picture = mixed_in(shared.pattern, alpha, others)
    lost = (picture.change(others.mean) - shared.pattern).square().sum()
    return picture if float(lost) < LOST * float(shared.pattern.square().sum()) else shared


def mixed_in(pattern: Float[Tensor, "c h w"], alpha: float, others: Others) -> Shared:
    """A pattern with an opacity, 0 for one that is added."""
    if alpha > 0:
        pattern = (pattern + alpha * others.mean).clamp(0, alpha)
    return Shared(pattern, torch.full_like(pattern[:1], alpha))


def blend(images: Float[Tensor, "m c h w"], others: Others) -> float:
    """The share of a picture that is mixed into all of an image: 0 unless the images' range says otherwise.

    No pixel of (1 - a) I + a W spans more than 1 - a, while those of other images span all of [0, 1]. As many others
    are taken at a time as there are images, and what the narrowest of fifty such groups spans is no evidence.
    """
    if len(images) < 6 or len(others.images) < 2 * len(images):
        return 0.0
    value = span(images)
    if not WIDEST <= value < 1 - LEAST_SHARE:  # nothing spans more than 1
        return 0.0
    usual = others.spans(len(images))
    alpha = float(1 - value / usual.median())
    return alpha if value < usual.min() and alpha > LEAST_SHARE else 0.0


def _unclipped_mean(
    residual: Float[Tensor, "m c h w"], images: Float[Tensor, "m c h w"]
) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "m c h w"]]:
    """The mean over values that are not cut off, where a third of them is not, over all elsewhere; and m values that
    have this mean and, as a plain mean has, m times its variance: of it, and of whatever is linear in it."""
    kept = ((images > CLIPPED) & (images < 1 - CLIPPED)).to(residual)
    number = kept.sum(dim=0)
    kept = torch.where(number >= max(3, len(images) / 3), kept, 1)
    number = kept.sum(dim=0)
    mean = (residual * kept).sum(dim=0) / number
    return mean, mean + (residual - mean) * kept * (len(images) / number)


def constant_pixels(images: Tensor, residual: Tensor, others: Tensor) -> Bool[Tensor, "1 h w"]:
    """Pixels that are the same in four images of five, while they vary elsewhere and the purifier changed them."""
    middle = images.median(dim=0).values
    spread = (images - middle).abs().quantile(0.8, dim=0)
    same = (spread <= (0.1 * others.std(dim=0)).clamp(min=2.5 / 255)).all(dim=0, keepdim=True)
    changed = residual.abs().amax(dim=0, keepdim=True) > 0.02
    return same & changed


def with_changed_neighbours(patch: Bool[Tensor, "1 h w"], residual: Float[Tensor, "c h w"]) -> Bool[Tensor, "1 h w"]:
    """A patch with the pixels beside it that the purifier changed at least half as much on average.

    Where a bright picture is added and cut off, a few of its pixels stay below the end, and vary. They are part of a
    patch where hardly anything was changed elsewhere; else they say more as a pattern.
    """
    size = residual.abs().amax(dim=0, keepdim=True)
    return patch | (dilate(patch[None], 2)[0] & (size > size[patch].median() / 2))


def _with_gain(residual: Tensor, noise: Tensor, images: Tensor, others: Others) -> Float[Tensor, "c h w"]:
    """The residual's coefficients, those of each band and of brightness and colour multiplied by one gain.

    The gain is a least-squares fit to mean(images) - mean(others), whose variance is known from the others, and
    leans towards ``USUAL_GAIN``. Where the purifier took nothing that is seen, that difference is all there is.
    """
    shape = transformed(residual[None])[0]
    shape = shape * above_noise(shape, noise)
    direct = transformed((images.mean(dim=0) - others.mean)[None])[0]
    variance = others.variance * (1 / len(images) + 1 / len(others.images)) + 1e-8
    height, width = shape.shape[-2:]
    rows, columns = (torch.arange(size, device=shape.device) / size for size in (height, width))
    band = torch.bucketize((rows[:, None].square() + columns.square()).sqrt(), shape.new_tensor(BANDS))
    index = band + (len(BANDS) + 1) * (torch.arange(len(shape), device=shape.device) > 0)[:, None, None]
    index = index.expand_as(shape).flatten()

    def summed(values: Tensor) -> Tensor:
        return shape.new_zeros(2 * (len(BANDS) + 1)).index_add(0, index, values.flatten())

    lean = torch.where(torch.arange(2 * (len(BANDS) + 1), device=shape.device) > len(BANDS), *LEAN).to(shape)
    gain = (summed(direct * shape / variance) + USUAL_GAIN * lean) / (summed(shape.square() / variance) + lean)
    shape = shape * gain.clamp(0.5, 10)[index].view_as(shape)
    taken = float(shape.square().mean().sqrt())
    return shape if taken > SEEN else direct * above_noise(direct, variance)


def above_noise(shape: Float[Tensor, "c h w"], noise: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """How much of each coefficient is pattern, in [0, 1]: 0 where no window around it holds more energy than noise."""
    shares = []
    for side in WINDOWS:
        energy, expected = (smoothed(values[None], side)[0] for values in (shape.square(), noise))
        least = times_noise(side, shape.numel())
        shares.append(torch.where(energy > least * expected, 1 - expected / energy.clamp(min=1e-12), 0))
    return torch.stack(shares).amax(dim=0)


def times_noise(side: int, coefficients: int) -> float:
    """From how many times the noise's energy on a window holds a pattern: noise alone has it in ``FALSE`` windows.

    The mean square of k normal numbers is almost the cube of a normal one (Wilson and Hilferty 1931).
    """
    z, spread = NormalDist().inv_cdf(1 - min(SHARE, FALSE / coefficients)), 2 / (9 * side**2)
    return (1 - spread + z * spread**0.5) ** 3
