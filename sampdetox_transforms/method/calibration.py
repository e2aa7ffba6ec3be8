"""What clean images look like to the search networks: thresholds of ``Restore``, and the p-value of an image."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.method.search import SearchNetworks, local_suspicion, shrink

# How the false alarms are shared out where both kinds of triggers are looked for. On held-out training images .8 and .2
# missed more dense triggers, and found hardly more patches.
SHARES = {"local": 0.5, "dense": 0.5}
ONLY_LOCAL = {"local": 1.0}

POINTS = 401  # of a table: quantiles 0, 1/400, ... 1


@dataclass(frozen=True)
class Calibration:
    """Quantiles of what search networks say of clean images, evenly spaced from 0 to 1, and the rate asked for.

    Attributes:
        local: quantiles of ``local_suspicion``.
        dense: quantiles of the logit of a dense trigger; () where none is looked for, and all false alarms are local.
        false_alarm_rate: the share of clean images that may be taken for triggered ones, both kinds together.
        images: how many clean images were measured.
        data: where they came from, in words.
    """

    local: tuple[float, ...]
    dense: tuple[float, ...]
    false_alarm_rate: float = 0.05
    images: int = 0
    data: str = ""

    def __post_init__(self) -> None:
        check_rate(self.false_alarm_rate)
        for name in ("local", "dense"):
            values = getattr(self, name)
            if name == "dense" and not values:
                continue
            if len(values) < 2 or any(not a <= b for a, b in pairwise(values)):
                raise ValueError(f"{name} must be 2 or more ascending numbers, got {len(values)}. Use calibrate().")

    @property
    def shares(self) -> dict[str, float]:
        """How the false alarms are shared out."""
        return SHARES if self.dense else ONLY_LOCAL

    @property
    def thresholds(self) -> tuple[float, float]:
        """Local and dense; each takes its share of the false alarms, and infinity is never reached."""
        found = {name: _at(getattr(self, name), 1 - self.false_alarm_rate * part) for name, part in self.shares.items()}
        return found["local"], found.get("dense", math.inf)

    @property
    def doubt(self) -> float:
        """The logit of a dense trigger that one clean image in ten exceeds; infinity where none is looked for."""
        return _at(self.dense, 0.9) if self.dense else math.inf

    def p_values(self, local: Float[Tensor, " b"], dense: Float[Tensor, " b"]) -> Float[Tensor, "b 2"]:
        """For each kind of trigger, the share of clean images that look at least as suspicious: float64.

        Each is divided by its part of the false alarms (weighted Bonferroni): an image is flagged at a rate where one
        of the two is below it.
        """
        least = 1 / (self.images + 1) if self.images else 0.5 / (len(self.local) - 1)
        logits = {"local": local, "dense": dense}
        found = [_above(getattr(self, name), logits[name], least) / share for name, share in self.shares.items()]
        return torch.stack(found if self.dense else [*found, torch.ones_like(found[0])], dim=1)

    def p_value(self, local: Float[Tensor, " b"], dense: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The smaller of the two ``p_values``, at most 1: one number for an image."""
        return self.p_values(local, dense).amin(dim=1).clamp(max=1)

    def at(self, false_alarm_rate: float) -> "Calibration":
        """The same measurement with other thresholds.

        Raises:
            ValueError: a rate outside (0, 1), or one that so few images cannot show.
        """
        if self.images:
            check_enough(self.images, false_alarm_rate, self.shares)
        return replace(self, false_alarm_rate=false_alarm_rate)


@dataclass(frozen=True)
class Calibrations:
    """A calibration for each of the search networks, by their name: those of small images and of large ones.

    Attributes:
        small: for images with a shorter side of at most 48 pixels, or of all sizes where there are no other networks.
        large: for larger ones.
        medium: for those above 48 pixels that are enlarged before the look; None takes the thresholds of ``large``.
    """

    small: Calibration | None = None
    large: Calibration | None = None
    medium: Calibration | None = None

    @property
    def false_alarm_rate(self) -> float:
        """The share of clean images that may be taken for triggered ones, of any size; the highest of the parts."""
        return max((part.false_alarm_rate for part in vars(self).values() if part is not None), default=0.05)

    def of(self, networks: SearchNetworks) -> Calibration:
        """The one for these networks.

        Raises:
            ValueError: there is none.
        """
        found = getattr(self, networks.name) or (self.large if networks.name == "medium" else None)
        if found is None:
            raise ValueError(
                f"there must be a calibration for each of the networks, got none for {networks.name!r} images. "
                "Calibrate on clean images of that size."
            )
        return found

    @classmethod
    def of_dict(cls, content: dict[str, Any]) -> "Calibrations":
        """What ``dataclasses.asdict`` made of one, or of a ``Calibration``, which counts as that of small images.

        Raises:
            ValueError, TypeError, KeyError: something else.
        """
        parts = {"small": content} if "local" in content else content
        made = {
            name: Calibration(**{**part, "local": tuple(part["local"]), "dense": tuple(part["dense"])})
            for name, part in parts.items()
            if part is not None
        }
        return cls(**made)

    def at(self, false_alarm_rate: float) -> "Calibrations":
        """The same measurements with other thresholds."""
        return Calibrations(**{name: part and part.at(false_alarm_rate) for name, part in vars(self).items()})

    def having(self, name: str, calibration: Calibration) -> "Calibrations":
        """With another calibration for the networks of this name."""
        return replace(self, **{name: calibration})


@torch.no_grad()
def calibrate(
    networks: SearchNetworks,
    batches: Iterable[Float[Tensor, "_ c _ _"]],
    *,
    false_alarm_rate: float = 0.05,
    data: str = "",
) -> Calibration:
    """Measure clean images, in batches in [-1, 1].

    Raises:
        ValueError: a rate outside (0, 1), or so few images that it cannot be measured.
    """
    check_rate(false_alarm_rate)
    answers = [networks.look(shrink(batch, networks)) for batch in batches]
    local = torch.cat([local_suspicion(a.local, networks.window) for a in answers]) if answers else torch.zeros(0)
    dense = torch.cat([a.dense for a in answers]) if answers else torch.zeros(0)
    check_enough(len(local), false_alarm_rate, SHARES if networks.finds_dense else ONLY_LOCAL)
    table = _table(local), _table(dense) if networks.finds_dense else ()
    return Calibration(*table, false_alarm_rate, len(local), data)


def strictest(calibrations: Iterable[Calibration]) -> Calibration:
    """Thresholds that keep the rate on each of several kinds of images: the highest value of each quantile.

    Raises:
        ValueError: dense triggers are looked for in some kinds only.
    """
    every = list(calibrations)
    tables = ([getattr(c, name) for c in every] for name in ("local", "dense"))
    local, dense = (tuple(max(values) for values in zip(*table, strict=True)) for table in tables)
    names = "; ".join(c.data for c in every)
    rate, images = min(c.false_alarm_rate for c in every), sum(c.images for c in every)
    return Calibration(local, dense, rate, images, names)


def check_rate(false_alarm_rate: float) -> None:
    """Raise ValueError unless it is a share of images."""
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate must be in (0, 1), got {false_alarm_rate}. 0.05 is 5 % of clean images.")


def images_needed(false_alarm_rate: float, shares: Mapping[str, float] = SHARES) -> int:
    """How many clean images can show a share this small."""
    return round(1 / (false_alarm_rate * min(shares.values())))


def check_enough(images: int, false_alarm_rate: float, shares: Mapping[str, float] = SHARES) -> None:
    """Raise ValueError unless a share this small can be measured on so many images."""
    check_rate(false_alarm_rate)
    needed = images_needed(false_alarm_rate, shares)
    if images < needed:
        raise ValueError(
            f"calibration at a false-alarm rate of {false_alarm_rate} needs {needed} clean images or more, "
            f"got {images}. Give more images, or a higher rate."
        )


def _table(values: Tensor) -> tuple[float, ...]:
    return tuple(torch.quantile(values.double().cpu(), torch.linspace(0, 1, POINTS, dtype=torch.float64)).tolist())


def _at(table: tuple[float, ...], share: float) -> float:
    return float(torch.quantile(torch.tensor(table, dtype=torch.float64), share))


def _above(table: tuple[float, ...], x: Tensor, least: float) -> Tensor:
    """The share of the clean images at or above x, linear between the quantiles, and not below ``least``."""
    values = torch.tensor(table, dtype=torch.float64, device=x.device)
    last = len(values) - 1
    upper = torch.searchsorted(values, x.double().contiguous()).clamp(1, last)
    step = (values[upper] - values[upper - 1]).clamp(min=1e-12)
    below = (upper - 1 + ((x.double() - values[upper - 1]) / step).clamp(0, 1)) / last
    return (1 - below).clamp(min=least)
