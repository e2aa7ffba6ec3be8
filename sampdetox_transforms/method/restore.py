"""Past the paper, the default: look for the trigger before diffusion, and take its region out instead of noising it.

A small patch keeps its mean under the noise of Algorithm 1's local stage, and the denoiser rebuilds it. Here search
networks say which pixels do not belong; they are filled from those around them, without any information from inside,
and looked at again. A trigger all over the image leaves nothing to fill from: ``dense.py`` says what takes its place.
Pure functions on (b, c, h, w) tensors in [-1, 1].
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.method.checks import check_levels, check_numbers, check_walk
from sampdetox_transforms.method.dense import DenseAnswer, answer_dense, lightened
from sampdetox_transforms.method.diffusion import Diffusion
from sampdetox_transforms.method.look import Look, look
from sampdetox_transforms.method.noise import fresh_noise, subset
from sampdetox_transforms.method.result import Found, Purified, Retouched
from sampdetox_transforms.method.retouch import colour_amount, jittered, resampled, sharpened, without_colour_cast
from sampdetox_transforms.method.samplers import Denoiser, Noise
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.method.search import SearchNetworks, dilate, enlarge, enlarge_map, local_suspicion, locate
from sampdetox_transforms.method.waves import without_waves

AMOUNTS = ("gain", "dense_gain", "colour_gain", "waves", "jitter", "sharpness")  # settings that are 0 or more

OPTIONAL = ("t1_large", "t1_doubt", "t2_light")  # levels that may be None

DOUBT = 0.2  # share of clean images, see t1_doubt

SMALL = 48  # pixels of the shorter side up to which an image is small: ``t1`` is its level, ``t1_large`` of others

# Pixels of the shorter side at which a photograph is displaced by ``jitter``, and from which on it is not at all.
JITTERED = 107, 160


class Removal(NamedTuple):
    """Images with their triggers taken out, the filled pixels, the answer to dense triggers, and the network calls."""

    x: Float[Tensor, "b c h w"]
    mask: Bool[Tensor, "b 1 h w"]
    dense: DenseAnswer
    calls: Int[Tensor, " b"]


def is_small(x: Real[Tensor, "..."]) -> bool:
    """Whether images (..., h, w) are of the size that the small networks know."""
    return min(x.shape[-2:]) <= SMALL


@dataclass(frozen=True, kw_only=True)
class Restore:
    """The global stage for every image, and for those with a trigger a local stage that restores its region.

    Attributes:
        schedule, sampler, stride, eta, variance_type: as in ``Algorithm1``.
        t1: level of the global stage for images with a shorter side of at most 48 pixels; filled images go through it
            as well.
        t1_large: the same for larger ones, in which less noise hides as much; None for ``t1``.
        t1_doubt: the same for small images in doubt, which are not flagged although at most ``DOUBT`` of clean ones
            look as suspicious; at most t2. None, or a t1 of 0 or no less than this, for ``t1``.
        t2: the level for images with a dense trigger, after the networks' estimate has taken their place.
        t2_light: the same where what the estimate takes is fine detail, or is faint, and drowns in less noise, and
            where a shared trigger was taken out already; at most t2, None for ``t2``.
        looks: how often an image with a trigger is looked at, filled before each further look.
        largest: share of the pixels from which on a mask is too large to be filled; the trigger counts as dense.
        gain: how much of the estimate is taken from images that are not flagged, see ``lightened``; 0 for nothing.
        dense_gain: the same for those with a dense trigger, see ``answer_dense``; 1 for the estimate itself.
        colour: share in [0, 1] of the smooth colour that every image loses before diffusion, ``without_colour_cast``
            (Buchsbaum 1980; a smooth trigger is mostly a cast).
        colour_gain: images that are not flagged lose all of it where the networks' estimate takes smooth colour of a
            root mean square of 1 / colour_gain grey levels or more, and less below (``colour_amount``). Where what the
            estimate takes is mostly a cast, the image itself without its cast takes its place, at t1. 0 for neither.
        waves: waves with a score of this or more are taken out of every image before anything else, and so of a
            few clean ones, where that makes it smoother (``without_waves``); 0 for none.
        jitter: standard deviation, in pixels, by which each pixel of an image that is not flagged is displaced at
            random after diffusion, against warps (``jittered``), up to a shorter side of 48 pixels; see ``jitter_of``
            for larger ones. 0 for none.
        resample: the result is then shrunk by this factor in (0, 1] and enlarged again, against warps; 1 for nothing.
        sharpness: amount of an unsharp mask after that, ``sharpened``; 0 for none.

    Network calls of an image with 2 networks to a look at t1 <= stride: 3 without a trigger; at most 3 * looks + 2 with
    a local one; with a dense one alone 4, and one for each stride of t2; with both the first, and one for each stride
    of t2 beyond the first.

    Raises:
        TypeError, ValueError: a setting of another kind, or out of range.
    """

    schedule: str | None = None
    t1: float = 12
    t1_large: float | None = 2
    t1_doubt: float | None = 40
    t2: float = 120
    sampler: str = "ddim"
    stride: float = 60
    eta: float = 0.0
    variance_type: str = "fixed_small"
    looks: int = 2
    largest: float = 0.4
    gain: float = 3.0
    dense_gain: float = 2.0
    t2_light: float | None = 20
    colour: float = 0.0
    colour_gain: float = 1.6
    waves: float = 16.0
    jitter: float = 0.12
    resample: float = 1.0
    sharpness: float = 0.0

    def __post_init__(self) -> None:
        check_walk(self)
        check_levels(self, "t1", "t2", *(name for name in OPTIONAL if getattr(self, name) is not None))
        check_numbers(self, "looks", "largest", "colour", "resample", *AMOUNTS)
        if isinstance(self.looks, float) or self.looks < 1:
            raise ValueError(f"looks must be a whole number of 1 or more, got {self.looks}. 2 is the default.")
        if not 0 <= self.largest <= 1:
            raise ValueError(
                f"largest must be a share of the pixels in [0, 1], got {self.largest}. 0.4 is the default."
            )
        if not 0 <= self.colour <= 1:
            raise ValueError(f"colour must be a share in [0, 1], got {self.colour}. 0 takes nothing from every image.")
        if not 0 < self.resample <= 1:
            raise ValueError(f"resample must be a factor in (0, 1], got {self.resample}. 1 changes nothing.")
        for name in AMOUNTS:
            value, default = getattr(self, name), getattr(Restore, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {value}. {default:g} is the default, 0 does nothing.")

    @property
    def highest_level(self) -> float:
        """The highest level at which the network is asked."""
        return max(self.t1, self.t2, self.t1_large or 0)

    def level_of(self, x: Real[Tensor, "..."]) -> float:
        """The level of the global stage for images of this size."""
        return self.t1 if self.t1_large is None or is_small(x) else self.t1_large

    def level_in_doubt(self, x: Real[Tensor, "..."]) -> float:
        """The same for those of them that are in doubt."""
        t1 = self.level_of(x)
        return max(t1, min(self.t1_doubt or 0, self.t2)) if is_small(x) and t1 > 0 else t1

    def jitter_of(self, x: Real[Tensor, "..."]) -> float:
        """How far pixels are displaced in images of this size: 107 / side times ``jitter`` from 49 to 159, then 0."""
        side, (same, end) = min(x.shape[-2:]), JITTERED
        return self.jitter * (1 if is_small(x) else same / side if side < end else 0)

    def levels_of(self, dense: DenseAnswer, t1: float) -> tuple[tuple[Bool[Tensor, " b"], float], ...]:
        """Which flagged images go to which level: t1 where what was taken out leaves nothing."""
        light = self.t2 if self.t2_light is None else min(self.t2_light, self.t2)
        return (~(dense.light | dense.rest), t1), (dense.light, light), (dense.rest, self.t2)

    def run(
        self,
        x0: Float[Tensor, "b c h w"],
        denoiser: Denoiser,
        schedule: Schedule,
        *,
        networks: SearchNetworks,
        calibrations: Calibrations,
        noise: Noise = fresh_noise,
        matched: Bool[Tensor, " b"] | None = None,
    ) -> Purified:
        """Images in [-1, 1] in and out.

        Args:
            x0, denoiser, schedule, noise: as in ``purify``.
            networks: find triggers in images of this size, and fill regions.
            calibrations: from what suspicion on an image is taken for a triggered one.
            matched: images that a shared trigger was taken out of; what is left of it needs no more than t2_light
                where it is flagged, and t1 where it is in doubt.
        """
        calibration = calibrations.of(networks)
        t1, jitter = self.level_of(x0), self.jitter_of(x0)
        diffuse = Diffusion(self, lambda level: networks.denoiser(schedule, level) or denoiser, schedule)

        given = x0
        x0, waves = without_waves(x0, self.waves)
        seen = look(x0, networks, calibration)
        amount = colour_amount(seen.x, seen.answer.image, self.colour, self.colour_gain)
        lighter = lightened(seen, self.gain)
        if self.colour or seen.answer.image is not None:  # else every amount is 0
            lighter = self.without_colour(lighter, amount)
        start = enlarge(x0, seen.x, lighter)
        in_doubt = self.level_in_doubt(x0)
        known = torch.zeros_like(seen.alarms[:, 0]) if matched is None else matched
        doubtful = ~(seen.alarms.any(dim=1) | known) & (seen.p_value < DOUBT) & (in_doubt > t1)
        stage1, levels, steps1 = diffuse.to_levels(start, ((~doubtful, t1), (doubtful, in_doubt)), noise)
        stage1 = jittered(stage1, jitter, noise)
        index = seen.alarms.any(dim=1).nonzero()[:, 0]
        removed = self.take_out(seen.only(index), networks, calibration, known[index])
        mask = enlarge_map(removed.mask.to(x0), x0) > 0
        taken = torch.where(removed.dense.colour, 1.0, self.colour).to(amount)
        filled = enlarge(x0[index], seen.x[index], self.without_colour(removed.x, taken), removed.mask)
        again, level, steps = diffuse.to_levels(filled, self.levels_of(removed.dense, t1), subset(noise, index))

        calls = (networks.calls + steps1).index_add(0, index, removed.calls + steps)
        dense = removed.dense.colour | removed.dense.light | removed.dense.rest
        nothing = mask.new_zeros((len(x0), *mask.shape[1:]))
        ones = torch.ones(len(x0), dtype=torch.float64, device=x0.device)
        return Purified(
            self.retouched(stage1.index_put((index,), again) if len(index) else stage1),
            stage1,
            nothing.double().index_put((index,), level[:, None, None, None].expand(mask.shape)),
            calls,
            float(schedule.sigma(t1)),
            float(schedule.sigma(self.t2)),
            found=Found(
                enlarge_map(seen.answer.local, x0).double().sigmoid(),
                nothing.index_put((index,), mask),
                dense.new_zeros(len(x0)).index_put((index,), dense),
                seen.p_value,
            ),
            lightened=given - start,
            retouched=Retouched(
                amount.index_put((index,), taken).double() * (x0.shape[1] > 1),
                waves,
                (ones * jitter).index_fill(0, index, 0),
                ones * self.resample,
                ones * self.sharpness,
            ),
            level1=levels,
        )

    def without_colour(self, x: Float[Tensor, "b c h w"], amount: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """The cast taken away by these amounts; the images themselves where the settings take nothing."""
        return without_colour_cast(x, amount=amount) if self.colour or self.colour_gain else x

    def retouched(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What comes last."""
        return sharpened(resampled(x, self.resample), self.sharpness)

    def take_out(
        self, seen: Look, networks: SearchNetworks, calibration: Calibration, matched: Bool[Tensor, " b"]
    ) -> Removal:
        """The triggers of flagged images: dense ones are answered by ``dense.py``, located pixels are filled.

        A filled image is looked at again, and filled anew with what still stands out. Once located, pixels stay in the
        mask, so that no look brings back what an earlier one took out.
        """
        if not len(seen.x):
            nobody, calls = seen.alarms[:, 1], seen.alarms[:, 1].long()
            return Removal(seen.x, seen.answer.local > 0, DenseAnswer(seen.x, nobody, nobody, nobody, calls), calls)
        mask, dense = first_mask(seen, networks, self.largest)
        answer = answer_dense(
            seen, dense, networks, gain=self.dense_gain, colour=self.colour_gain > 0, matched=matched
        )  # fmt: skip
        x, calls = answer.x, answer.calls
        result, index = x, mask.any(dim=(1, 2, 3)).nonzero()[:, 0]
        for number in range(self.looks):
            if len(index):
                result = result.index_put((index,), networks.fill(x[index], mask[index]))
                calls = calls.index_add(0, index, torch.ones_like(index))
            if number == self.looks - 1 or not len(index):
                break
            more = still_found(networks.look(result[index]).local, seen.shrunk, networks, calibration, number + 1)
            calls = calls.index_add(0, index, torch.full_like(index, networks.calls))
            wider = mask[index] | more
            fits = (wider.float().mean(dim=(1, 2, 3)) <= self.largest) & (more & ~mask[index]).any(dim=(1, 2, 3))
            index, wider = index[fits], wider[fits]
            mask = mask.index_put((index,), wider)
        return Removal(result, mask, answer, calls)


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


def still_found(
    logits: Float[Tensor, "b 1 h w"], shrunk: bool, networks: SearchNetworks, calibration: Calibration, number: int
) -> Bool[Tensor, "b 1 h w"]:
    """``located`` in images that were filled; where the networks ask for it, only in those still suspicious."""
    found = located(logits, shrunk, networks, number)
    if not networks.suspicious_again:
        return found
    least = calibration.thresholds[0]
    return found & (local_suspicion(logits, networks.window) > least)[:, None, None, None]


def located(
    logits: Float[Tensor, "b 1 h w"], shrunk: bool, networks: SearchNetworks, number: int
) -> Bool[Tensor, "b 1 h w"]:
    """``locate`` at look ``number``, with a margin where the image was shrunk: the mask's edge is then a guess."""
    margin = networks.margins[min(number, len(networks.margins) - 1)]
    return locate(logits, networks, max(margin, shrunk))
