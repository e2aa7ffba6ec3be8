"""Answers to a trigger that lies over the whole image: from one that was not noticed for certain to one that was.

There is nothing to fill such a trigger from. A cast has an answer of its own that leaves the details; for all else
there is the networks' estimate of the image without a trigger, and a noise level for what it leaves. Waves are taken
out before anything is looked at (``waves.py``).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sampdetox_transforms.method.look import Look
from sampdetox_transforms.method.retouch import energy, faint, mostly_colour, mostly_fine
from sampdetox_transforms.method.search import SearchNetworks

LARGEST = 0.3  # of an image's contrast, that a faint trigger has at most


class DenseAnswer(NamedTuple):
    """What takes the place of images with a dense trigger; others are as they were.

    Attributes:
        x: (b, c, h, w), the images.
        colour: (b,), the trigger is a colour cast: ``x`` is the image as it was, and its cast is to be taken away.
        light, rest: (b,), ``x`` is made from the networks' estimate; what that leaves of the trigger drowns in little
            noise, or does not.
        calls: (b,), network calls.
    """

    x: Float[Tensor, "b c h w"]
    colour: Bool[Tensor, " b"]
    light: Bool[Tensor, " b"]
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
    networks: SearchNetworks,
    *,
    gain: float,
    colour: bool,
    matched: Bool[Tensor, " b"],
) -> DenseAnswer:
    """A cast: the image as it is. Else x + gain (E - x), with E the networks' estimate of the image without a trigger,
    and where that is faint, no more than ``fainter_than``.

    Args:
        dense: which images have a dense trigger.
        gain: more than the estimate takes, as for ``lightened``.
        colour: whether casts have their own answer.
        matched: which images lost a shared trigger before; what is left of that is faint, however it looks.
    """
    estimate = estimated(seen, dense, networks)
    calls = dense.long() * (seen.answer.image is None)
    cast = dense & mostly_colour(seen.x, estimate) if colour else torch.zeros_like(dense)
    light = mostly_fine(seen.x, estimate) | faint(seen.x, estimate) | matched
    change = gain * (estimate - seen.x)
    change = torch.where(light[:, None, None, None], fainter_than(seen.x, change), change)
    x = torch.where((dense & ~cast)[:, None, None, None], (seen.x + change).clamp(-1, 1), seen.x)
    return DenseAnswer(x, cast, dense & ~cast & light, dense & ~cast & ~light, calls)


def fainter_than(x: Float[Tensor, "b c h w"], change: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """A change of at most ``LARGEST`` of the image's contrast, root mean square.

    A trigger that is hidden in fine detail is fainter than what hides it. In a dark image an estimate that takes more
    than that takes the image's own details.
    """
    own = energy(x - x.mean(dim=(1, 2, 3), keepdim=True))
    share = LARGEST * (own / energy(change).clamp(min=1e-12)).sqrt()
    return change * share.clamp(max=1)[:, None, None, None]


def estimated(seen: Look, dense: Bool[Tensor, " b"], networks: SearchNetworks) -> Float[Tensor, "b c h w"]:
    """The networks' estimate of images with a dense trigger; the others as they are."""
    if seen.answer.image is not None:
        return torch.where(dense[:, None, None, None], seen.answer.image.clamp(-1, 1), seen.x)
    index = dense.nonzero()[:, 0]
    return seen.x.index_put((index,), networks.estimate(seen.x[index]).clamp(-1, 1)) if len(index) else seen.x
