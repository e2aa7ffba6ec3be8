"""Past the paper, the default: look for the trigger before diffusion, and take its region out instead of noising it.

A small patch keeps its mean under the noise of Algorithm 1's local stage, and the denoiser rebuilds it. Here search
networks say which pixels do not belong; they are filled from those around them, without any information from inside,
and looked at again. A trigger all over the image leaves nothing to fill from: the networks' estimate of the image
without it, and a higher noise level, take its place. Pure functions on (b, c, h, w) tensors in [-1, 1].
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.method.checks import check_levels, check_numbers, check_walk, step_of
from sampdetox_transforms.method.noise import fresh_noise, subset
from sampdetox_transforms.method.result import Found, Purified
from sampdetox_transforms.method.sampdetox import global_stage
from sampdetox_transforms.method.samplers import Denoiser, Noise, grid
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.method.search import (
    Answer,
    SearchNetworks,
    dilate,
    enlarge,
    enlarge_map,
    local_suspicion,
    locate,
    shrink,
)

SMALL = 48  # pixels of the shorter side up to which an image is small: ``t1`` is its level, ``t1_large`` of others


class Look(NamedTuple):
    """What was seen in a batch.

    Attributes:
        x: (b, c, h, w), the images at the size at which they were looked at.
        shrunk: whether that is not their own.
        answer: what the networks say of them.
        p_value: (b,), the share of clean images that look at least as suspicious.
        alarms: (b, 2), whether they are taken for images with a local trigger, with a dense one.
    """

    x: Float[Tensor, "b c h w"]
    shrunk: bool
    answer: Answer
    p_value: Float[Tensor, " b"]
    alarms: Bool[Tensor, "b 2"]

    def only(self, index: Int[Tensor, " n"]) -> "Look":
        """What was seen in some of the images."""
        local, dense, image = self.answer
        answer = Answer(local[index], dense[index], image if image is None else image[index])
        return Look(self.x[index], self.shrunk, answer, self.p_value[index], self.alarms[index])


class Removal(NamedTuple):
    """Images with their triggers taken out: (b, c, h, w), the filled pixels, whether dense, and the network calls."""

    x: Float[Tensor, "b c h w"]
    mask: Bool[Tensor, "b 1 h w"]
    dense: Bool[Tensor, " b"]
    calls: Int[Tensor, " b"]


@dataclass(frozen=True, kw_only=True)
class Restore:
    """The global stage for every image, and for those with a trigger a local stage that restores its region.

    Attributes:
        schedule, sampler, stride, eta, variance_type: as in ``Algorithm1``.
        t1: level of the global stage for images with a shorter side of at most 48 pixels; filled images go through it
            as well.
        t1_large: the same for larger ones, in which less noise hides as much; None for ``t1``.
        t2: the level for images with a dense trigger, after the networks' estimate has taken their place.
        looks: how often an image with a trigger is looked at, filled before each further look.
        largest: share of the pixels from which on a mask is too large to be filled; the trigger counts as dense.
        gain: how much of the estimate is taken from images that are not flagged, see ``lightened``; 0 for nothing.

    Network calls of an image with 2 networks to a look at t1 <= stride: 3 without a trigger; at most 3 * looks + 2 with
    a local one, and one more for each stride of t2 with a dense one.

    Raises:
        TypeError, ValueError: a setting of another kind, or out of range.
    """

    schedule: str | None = None
    t1: float = 12
    t1_large: float | None = 8
    t2: float = 120
    sampler: str = "ddim"
    stride: float = 60
    eta: float = 0.0
    variance_type: str = "fixed_small"
    looks: int = 2
    largest: float = 0.4
    gain: float = 3.0

    def __post_init__(self) -> None:
        check_walk(self)
        check_levels(self, "t1", "t2", *(["t1_large"] if self.t1_large is not None else []))
        check_numbers(self, "looks", "largest", "gain")
        if isinstance(self.looks, float) or self.looks < 1:
            raise ValueError(f"looks must be a whole number of 1 or more, got {self.looks}. 2 is the default.")
        if not 0 <= self.largest <= 1:
            raise ValueError(
                f"largest must be a share of the pixels in [0, 1], got {self.largest}. 0.4 is the default."
            )
        if not 0 <= self.gain < float("inf"):
            raise ValueError(f"gain must be 0 or more, got {self.gain}. 3 is the default, 0 takes nothing.")

    @property
    def highest_level(self) -> float:
        """The highest level at which the network is asked."""
        return max(self.t1, self.t2, self.t1_large or 0)

    def run(
        self,
        x0: Float[Tensor, "b c h w"],
        denoiser: Denoiser,
        schedule: Schedule,
        *,
        networks: SearchNetworks,
        calibrations: Calibrations,
        noise: Noise = fresh_noise,
    ) -> Purified:
        """Images in [-1, 1] in and out.

        Args:
            x0, denoiser, schedule, noise: as in ``purify``.
            networks: find triggers in images of this size, and fill regions.
            calibrations: from what suspicion on an image is taken for a triggered one.
        """
        calibration = calibrations.of(networks)
        t1 = self.t1 if self.t1_large is None or min(x0.shape[-2:]) <= SMALL else self.t1_large
        diffuse = Diffusion(self, networks.denoiser(schedule) or denoiser, schedule)

        seen = look(x0, networks, calibration)
        start = enlarge(x0, seen.x, lightened(seen, calibration, self.gain))
        stage1 = diffuse(start, t1, noise)
        index = seen.alarms.any(dim=1).nonzero()[:, 0]
        removed = take_out(seen.only(index), networks, looks=self.looks, largest=self.largest)
        mask = enlarge_map(removed.mask.to(x0), x0) > 0
        filled = enlarge(x0[index], seen.x[index], removed.x, removed.mask)
        again = diffuse.to_own_levels(filled, t1, removed.dense, subset(noise, index))

        steps = torch.tensor([len(grid(level, self.stride)) - 1 for level in (t1, self.t2)], device=x0.device)
        calls = torch.full((len(x0),), networks.calls, device=x0.device) + steps[0]
        calls = calls.index_add(0, index, removed.calls + steps[removed.dense.long()])
        of_kind = torch.tensor([t1, self.t2], dtype=torch.float64, device=x0.device)
        levels = of_kind[removed.dense.long()][:, None, None, None]
        return Purified(
            stage1.index_put((index,), again),
            stage1,
            mask.new_zeros((len(x0), *mask.shape[1:]), dtype=torch.float64).index_put((index,), levels.expand_as(mask)),
            calls,
            float(schedule.sigma(t1)),
            float(schedule.sigma(self.t2)),
            found=Found(
                enlarge_map(seen.answer.local, x0).double().sigmoid(),
                mask.new_zeros((len(x0), *mask.shape[1:])).index_put((index,), mask),
                removed.dense.new_zeros(len(x0)).index_put((index,), removed.dense),
                seen.p_value,
            ),
            lightened=x0 - start,
        )


class Diffusion(NamedTuple):
    """Noise up to a level, and the walk of the settings down to 0."""

    settings: Restore
    denoiser: Denoiser
    schedule: Schedule

    def __call__(self, x: Float[Tensor, "b c h w"], level: float, noise: Noise) -> Float[Tensor, "b c h w"]:
        """``global_stage`` from one level."""
        levels = grid(level, self.settings.stride)
        return global_stage(x, self.denoiser, self.schedule, levels, step_of(self.settings), noise)

    def to_own_levels(
        self, x: Float[Tensor, "b c h w"], t1: float, dense: Bool[Tensor, " b"], noise: Noise
    ) -> Float[Tensor, "b c h w"]:
        """The level t1 for filled images, t2 for those with a dense trigger."""
        result = torch.empty_like(x)
        for these, level in ((~dense, t1), (dense, self.settings.t2)):
            index = these.nonzero()[:, 0]
            if len(index):
                result[index] = self(x[index], level, subset(noise, index))
        return result


def look(x0: Float[Tensor, "b c h w"], networks: SearchNetworks, calibration: Calibration) -> Look:
    """Ask the networks about every image, at the size that they know."""
    x = shrink(x0, networks)
    answer = networks.look(x)
    p_values = calibration.p_values(local_suspicion(answer.local, networks.window), answer.dense)
    alarms = p_values.detach() < calibration.false_alarm_rate
    return Look(x, x.shape[-1] < x0.shape[-1], answer, p_values.amin(dim=1).clamp(max=1), alarms)


def lightened(seen: Look, calibration: Calibration, gain: float) -> Float[Tensor, "b c h w"]:
    """The image with less of a dense trigger, as far as one is likely: x + gain P(trigger) (E[image | trigger] - x).

    More than the estimate takes (gain 3, docs/restore.md has the measurement), as that is a mean over all that the
    image may be: half of a wave, a quarter of a blended picture. Half of a trigger is often no trigger. P is 1/2 where
    one clean image in ten is as suspicious. Networks that do not give their estimate with each look take nothing.
    """
    if seen.answer.image is None or gain == 0:
        return seen.x
    likely = (seen.answer.dense - calibration.doubt).sigmoid()[:, None, None, None]
    return torch.lerp(seen.x, seen.answer.image, gain * likely).clamp(-1, 1)


def take_out(seen: Look, networks: SearchNetworks, *, looks: int, largest: float) -> Removal:
    """The triggers of flagged images: dense ones give way to the estimate, located pixels are filled.

    A filled image is looked at again, and filled anew with what still stands out. Once located, pixels stay in the
    mask, so that no look brings back what an earlier one took out.
    """
    if not len(seen.x):
        nobody = seen.alarms[:, 1]
        return Removal(seen.x, seen.answer.local > 0, nobody, nobody.long())
    mask, dense = first_mask(seen, networks, largest)
    x = replaced(seen, dense, networks)
    calls = torch.zeros(len(x), dtype=torch.long, device=x.device)
    result, index = x, mask.any(dim=(1, 2, 3)).nonzero()[:, 0]
    for number in range(looks):
        if len(index):
            result = result.index_put((index,), networks.fill(x[index], mask[index]))
            calls[index] += 1
        if number == looks - 1 or not len(index):
            break
        more = located(networks.look(result[index]).local, seen.shrunk, networks, number + 1)
        calls[index] += networks.calls
        wider = mask[index] | more
        fits = (wider.float().mean(dim=(1, 2, 3)) <= largest) & (more & ~mask[index]).any(dim=(1, 2, 3))
        index, wider = index[fits], wider[fits]
        mask = mask.index_put((index,), wider)
    return Removal(result, mask, dense, calls)


def first_mask(
    seen: Look, networks: SearchNetworks, largest: float
) -> tuple[Bool[Tensor, "b 1 h w"], Bool[Tensor, " b"]]:
    """The pixels located at the first look, and which images count as dense: those with too large a mask, too."""
    logits, (local, dense) = seen.answer.local, seen.alarms.unbind(dim=1)
    found = located(logits, seen.shrunk, networks, 0)
    # where the image is flagged for its local suspicion alone, what stands out most is located whatever its logit
    alone = local & ~found.any(dim=(1, 2, 3))
    peak = dilate(logits >= logits.amax(dim=(1, 2, 3), keepdim=True), 1)
    found = torch.where(alone[:, None, None, None], peak, found)
    too_large = found.float().mean(dim=(1, 2, 3)) > largest
    return found & ~too_large[:, None, None, None], dense | too_large


def located(
    logits: Float[Tensor, "b 1 h w"], shrunk: bool, networks: SearchNetworks, number: int
) -> Bool[Tensor, "b 1 h w"]:
    """``locate`` at look ``number``, with a margin where the image was shrunk: the mask's edge is then a guess."""
    margin = networks.margins[min(number, len(networks.margins) - 1)]
    return locate(logits, networks, max(margin, shrunk))


def replaced(seen: Look, dense: Bool[Tensor, " b"], networks: SearchNetworks) -> Float[Tensor, "b c h w"]:
    """The networks' estimate of the image in place of those with a dense trigger."""
    if seen.answer.image is not None:
        return torch.where(dense[:, None, None, None], seen.answer.image.clamp(-1, 1), seen.x)
    index = dense.nonzero()[:, 0]
    return seen.x.index_put((index,), networks.estimate(seen.x[index]).clamp(-1, 1)) if len(index) else seen.x
