"""One warning for images of a kind that the thresholds of the search do not come from."""

import logging
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.method.result import Purified

LOG = logging.getLogger("sampdetox_transforms")

FEWEST = 50  # images before the share of flagged ones is judged
UNLIKELY = 1e-4  # chance of so many among images of the right kind
SHARE = 0.1  # of the images that may be far from those of the calibration
FLAT = 0.6  # of neighbouring pixels that are equal: one training photograph in a hundred has more, a page has .65
LEAST, LONGEST = 24, 4  # pixels of the shorter side; how many times as long the other one may be

REMEDY = (
    "Set thresholds on clean images of your own kind, with 'sampdetox calibrate FOLDER -o FILE' or "
    "detox.calibrate(images), or fit the whole defense to your classifier with DetoxWrapper.fit."
)


class Reason(NamedTuple):
    """Why images are far from those of the calibration, and how many of a batch are."""

    count: int
    words: str


class Watch:
    """Counts the images that go through a ``SampDetox``, and logs one warning where they are of another kind.

    Args:
        far: whether to warn of images unlike those that the package's own thresholds come from; thresholds of
            the user's own may come from any.
    """

    def __init__(self, *, far: bool):
        self.looks_far, self.told = far, False
        self.seen = self.flagged = self.far = 0

    def see(self, x0: Float[Tensor, "b c h w"], result: Purified, false_alarm_rate: float) -> Purified:
        """Count a batch in [-1, 1], and what became of it, which is handed back."""
        if result.found is not None and len(x0) and not self.told:
            self.count(x0, result.found.p_value, false_alarm_rate)
        return result

    def count(self, x0: Float[Tensor, "b c h w"], p_value: Float[Tensor, " b"], false_alarm_rate: float) -> None:
        """Count a batch of which the search says ``p_value``, and warn where it is time to."""
        self.seen += len(x0)
        self.flagged += int((p_value < false_alarm_rate).sum())
        reason = unlike_photographs(x0.detach()) if self.looks_far else Reason(0, "")
        self.far += reason.count
        if self.far > SHARE * self.seen:
            self._warn(
                "images are unlike the photographs and traffic signs that the thresholds come from "
                f"({self.far} of {self.seen} so far: {reason.words})."
            )
        elif self.seen >= FEWEST and too_many(self.flagged, self.seen, false_alarm_rate):
            self._warn(
                f"{self.flagged} of {self.seen} images are taken for triggered ones, of clean ones "
                f"{false_alarm_rate:.0%} are. Many carry a trigger, or the thresholds do not suit this kind of images."
            )

    def _warn(self, what: str) -> None:
        self.told = True
        LOG.warning("%s %s", what, REMEDY)


def unlike_photographs(x0: Float[Tensor, "b c h w"]) -> Reason:
    """How many images of a batch are far from all kinds that the package's thresholds come from, and why."""
    short, long = sorted(x0.shape[-2:])
    if short < LEAST:
        return Reason(len(x0), f"a side of less than {LEAST} pixels")
    if long > LONGEST * short:
        return Reason(len(x0), f"more than {LONGEST} times as long as wide")
    count = int((flatness(x0) > FLAT).sum())
    return Reason(count, "mostly flat areas of one colour, as in drawings, text and screenshots")


def flatness(x0: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """The share of neighbouring pixels, beside and below, that are equal in 255ths."""
    step = 1 / 255
    parts = [x0.diff(dim=dim).abs().amax(dim=1).flatten(1) < step for dim in (-1, -2)]
    return torch.cat(parts, dim=1).float().mean(dim=1)


def too_many(flagged: int, seen: int, rate: float) -> bool:
    """Whether so many are flagged, twice the rate at least, that chance is out (Chernoff's bound of the tail)."""
    share = flagged / seen
    if share <= 2 * rate or rate >= 1:
        return False
    entropy = share * math.log(share / rate)
    if share < 1:
        entropy += (1 - share) * math.log((1 - share) / (1 - rate))
    return seen * entropy > -math.log(UNLIKELY)
