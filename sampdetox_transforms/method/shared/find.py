"""Which of many images share a pattern: those whose whitened residuals agree with the mean of the others'.

As for camera fingerprints (Lukas, Fridrich and Goljan 2006), what a purifier took out of each image is compared, here
with nothing known in advance. Pairs of images that show the same thing say nothing, and are left out.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.method.shared.chance import p_value_of
from sampdetox_transforms.method.shared.spectrum import at_most, own, transformed, unit, usual

LEAST = 5  # so few images or more carry a trigger, or none is claimed

# Where groups end: an image joins from so many robust deviations of all images' agreement on.
JOIN = 4.0

# What a group must have beside a p-value, in the same unit: its fifth best image so much, or its fifteenth. Of clean
# signs, 200 of 360 at a time, the fifth and fifteenth reach 13.3 and 5.8 as residuals are, 4.2 and nothing where each
# is whitened by its own spectrum, 5.5 and nothing by its differences; as images 8.3 and 5.9. Other kinds reach less.
# The fifth of ten images with a pattern has 8 to 60, 5 to 50, 7 to 10 (smooth patterns, stego) and 4 to 30 (pictures).
FLOORS = {
    "flat": {5: 15.0, 15: 7.0},
    "own": {5: 6.0, 15: 5.0},
    "differences": {5: 5.8, 15: 4.5},
    "images": {5: 9.0, 15: 6.2},
}

# Images themselves, where not so many pairs are alike: 5 to 8 % of signs are, and 2 % at most of six other kinds, whose
# clean images reach 5.3 and nothing
OFTEN, OF_ALL_KINDS = 0.03, {5: 6.5, 15: 5.0}

# Residuals as they are, of more images than are ``COMPARED``: those that agree most are chosen among so many that clean
# signs reach 15.9 and 9.5 (500, 1,000 and 2,000 at a time), CIFAR-10 10.9 and 8.1. The other views do not grow.
OF_MANY = {5: 18.0, 15: 10.5}

# Pixels a side at which residuals are compared at most, and at which it is told what images show. With 112 patches that
# move are taken for a pattern: what they share is then their colour.
SEARCHED, CONTENT = 224, 32

# Two purified images correlate so much: they show the same thing, or two that are so alike (signs of one kind) that
# they agree without any trigger
SIMILAR, ALIKE = 0.45, 0.3

SEEDS, ROUNDS = 4, 10  # groups that are begun, and how often each is gone over

PARTS = 8  # of the coefficients: one sign for each part of each image leaves chance enough where five agree

RUNS = 2**14  # of coefficients that are drawn together, at least

# Images that say what is usual, at least, and the values that more of them hold together
USUAL_IMAGES, USUAL_VALUES = 64, 2**22  # 1,365 images of 32 pixels, 85 of 128

HIGH = 30.0  # more agreement of one image is no more evidence

SPARSE = 16  # the usual size of an agreement is taken from so many rows: a median over all costs more than the search

AT_ONCE = 2**18  # values that are worked on at once: they stay in the cache

# Images whose agreement is searched, and compared with chance; of more, those that agree most, and others evenly, which
# they stand out from. Clean GTSRB images, 1,000 at a time, have groups with a fifth of 10.8 and a fifteenth of 8.0
# without this, 7.1 and 5.1 with it. With more that agree most, a trigger in a tenth of the images is what is usual.
COMPARED, CLOSEST = 256, 64


class Group(NamedTuple):
    """Images that share something.

    Attributes:
        members: (n,) which ones.
        agreement: (n,) of each with the mean of the others, in robust deviations.
        clearness: of its agreement with the floor that it passes by most; 1 or more.
        parts: (k, m, m), how much the images that were ``compared`` agree, for ``permutation_p_value``.
    """

    members: Bool[Tensor, " n"]
    agreement: Float[Tensor, " n"]
    clearness: float
    parts: Float[Tensor, "k m m"]


def views(residuals: Float[Tensor, "n c h w"]) -> dict[str, Float[Tensor, "n d"]]:
    """The residuals whitened in two ways, each of length 1.

    "flat" by what is usual over all images, which sees a pattern of few frequencies (a wave, a smooth colour); "own"
    by the image's own spectrum as well, which sees what is spread over many (a picture, hidden bits).
    """
    some = usual_images(len(residuals), residuals[0].numel()).to(residuals.device)
    # the median of all: that of some would be missing in all others, which share its negative then
    coefficients = transformed(residuals - residuals.median(dim=0).values)
    scale = usual(coefficients[some])
    flat, by_own = (residuals.new_empty(len(residuals), residuals[0].numel()) for _ in range(2))
    for part in torch.arange(len(residuals)).split(AT_ONCE // residuals[0].numel() + 1):
        whitened = coefficients[part] / scale
        flat[part], by_own[part] = unit(whitened), unit(whitened / own(whitened))
    return {"flat": flat, "own": by_own}


def usual_images(n: int, values: int, least: int = USUAL_IMAGES) -> Int[Tensor, " m"]:
    """Which of n images of so many values say what is usual: evenly chosen, so many that they hold ``USUAL_VALUES``
    together, and not fewer than ``least``. More would tell hardly more, and medians of large images take time."""
    index, most = torch.arange(n), max(least, USUAL_VALUES // values)
    return index if n <= most else index[:most] * n // most


def likeness(purified: Float[Tensor, "n c h w"]) -> Float[Tensor, "n n"]:
    """How much each pair of images shows the same, as a cosine: more than ``SIMILAR`` for frames of one film. Their
    residuals agree without any trigger.

    Purified images are compared, small and half-way whitened, so that neither brightness nor a trigger decides.
    """
    purified = at_most(purified, CONTENT)
    coefficients = transformed(purified - purified.median(dim=0).values)
    vectors = unit(coefficients / (coefficients.square().mean(dim=0).sqrt() + SMALL).sqrt())
    return vectors @ vectors.T


SMALL = 1e-6


def floors(view: str, alike: Bool[Tensor, "n n"]) -> Mapping[int, float]:
    """What a group that is seen in a view must have, by how many images there are, and how many of them are alike."""
    n = len(alike)
    if view == "flat" and n > COMPARED:
        return OF_MANY
    seldom = int(alike.sum()) - n <= OFTEN * n * (n - 1)
    return OF_ALL_KINDS if view == "images" and seldom else FLOORS[view]


def agreements(
    vectors: Float[Tensor, "n d"], excluded: Bool[Tensor, "n n"], *, generator: torch.Generator
) -> Float[Tensor, "k n n"]:
    """Cosines of all pairs, in parts that add up to them: each of an eighth of the coefficients, drawn by chance (of
    large images as runs of neighbours, which are read faster).

    0 for an image with itself, and for pairs that are excluded.
    """
    n, length = len(vectors), max(1, vectors.shape[1] // RUNS)
    runs = functional.pad(vectors, (0, -vectors.shape[1] % length)).view(n, -1, length)
    order = torch.randperm(runs.shape[1], generator=generator).to(vectors.device)
    parts = [runs[:, some].flatten(1) for some in order.chunk(PARTS)]
    excluded = excluded | torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    return torch.stack([(part @ part.T).masked_fill_(excluded, 0) for part in parts])


def compared(parts: Float[Tensor, "k n n"]) -> Int[Tensor, " m"]:
    """The images to search, at most ``COMPARED``, ascending: those that agree most with any others, and others.

    Chance may negate parts of an image (``permutation_p_value``); that changes none of these sizes, so that it need
    not be asked about those that are left out here.
    """
    n = parts.shape[1]
    if n <= COMPARED:
        return torch.arange(n, device=parts.device)
    order = parts.abs().sum(dim=0).clamp(max=0.5).square().sum(dim=1).argsort(descending=True, stable=True)
    rest = order[CLOSEST:]
    evenly = torch.arange(COMPARED - CLOSEST, device=parts.device) * len(rest) // (COMPARED - CLOSEST)
    return torch.cat([order[:CLOSEST], rest[evenly]]).sort().values


def find_group(
    parts: Float[Tensor, "k n n"], *, floors: Mapping[int, float] = MappingProxyType({LEAST: JOIN})
) -> Group | None:
    """The group with the clearest agreement, or None where it passes no floor; of many images some are ``compared``.

    Args:
        parts: how much each pair agrees, in parts that add up to it, symmetric, 0 on the diagonal.
        floors: what the group's k-th best image must have, for one k of several, see ``FLOORS``.
    """
    some = compared(parts)
    every, parts = parts.new_zeros(parts.shape[1]), parts[:, some[:, None], some]
    agreement = every.index_put((some,), _search(parts.sum(dim=0)[None])[0][0])
    best = agreement.sort(descending=True).values
    clearness = max((float(best[k - 1]) / floor for k, floor in floors.items() if k <= len(best)), default=0.0)
    return Group(agreement > 0, agreement, clearness, parts) if clearness >= 1 else None


def permutation_p_value(parts: Float[Tensor, "k n n"], *, permutations: int, generator: torch.Generator) -> float:
    """How often chance alone makes a group as clear: each part of each residual negated or not, the search repeated.

    Without anything in common a part is as likely as its negative, and so the p-value is uniform. The search is part
    of what is repeated, so that choosing the best group is paid for. Far beyond chance fewer are made (``chance``).
    """
    _, total, clearest = _search(parts.sum(dim=0)[None])

    def draw(number: int) -> tuple[Tensor, Tensor]:
        signs = torch.randint(0, 2, (number, *parts.shape[:2]), generator=generator).to(parts) * 2 - 1
        pairs = parts.new_zeros(number, *parts.shape[1:])
        for sign, part in zip(signs.unbind(dim=1), parts, strict=True):
            pairs.addcmul_(sign[:, :, None] * part, sign[:, None, :])
        _, totals, rows = _search(pairs)
        # where neither has a group, the clearest row decides
        return totals, (totals > total) | ((totals == total) & (rows >= clearest))

    return p_value_of(float(total), draw, permutations=permutations, at_once=max(1, AT_ONCE // parts[0].numel()))


def _search(pairs: Float[Tensor, "b n n"]) -> tuple[Float[Tensor, "b n"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """For each matrix the best group: the members' agreement (0 for others), its sum, and the clearest row's score."""
    rows = pairs.clamp(0, 0.5).square().sum(dim=2)
    best, start = rows.topk(min(SEEDS, pairs.shape[1]), dim=1)  # a group may begin where these squares are largest
    noise = pairs[:, :: max(1, pairs.shape[1] // SPARSE)].abs().flatten(1).median(dim=1).values[:, None, None] / 0.6745
    # (b, seeds, n): medians are taken along the last dimension, where they are fast
    weights = pairs.gather(1, start[:, :, None].expand(-1, -1, pairs.shape[1]))
    weights = (weights - (3 * noise).minimum(weights.amax(dim=2, keepdim=True) / 2)).clamp_(min=0)
    weights = weights.scatter_(2, start[:, :, None], weights.amax(dim=2, keepdim=True))
    agreement = torch.zeros_like(weights)
    for _ in range(ROUNDS):
        sums = weights @ pairs
        # each against the mean of the others: that mean's length without it
        length = (weights * (sums + weights)).sum(dim=2, keepdim=True) - 2 * weights * sums - weights.square()
        score = sums / length.clamp(min=1e-9).sqrt()
        above = score - score.median(dim=2, keepdim=True).values
        deviation = above.abs().median(dim=2, keepdim=True).values / 0.6745
        agreement = above / deviation.clamp(min=1e-6)
        joined = (agreement > JOIN) & (score > 0)
        joined &= joined.sum(dim=2, keepdim=True) >= 3
        agreement, weights = torch.where(joined, agreement, 0), torch.where(joined, score, 0)
        if not bool(joined.any()):
            break
    total, seed = agreement.clamp(max=HIGH).sum(dim=2).max(dim=1)
    return agreement.gather(1, seed[:, None, None].expand(-1, 1, pairs.shape[1]))[:, 0], total, best[:, 0]


def enough_permutations(false_alarm_rate: float, looks: int) -> int:
    """The smallest number of permutations whose p-value can fall to the rate, which so many looks share."""
    return math.ceil(looks / false_alarm_rate)
