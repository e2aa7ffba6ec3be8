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

from sampdetox_transforms.method.shared.differences import difference_views
from sampdetox_transforms.method.shared.estimate import Shared
from sampdetox_transforms.method.shared.find import (
    ALIKE,
    FLOORS,
    LEAST,
    SEARCHED,
    SIMILAR,
    Group,
    agreements,
    enough_permutations,
    find_group,
    floors,
    likeness,
    permutation_p_value,
    views,
)
from sampdetox_transforms.method.shared.match import Filter, make_filter, matching
from sampdetox_transforms.method.shared.moving import find_moving
from sampdetox_transforms.method.shared.others import describe
from sampdetox_transforms.method.shared.refine import refined
from sampdetox_transforms.method.shared.spectrum import at_most

LOOKS = len(FLOORS) + 1  # in each view, and for a patch that moves

# How well a pattern must tell its own images, half of them from the other half's pattern (d'). Of right ones the least
# had 1.3; of seven images of 2,000 whose estimate went astray, and matched a tenth of the clean ones, .7 to 1.0.
TELLS = 1.2

MOST = 5  # triggers that are looked for, one after the other


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
    residuals, alike = at_most(images - purified, SEARCHED), likeness(purified)
    left = torch.ones(len(images), dtype=torch.bool, device=images.device)
    found = []
    for _ in range(2 * most):
        if len(found) == most or int(left.sum()) < LEAST + 3:
            break
        one, useless = _still(images, purified, residuals, left, alike, false_alarm_rate, generator)
        if one is None and not bool(useless.any()):
            one = _moving(images, purified, left, alike > SIMILAR, false_alarm_rate, generator)
            if one is None:
                break
        if one is not None:
            found.append(one)
            left &= ~one.members
        left &= ~useless
    return found


def _still(
    images: Tensor,
    purified: Tensor,
    residuals: Tensor,
    left: Tensor,
    alike: Tensor,
    false_alarm_rate: float,
    generator: torch.Generator,
) -> tuple[Recovered | None, Tensor]:
    """A pattern that has one place in all images, and the images of groups that share something.

    Differences of neighbours are asked where the residuals themselves show nothing, or nothing that tells at least half
    of the images that it comes from, and each half from the other's.
    """
    useless, no_evidence = torch.zeros_like(left), alike[left][:, left] > ALIKE
    for faint in (False, True):
        seen = difference_views(residuals[left], images[left]) if faint else views(residuals[left])
        clearest = _clearest(seen, no_evidence, false_alarm_rate, generator)
        if clearest is None:
            continue
        members = left.clone()
        group, p_value = clearest
        members[left] = group.members
        found = refined(images, purified, left, members, alike > SIMILAR, faint=faint)
        carriers = images[found.members]
        matched = int(matching(carriers, found.shared, found.known, false_alarm_rate=false_alarm_rate).sum())
        if matched >= max(LEAST, len(carriers) / 2) and found.tells >= TELLS:
            return Recovered(found.shared, found.known, p_value, found.members), members
        useless |= found.members | members
    return None, useless


def _clearest(
    seen: Mapping[str, Tensor], alike: Tensor, false_alarm_rate: float, generator: torch.Generator
) -> tuple[Group, float] | None:
    """The group that stands out most in one of the views, with the p-value of all looks together.

    Nearly all of the time goes to chance, which is asked about a view only where those that stand out more were chance.
    """
    permutations = enough_permutations(false_alarm_rate, LOOKS)
    groups = [
        find_group(agreements(vectors, alike, generator=generator), floors=floors(view, alike))
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
