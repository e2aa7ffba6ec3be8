"""The pattern of a group of images, refined: which estimate, which way of comparing, and which images carry it."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sampdetox_transforms.method.restore import is_small
from sampdetox_transforms.method.shared.differences import SIDE
from sampdetox_transforms.method.shared.estimate import Shared, as_picture, blend, estimate
from sampdetox_transforms.method.shared.find import LEAST, USUAL_IMAGES, usual_images
from sampdetox_transforms.method.shared.match import (
    HALF,
    Filter,
    Way,
    is_patch,
    make_filter,
    matching,
    patch_distance,
    strengths,
    strengths_in,
)
from sampdetox_transforms.method.shared.others import Others, describe
from sampdetox_transforms.method.shared.spectrum import at_most, transformed

# Times that the pattern is estimated anew from all images that match it, and which rate these match at: a few images
# that do not carry it cost more than a few more that do bring
AGAIN, SURE = 2, 3e-5

# What a match needs at least: more than this quantile of the others has, up to this share of what members have
USUAL, BELOW = 0.98, 0.6

# Ways of comparing images with what was found, see ``Filter``. The last is for what only differences showed, and where
# the others do not tell members: by less than so many of both their deviations.
WAYS: tuple[Way, ...] = ("own", "usual", "differences")
TOLD = 2.0

# Estimates, whether from the images alone, and ways of comparing, where only differences showed a pattern; residuals of
# large images have nothing of it then
IF_FAINT: tuple[tuple[bool, Way], ...] = tuple(itertools.product((False, True), WAYS))
IF_LARGE: tuple[tuple[bool, Way], ...] = ((True, "differences"),)

# So many times better an estimate from the images must tell members than one from residuals, which have less noise
CLEARER = 1.2


class Refined(NamedTuple):
    """A pattern, and what it comes from.

    Attributes:
        shared: the pattern and its opacity.
        known: what a match is measured against.
        members: (n,) the images that it was estimated from.
        tells: how well the pattern of half of them tells the other half from other images (d'); infinity for a patch.
    """

    shared: Shared
    known: Filter
    members: Bool[Tensor, " n"]
    tells: float = math.inf


def refined(
    images: Float[Tensor, "n c h w"],
    purified: Float[Tensor, "n c h w"],
    left: Bool[Tensor, " n"],
    members: Bool[Tensor, " n"],
    same: Bool[Tensor, "n n"],
    *,
    faint: bool = False,
) -> Refined:
    """The pattern, estimated anew from all images that match it.

    Args:
        images: in [0, 1].
        purified: the same behind a purifier.
        left: which images are searched.
        members: which of them agree.
        same: which pairs show the same thing.
        faint: whether only differences of neighbouring pixels showed it.
    """
    # what shows the same as a member is neither: that member's own noise is in the pattern
    alike = same[:, members].any(dim=1)
    others = _unlike(left & ~members, alike)
    # differences are compared so small, and so are large images until it is known which of them carry the pattern
    large = faint and not is_small(images)
    seen, seen_purified = (at_most(x, SIDE) if large else x for x in (images, purified))
    among = None if not faint else IF_LARGE if large else IF_FAINT
    shared, known, choice = _estimated(seen, seen_purified, members, others, among)
    for _ in range(AGAIN):
        match = matching(seen, shared, known, false_alarm_rate=SURE) & left
        more = _without_strays(seen, shared, known, members | (match & ~alike))
        unmatched = left & ~more & ~match & ~alike
        if torch.equal(more, members) or int(unmatched.sum()) < LEAST:
            break
        members, alike = more, same[:, more].any(dim=1)
        others = _unlike(unmatched, alike)
        shared, known, choice = _estimated(seen, seen_purified, members, others, among)
    if large:
        shared, known, _ = _estimated(images, purified, members, others, among, choice)
    return Refined(shared, known, members, math.inf if choice is None or is_patch(shared) else choice.apart)


def _unlike(others: Tensor, alike: Tensor) -> Tensor:
    """Others but for those that are like a member, where this leaves any to compare with."""
    rest = others & ~alike
    return rest if int(rest.sum()) >= LEAST else others


def _without_strays(images: Tensor, shared: Shared, known: Filter, members: Tensor) -> Tensor:
    """Those that carry half of what members typically carry: the others dilute the pattern, and lower what a match
    needs, until clean images match."""
    if is_patch(shared):
        return members
    amount, _ = strengths(images, shared, known)
    stay = members & (amount > HALF * amount[members].median())
    return stay if int(stay.sum()) >= LEAST else members


class _Choice(NamedTuple):
    """How a pattern is estimated, how images are compared with it, how much of it members typically have, and how well
    they are told by it."""

    mixed: bool
    way: Way
    typical: float
    apart: float = math.inf


def _estimated(
    images: Tensor,
    purified: Tensor,
    members: Tensor,
    others: Tensor,
    among: Sequence[tuple[bool, Way]] | None,
    choice: _Choice | None = None,
) -> tuple[Shared, Filter, _Choice | None]:
    """What the members share, what a match with it is measured against, and what was chosen where it was not given."""
    index = others.nonzero()[:, 0]
    some = usual_images(len(index), images[0].numel(), max(USUAL_IMAGES, 3 * int(members.sum())))
    compared_with = index[some.to(index.device)]
    rest = describe(images[compared_with], purified[compared_with])
    own, own_purified = images[members], purified[members]
    shared = estimate(own, own_purified, rest, mixed=choice is not None and choice.mixed)
    if choice is not None:
        # what differences show in photographs is a picture, which takes of their contrast what it brings
        shared = as_picture(shared, rest)
    if is_patch(shared):
        reached = float(patch_distance(own, shared).median())
        return shared, make_filter(shared, rest, reached=reached), choice
    if choice is None:
        # what a purifier took says how much of a picture is mixed in, unless it took nothing, or a patch as well
        alpha = None if among is not None or bool(shared.opaque.any()) else float(shared.opacity.mean())
        choice = _chosen(own, own_purified, rest, among, alpha)
        shared = estimate(own, own_purified, rest, mixed=True, alpha=alpha) if choice.mixed else shared
    known = make_filter(shared, rest, way=choice.way, typical=choice.typical)
    # where clean images hold some of it by chance, as of a smooth pattern, a match needs more than nearly all of them;
    # no more than members have, as a few of the others may carry it unnoticed
    most = BELOW * min(1.0, float(strengths(own, shared, known)[0].median()))
    chance = float(strengths_in(rest.whitened, shared, known)[0].quantile(USUAL))
    return shared, known._replace(least=max(known.least, min(chance, most))), choice


def _chosen(
    own: Tensor,
    own_purified: Tensor,
    rest: Others,
    among: Sequence[tuple[bool, Way]] | None,
    alpha: float | None = None,
) -> _Choice:
    """The estimate that explains best what members are beside others, and the way of comparing that tells them best.

    Half of the images are asked with the pattern of the other half: the noise of an image is in the pattern that it was
    averaged into. Where only differences showed the pattern the mean of the images says little, and the estimate is
    taken that tells them best, too, of those that are to choose ``among``.
    """
    halves = [
        _Half(own[one::2], own_purified[one::2], describe(rest.images[one::2], rest.purified[one::2])) for one in (0, 1)
    ]

    def crossed(mixed: bool) -> list[Shared]:
        return [estimate(*half, mixed=mixed, alpha=alpha) for half in reversed(halves)]

    if among is None:
        ways = (False, True) if blend(own, rest) else (False,)
        patterns = {mixed: crossed(mixed) for mixed in ways}
        errors = {mixed: sum(map(_unexplained_half, halves, pair)) for mixed, pair in patterns.items()}
        least = min(errors, key=lambda mixed: errors[mixed])
        candidates: Sequence[tuple[bool, Way]] = [(least, way) for way in WAYS]
    else:
        candidates = among
        patterns = {mixed: crossed(mixed) for mixed in {mixed for mixed, _ in among}}
    best, choice = -math.inf, _Choice(*candidates[0], 1.0)
    for mixed, way in candidates:
        if way == "differences" and among is None and best > TOLD:
            continue
        told, typical = _apart(halves, patterns[mixed], way)
        apart = told / (CLEARER if mixed and among is not None else 1)
        if apart > best:
            best, choice = apart, _Choice(mixed, way, typical, told)
    return choice


class _Half(NamedTuple):
    """Half of the members, and of the others."""

    images: Tensor
    purified: Tensor
    others: Others


def _unexplained_half(half: _Half, shared: Shared) -> float:
    return unexplained(half.images, shared, half.others)


def _apart(halves: list[_Half], patterns: list[Shared], way: Way) -> tuple[float, float]:
    """How well the other half's patterns tell members from others (d', Green and Swets 1966), and how much members
    typically have of them."""
    with_it, without_it = [], []
    for half, pattern in zip(halves, patterns, strict=True):
        known = make_filter(pattern, half.others, way=way)
        with_it.append(strengths(half.images, pattern, known)[0])
        without_it.append(strengths_in(half.others.whitened, pattern, known)[0])
    carried, usually = torch.cat(with_it), torch.cat(without_it)
    apart = (carried.median() - usually.median()) / (carried.std() + usually.std()).clamp(min=1e-6)
    return float(apart), float(carried.median())


def unexplained(images: Tensor, shared: Shared, others: Others) -> float:
    """What is left of mean(images) - mean(others) beside what a pattern changes there, less what there was: negative
    where it explains something. Coefficients count half-way whitened."""
    direct, changed = images.mean(dim=0) - others.mean, shared.change(others.mean)
    direct, changed = transformed(torch.stack([direct, changed]))
    return float((changed * (changed - 2 * direct) / others.variance.sqrt().clamp(min=1e-6)).sum())
