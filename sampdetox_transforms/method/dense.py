"""Answers to a trigger that lies over the whole image: from one that was not noticed for certain to one that was.

There is nothing to fill such a trigger from. Waves and casts have an answer of their own that leaves the details;
for all else there is the networks' estimate of the image without a trigger, and a noise level for what it leaves.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sampdetox_transforms.method.calibration import Calibration
from sampdetox_transforms.method.lines import without_lines
from sampdetox_transforms.method.look import Look, judged
from sampdetox_transforms.method.retouch import mostly_colour, mostly_fine
from sampdetox_transforms.method.search import SearchNetworks


class DenseAnswer(NamedTuple):
    """What takes the place of images with a dense trigger; others are as they were.

    Attributes:
        x: (b, c, h, w), the images.
        lines: (b,), lines of the spectrum were taken out, and nothing suspicious is left.
        colour: (b,), the trigger is a colour cast: ``x`` is the image as it was, and its cast is to be taken away.
        fine, rest: (b,), ``x`` is the networks' estimate; what it leaves of the trigger is fine detail, or is not.
        calls: (b,), network calls.
    """

    x: Float[Tensor, "b c h w"]
    lines: Bool[Tensor, " b"]
    colour: Bool[Tensor, " b"]
    fine: Bool[Tensor, " b"]
    rest: Bool[Tensor, " b"]
    calls: Int[Tensor, " b"]


def lightened(seen: Look, gain: float) -> Float[Tensor, "b c h w"]:
    """The image with less of a dense trigger, as far as one is likely: x + gain P(trigger) (E[image | trigger] - x).

    More than the estimate takes (gain 3, docs/restore.md has the measurement), as that is a mean over all that the
    image may be: half of a wave, a quarter of a blended picture. Half of a trigger is often no trigger. Networks that
    do not give their estimate with each look take nothing.
    """
    if seen.answer.image is None or gain == 0:
        return seen.x
    return torch.lerp(seen.x, seen.answer.image, gain * seen.likely[:, None, None, None]).clamp(-1, 1)


def answer_dense(
    seen: Look,
    dense: Bool[Tensor, " b"],
    mask: Bool[Tensor, "b 1 h w"],
    networks: SearchNetworks,
    calibration: Calibration,
    *,
    lines: float,
    colour: bool,
) -> DenseAnswer:
    """The first of these that holds: lines explain the suspicion; it is a cast; the estimate, with fine detail or not.

    Args:
        dense: which images have a dense trigger.
        mask: what was located besides; where it is empty, lines are sought.
        lines: as for ``without_lines``; 0 looks for none.
        colour: whether casts have their own answer.
    """
    explained, x, calls = torch.zeros_like(dense), seen.x, dense.long() * 0
    if lines:
        explained, x, calls = explained_by_lines(seen, dense & ~mask.any(dim=(1, 2, 3)), networks, calibration, lines)
    dense = dense & ~explained
    estimate = estimated(seen, dense, networks)
    calls = calls + dense if seen.answer.image is None else calls
    cast = dense & mostly_colour(seen.x, estimate) if colour else torch.zeros_like(dense)
    fine = mostly_fine(seen.x, estimate)
    x = torch.where((dense & ~cast)[:, None, None, None], estimate, x)
    return DenseAnswer(x, explained, cast, dense & ~cast & fine, dense & ~cast & ~fine, calls)


def explained_by_lines(
    seen: Look, dense: Bool[Tensor, " b"], networks: SearchNetworks, calibration: Calibration, ratio: float
) -> tuple[Bool[Tensor, " b"], Float[Tensor, "b c h w"], Int[Tensor, " b"]]:
    """Which images are no longer suspicious without their lines, the images with these taken out, and the calls.

    Only images in which a line stands out are looked at again.
    """
    without = without_lines(seen.x, ratio)
    index = (dense & ((without - seen.x).abs() > 1e-6).flatten(1).any(dim=1)).nonzero()[:, 0]
    explained, calls = torch.zeros_like(dense), dense.long() * 0
    if not len(index):
        return explained, seen.x, calls
    again = judged(without[index], seen.shrunk, networks, calibration)
    explained = explained.index_put((index,), ~again.alarms.any(dim=1))
    calls = calls.index_fill(0, index, networks.calls)
    return explained, torch.where(explained[:, None, None, None], without, seen.x), calls


def estimated(seen: Look, dense: Bool[Tensor, " b"], networks: SearchNetworks) -> Float[Tensor, "b c h w"]:
    """The networks' estimate of images with a dense trigger; the others as they are."""
    if seen.answer.image is not None:
        return torch.where(dense[:, None, None, None], seen.answer.image.clamp(-1, 1), seen.x)
    index = dense.nonzero()[:, 0]
    return seen.x.index_put((index,), networks.estimate(seen.x[index]).clamp(-1, 1)) if len(index) else seen.x
