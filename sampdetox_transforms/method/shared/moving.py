"""A patch that many images carry, each in a place of its own: registered by the cross-correlation's peak.

What a purifier took out of two images correlates nowhere by chance as it does where both show the same patch. The
images that correlate most are brought to one place, the pixels that are the same in all of them are the patch, and an
image carries it where it is anywhere within.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.method.shared.chance import p_value_of
from sampdetox_transforms.method.shared.estimate import Shared, constant_pixels
from sampdetox_transforms.method.shared.find import LEAST, PARTS, enough_permutations
from sampdetox_transforms.method.shared.match import NEAR, spread
from sampdetox_transforms.method.shared.spectrum import at_most

CANDIDATES, COARSE = 24, 32  # images that are compared with each other, and the side at which they are

# What the seed's fourth best partner must correlate, of 1, beside a p-value
FLOOR = 0.5

ROUNDS = 3  # of registration with what was registered before

SMALLEST = 4  # pixels of a patch

WINDOW = 3  # pixels a side that a change is averaged over; thinner images have no patch


class Moving(NamedTuple):
    """A patch, where no image without it comes as near to it, and which images it is from."""

    shared: Shared
    near: float
    p_value: float
    members: Bool[Tensor, " n"]


def find_moving(
    images: Float[Tensor, "n c h w"],
    purified: Float[Tensor, "n c h w"],
    same: Bool[Tensor, "n n"],
    *,
    false_alarm_rate: float,
    looks: int,
    generator: torch.Generator,
) -> Moving | None:
    """The patch that images share in places of their own; None where there is none.

    Args:
        images, purified: as for ``recover_shared``.
        same: pairs that show the same thing, whose agreement says nothing.
        false_alarm_rate: of this and all other looks together.
        looks: how many looks there are.
        generator: of the permutations.
    """
    residual = images - purified
    if min(residual.shape[-2:]) < WINDOW:
        return None
    most = functional.avg_pool2d(residual.square().sum(dim=1, keepdim=True), WINDOW, stride=1).amax(dim=(1, 2, 3))
    candidates = most.topk(min(CANDIDATES, len(images))).indices
    if len(candidates) <= LEAST:
        return None
    spectra = whitened(at_most(residual[candidates], COARSE))
    excluded = same[candidates][:, candidates] | torch.eye(len(candidates), dtype=torch.bool, device=images.device)
    peaks = partners(spectra, excluded)
    clearness, seed = fourth(peaks)
    if clearness < FLOOR:
        return None
    permutations = enough_permutations(false_alarm_rate, looks)
    p_value = looks * chance(spectra, excluded, clearness, permutations, generator)
    if p_value > false_alarm_rate:
        return None
    together = candidates[(peaks[seed] >= clearness / 2) | (torch.arange(len(candidates), device=seed.device) == seed)]
    return _patch_of(images, purified, together, int(candidates[seed]), p_value, false_alarm_rate)


def whitened(x: Float[Tensor, "n c h w"]) -> Complex[Tensor, "n c h w"]:
    """Fourier coefficients, each divided by what is usual, each image of length 1."""
    spectra = torch.fft.fft2(x)
    spectra = spectra / (spectra.abs().square().mean(dim=0).sqrt() + 1e-3)
    length = spectra.abs().square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return spectra / length.clamp(min=1e-9)


def correlations(
    spectra: Complex[Tensor, "n c h w"], templates: Complex[Tensor, "m c h w"]
) -> Float[Tensor, "m n h w"]:
    """Of each image with each template, at each shift of the image; 1 for the same at shift 0."""
    height, width = spectra.shape[-2:]
    half = slice(width // 2 + 1)  # the other half is its mirror
    product = torch.einsum("nchw,mchw->mnhw", spectra[..., half], templates[..., half].conj())
    return torch.fft.irfft2(product, s=(height, width)) * height * width


def partners(spectra: Complex[Tensor, "n c h w"], excluded: Bool[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """How well each pair agrees at its best shift; 0 for pairs that are excluded."""
    rows = [correlations(spectra, some).amax(dim=(2, 3)) for some in spectra.split(8)]
    return torch.cat(rows).masked_fill(excluded, 0)


def fourth(peaks: Float[Tensor, "n n"]) -> tuple[float, Int[Tensor, ""]]:
    """The best image's agreement with its fourth partner, so that there are ``LEAST`` images, and which image it is."""
    found = peaks.topk(LEAST - 1, dim=1).values[:, -1].max(dim=0)
    return float(found.values), found.indices


def chance(
    spectra: Complex[Tensor, "n c h w"],
    excluded: Bool[Tensor, "n n"],
    clearness: float,
    permutations: int,
    generator: torch.Generator,
) -> float:
    """How often the same search finds as much once each part of each image's coefficients is negated or not.

    A coefficient and its mirror are in one part, so that negated images are real.
    """
    height, width = spectra.shape[-2:]
    part = torch.randint(0, PARTS, (height, width), generator=generator)
    mirrored = part.flip((0, 1)).roll((1, 1), dims=(0, 1))
    part = torch.minimum(part, mirrored).to(spectra.device)

    def draw(_: int) -> tuple[Tensor, Tensor]:
        signs = torch.randint(0, 2, (len(spectra), PARTS), generator=generator).to(spectra.device) * 2.0 - 1
        value = fourth(partners(spectra * signs[:, part][:, None], excluded))[0]
        return torch.tensor([value]), torch.tensor([value >= clearness])

    return p_value_of(clearness, draw, permutations=permutations, at_once=1)


def _patch_of(
    images: Tensor, purified: Tensor, together: Tensor, seed: int, p_value: float, false_alarm_rate: float
) -> Moving | None:
    """The patch of images that agree, once it is the same in them and in no others."""
    residual = images - purified
    spectra = whitened(residual[together])
    first = int((together == seed).nonzero()[0, 0])
    shifts, peaks = _registered(spectra, spectra[first : first + 1])
    for _ in range(ROUNDS):
        best = peaks >= peaks.topk(LEAST).values[-1] / 2
        template = whitened_mean(moved(residual[together][best], -shifts[best]), spectra)
        shifts, peaks = _registered(spectra, template)
    chosen = together[best]
    registered, clean = (moved(x[chosen], -shifts[best]) for x in (images, purified))
    members = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    members[chosen] = True
    others = ~members
    if int(others.sum()) < LEAST:
        return None
    shared_residual = (registered - clean).mean(dim=0)
    opaque = constant_pixels(registered, shared_residual, images[others])
    opaque &= functional.avg_pool2d(opaque.to(images), 3, stride=1, padding=1) > 2.5 / 9  # with two of its neighbours
    if int(opaque.sum()) < SMALLEST:
        return None
    shared = centred(Shared(torch.where(opaque, registered.median(dim=0).values, 0), opaque.to(images)))
    reached = float(nearest(images[chosen], shared)[0].median())
    # how near images without it come, which the purified ones are: a white square is near wherever a sky is white
    least = float(nearest(purified, shared)[0].quantile(false_alarm_rate))
    if least < 2 * reached + NEAR / 4:
        return None
    near = min(max(NEAR, 3 * reached), least)
    carries = nearest(images, shared)[0] <= near
    return Moving(shared, near, p_value, carries) if int((carries & members).sum()) >= LEAST else None


def whitened_mean(x: Float[Tensor, "n c h w"], like: Complex[Tensor, "_ c h w"]) -> Complex[Tensor, "1 c h w"]:
    """The mean of registered residuals as a template."""
    template = torch.fft.fft2(x).mean(dim=0, keepdim=True) / (torch.fft.fft2(x).abs().mean(dim=0, keepdim=True) + 1e-3)
    return template / template.abs().square().sum().sqrt().clamp(min=1e-9)


def _registered(spectra: Tensor, template: Tensor) -> tuple[Int[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Where each image correlates most with the template, and how much."""
    found = correlations(spectra, template)[0]
    peaks, index = found.flatten(1).max(dim=1)
    return torch.stack([index // found.shape[-1], index % found.shape[-1]], dim=1), peaks


def moved(x: Float[Tensor, "n c h w"], shifts: Int[Tensor, "n 2"]) -> Float[Tensor, "n c h w"]:
    """Each image moved down and right by its own shift; what leaves on one side comes in on the other."""
    height, width = x.shape[-2:]
    rows = (torch.arange(height, device=x.device) - shifts[:, :1]) % height
    columns = (torch.arange(width, device=x.device) - shifts[:, 1:]) % width
    return x[torch.arange(len(x), device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(
        -1, 1
    )


def centred(shared: Shared) -> Shared:
    """The patch in the upper left corner."""
    opaque = shared.opaque[0]
    rows, columns = (_start(opaque.any(dim=dim)) for dim in (1, 0))
    return Shared(*(part.roll((-rows, -columns), dims=(-2, -1)) for part in shared))


def _start(line: Bool[Tensor, " n"]) -> int:
    """Where the covered part of a circular line begins: behind its longest gap."""
    places = line.nonzero()[:, 0]
    gaps = (places - places.roll(1)) % len(line)
    gaps = torch.where(gaps == 0, len(line), gaps)
    return int(places[gaps.argmax()])


def nearest(images: Float[Tensor, "n c h w"], shared: Shared) -> tuple[Float[Tensor, " n"], Int[Tensor, "n 2"]]:
    """How far each image is from the patch at its best place, root mean square, and that place.

    The patch lies wholly inside of the image. Sums over the patch are products of Fourier coefficients.
    """
    opaque = shared.opaque[0].to(images)
    rows, columns = (int(opaque.any(dim=dim).nonzero().amax()) for dim in (1, 0))
    height, width = images.shape[-2:]
    mask, patch = torch.fft.rfft2(opaque).conj(), torch.fft.rfft2(shared.pattern * opaque).conj()
    squares = torch.fft.rfft2(images.square().sum(dim=1)) * mask
    products = (torch.fft.rfft2(images) * patch).sum(dim=1)
    distance = torch.fft.irfft2(squares - 2 * products, s=(height, width)) + (shared.pattern * opaque).square().sum()
    distance = distance[:, : height - rows, : width - columns]
    least, index = distance.flatten(1).min(dim=1)
    places = torch.stack([index // distance.shape[-1], index % distance.shape[-1]], dim=1)
    return (least.clamp(min=0) / (opaque.sum() * images.shape[1])).sqrt(), places


def without_moving(
    images: Float[Tensor, "n c h w"], shared: Shared
) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, "n 1 h w"]]:
    """As ``without``, at each image's best place: covered pixels are spread into from around, and which these are."""
    covered = moved(shared.opacity.expand(len(images), -1, -1, -1), nearest(images, shared)[1]) > 0.5
    return spread(images, ~covered.expand_as(images)), covered
