"""The trigger that many images share, recovered from them and from what a purifier made of them.

Nothing else is needed, neither labels nor a classifier: a group of images whose residuals agree (``find``), what they
share (``estimate``), which images carry it and how they are without it (``match``). Pure functions on (n, c, h, w)
tensors in [0, 1].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sampdetox_transforms.method.restore import is_small
from sampdetox_transforms.method.shared.differences import image_view
from sampdetox_transforms.method.shared.estimate import Shared, blend, estimate
from sampdetox_transforms.method.shared.find import (
    FLOORS,
    LEAST,
    SEARCHED,
    USUAL_IMAGES,
    Group,
    agreements,
    enough_permutations,
    find_group,
    permutation_p_value,
    same_content,
    usual_images,
    views,
)
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
from sampdetox_transforms.method.shared.moving import find_moving
from sampdetox_transforms.method.shared.others import Others, Whitened, describe, whiten
from sampdetox_transforms.method.shared.spectrum import at_most, transformed

LOOKS = len(FLOORS) + 1  # at the residuals and images in each view, and for a patch that moves

MOST = 5  # triggers that are looked for, one after the other

# Times that the pattern is estimated anew from all images that match it, and which rate these match at: a few images
# that do not carry it cost more than a few more that do bring
AGAIN, SURE = 2, 3e-5

# What a match needs at least: more than this quantile of the others has, up to this share of what members have
USUAL, BELOW = 0.98, 0.6

# Ways of comparing images with what was found in residuals, and in images, see ``Filter``
IN_RESIDUALS: tuple[Way, ...] = ("own", "usual")
IN_IMAGES: tuple[Way, ...] = ("differences",)


@dataclass(frozen=True)
class Recovered:
    """A trigger that images share.

    Attributes:
        shared: its pattern and opacity.
        known: what a match is measured against.
        p_value: how often chance alone makes images agree so, all looks together.
        members: (n,) the images that it was recovered from.
        moves: whether it is a patch that has a place of its own in each image.
    """

    shared: Shared
    known: Filter
    p_value: float
    members: Bool[Tensor, " n"]
    moves: bool = False


def recover_shared(
    images: Float[Tensor, "n c h w"],
    purified: Float[Tensor, "n c h w"],
    *,
    false_alarm_rate: float = 0.01,
    most: int = MOST,
    seed: int = 0,
) -> list[Recovered]:
    """The triggers that images share, the clearest first; the images of one are left out when the next is sought.

    Args:
        images: suspected images.
        purified: the same behind a purifier. Images that it did not change say nothing.
        false_alarm_rate: how often a trigger may be claimed where images have nothing in common but chance.
        most: stop at so many triggers.
        seed: of the permutations.
    """
    generator = torch.Generator().manual_seed(seed)
    residuals, same = at_most(images - purified, SEARCHED), same_content(purified)
    left = torch.ones(len(images), dtype=torch.bool, device=images.device)
    found = []
    for _ in range(2 * most):
        if len(found) == most or int(left.sum()) < LEAST + 3:
            break
        alike = same[left][:, left]
        clearest = _clearest(views(residuals[left]), alike, false_alarm_rate, generator)
        in_images = clearest is None and not is_small(images)  # what lies over all of a small one is in its residual
        if in_images:
            clearest = _clearest(image_view(images[left]), alike, false_alarm_rate, generator)
        if clearest is None:
            moving = _moving(images, purified, left, same, false_alarm_rate, generator)
            if moving is None:
                break
            left &= ~moving.members
            found.append(moving)
            continue
        members = left.clone()
        group, p_value = clearest
        members[left] = group.members
        recovered = _refined(images, purified, left, members, same, p_value, in_images)
        left &= ~(recovered.members | members)
        carriers = images[recovered.members]
        if int(matching(carriers, recovered.shared, recovered.known, false_alarm_rate=false_alarm_rate).sum()) >= LEAST:
            found.append(recovered)  # what not even its own images match is of no use
    return found


def _clearest(
    seen: Mapping[str, Tensor], same: Tensor, false_alarm_rate: float, generator: torch.Generator
) -> tuple[Group, float] | None:
    """The group that stands out most in one of the views, with the p-value of all looks together.

    Nearly all of the time goes to chance, which is asked about a view only where those that stand out more were chance.
    """
    permutations = enough_permutations(false_alarm_rate, LOOKS)
    groups = [
        find_group(agreements(vectors, same, generator=generator), floors=FLOORS[view])
        for view, vectors in seen.items()
    ]
    for group in sorted(filter(None, groups), key=lambda group: -group.clearness):
        p_value = LOOKS * permutation_p_value(group.parts, permutations=permutations, generator=generator)
        if p_value <= false_alarm_rate:
            return group, p_value
    return None


def _moving(
    images: Tensor,
    purified: Tensor,
    left: Tensor,
    same: Tensor,
    false_alarm_rate: float,
    generator: torch.Generator,
) -> Recovered | None:
    """A patch that moves, where nothing stays in its place."""
    some, clean = images[left], purified[left]
    found = find_moving(
        some,
        clean,
        same[left][:, left],
        false_alarm_rate=false_alarm_rate,
        looks=LOOKS,
        generator=generator,
    )
    if found is None:
        return None
    members = left.clone()
    members[left] = found.members
    others = describe(some[~found.members], clean[~found.members])
    known = make_filter(found.shared, others)._replace(near=found.near)
    return Recovered(found.shared, known, found.p_value, members, moves=True)


def _refined(
    images: Tensor,
    purified: Tensor,
    left: Tensor,
    members: Tensor,
    same: Tensor,
    p_value: float,
    in_images: bool = False,
) -> Recovered:
    """The pattern, estimated anew from all images that match it."""
    # what shows the same as a member is neither: that member's own noise is in the pattern
    alike = same[:, members].any(dim=1)
    shared, known = _estimated(images, purified, members, left & ~members & ~alike, in_images)
    for _ in range(AGAIN):
        match = matching(images, shared, known, false_alarm_rate=SURE) & left
        more = _without_strays(images, shared, known, members | (match & ~alike))
        others = left & ~more & ~match & ~alike
        if torch.equal(more, members) or int(others.sum()) < LEAST:
            break
        members, alike = more, same[:, more].any(dim=1)
        shared, known = _estimated(images, purified, members, others & ~alike, in_images)
    return Recovered(shared, known, p_value, members)


def _without_strays(images: Tensor, shared: Shared, known: Filter, members: Tensor) -> Tensor:
    """Those that carry half of what members typically carry: the others dilute the pattern, and lower what a match
    needs, until clean images match."""
    if is_patch(shared):
        return members
    amount, _ = strengths(images, shared, known)
    stay = members & (amount > HALF * amount[members].median())
    return stay if int(stay.sum()) >= LEAST else members


def _estimated(
    images: Tensor, purified: Tensor, members: Tensor, others: Tensor, in_images: bool
) -> tuple[Shared, Filter]:
    """What the members share, and what a match with it is measured against.

    How much of it an image that carries it has is asked of half of the members with the pattern of the other half:
    the noise of an image is in the pattern that it was averaged into. The estimate that explains the other half's
    mean best is taken, and the way of comparing that tells them best apart. Where only the images agree
    (``in_images``), residuals say nothing, and a picture is all that it can be.
    """
    index = others.nonzero()[:, 0]
    some = usual_images(len(index), images[0].numel(), max(USUAL_IMAGES, 3 * int(members.sum())))
    compared_with = index[some.to(index.device)]
    rest = describe(images[compared_with], purified[compared_with])
    own, own_purified = images[members], purified[members]
    first = estimate(own, own_purified, rest)
    if is_patch(first):
        reached = float(patch_distance(own, first).median())
        return first, make_filter(first, rest, reached=reached)
    whitened = whiten(own, rest.mean, rest.scale)
    values = [Whitened(whitened.values[one::2], own[one::2]) for one in (0, 1)]
    ways = {
        mixed: [estimate(own[other::2], own_purified[other::2], rest, mixed=mixed) for other in (1, 0)]
        for mixed in ((True,) if in_images else (False, True) if blend(own, rest.images) else (False,))
    }
    errors = {
        mixed: sum(unexplained(own[one::2], half, rest) for one, half in enumerate(halves))
        for mixed, halves in ways.items()
    }
    mixed = min(errors, key=lambda way: errors[way])
    shared = estimate(own, own_purified, rest, mixed=True) if mixed else first
    best: tuple[float, Filter] | None = None
    for way in IN_IMAGES if in_images else IN_RESIDUALS:
        with_it, without_it = [], []
        for one, half in zip(values, ways[mixed], strict=True):
            known = make_filter(half, rest, way=way)
            with_it.append(strengths_in(one, half, known)[0])
            without_it.append(strengths_in(rest.whitened, half, known)[0])
        amounts = torch.cat(with_it)
        apart = float(amounts.quantile(0.2) / torch.cat(without_it).quantile(0.98).clamp(min=1e-3))
        if best is None or apart > best[0]:
            best = apart, make_filter(shared, rest, way=way, typical=float(amounts.median()))
    assert best is not None
    known = best[1]
    # where clean images hold some of it by chance, as of a smooth pattern, a match needs more than nearly all of them;
    # no more than members have, as a few of the others may carry it unnoticed
    most = BELOW * min(1.0, float(strengths_in(whitened, shared, known)[0].median()))
    chance = float(strengths_in(rest.whitened, shared, known)[0].quantile(USUAL))
    return shared, known._replace(least=max(known.least, min(chance, most)))


def unexplained(images: Tensor, shared: Shared, others: Others) -> float:
    """What is left of mean(images) - mean(others) beside what a pattern changes there, less what there was: negative
    where it explains something. Coefficients count half-way whitened."""
    direct, changed = images.mean(dim=0) - others.mean, shared.change(others.mean)
    direct, changed = transformed(torch.stack([direct, changed]))
    return float((changed * (changed - 2 * direct) / others.variance.sqrt().clamp(min=1e-6)).sum())
