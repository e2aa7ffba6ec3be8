"""How much of each part a classifier stands: asked of its hard labels on clean images, without any label or trigger.

What traffic signs stand, small photographs may not. ``fit_to_classifier`` raises one part after another for as long
as the classifier keeps its own answers, so that the strongest dose within a budget is chosen.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.retouch import resampled, sharpened

Images = Float[Tensor, "n c h w"]

FEWEST = 100  # images: with fewer, one changed answer is more than a hundredth


@dataclass(frozen=True, kw_only=True)
class Dose:
    """How much of each part an image gets; the weakest by default.

    Attributes:
        false_alarm_rate: share of clean images that may be taken for triggered ones.
        t1: level of the global stage, for images of any size.
        colour_gain: how soon images lose their smooth colour, the more of it the networks' estimate takes.
        colour: share of the smooth colour that every image loses before diffusion (``without_colour_cast``).
        jitter: how far pixels are displaced after diffusion, ``Restore.jitter``.
        detail: factor that the image is shrunk by and back after that, and the sharpening in the end.
    """

    false_alarm_rate: float = 0.01
    t1: float = 0.0
    colour_gain: float = 0.0
    colour: float = 0.0
    jitter: float = 0.0
    detail: tuple[float, float] = (1.0, 0.0)

    def before(self, settings: Restore) -> Restore:
        """Settings with this dose, but for the detail, which comes after diffusion."""
        own = {"colour": self.colour, "colour_gain": self.colour_gain, "jitter": self.jitter}
        doubt = settings.t1_doubt if self.t1 >= settings.t1 else None
        return replace(settings, t1=self.t1, t1_large=None, t1_doubt=doubt, resample=1.0, sharpness=0.0, **own)

    def of(self, settings: Restore) -> Restore:
        """Settings with this dose; the false-alarm rate is the calibration's."""
        return replace(self.before(settings), resample=self.detail[0], sharpness=self.detail[1])

    def after(self, x: Images) -> Images:
        """What comes after diffusion, on images in [-1, 1]."""
        factor, sharpness = self.detail
        return sharpened(resampled(x, factor), sharpness)


# Ascending doses of each part; round by round each part is raised by one, in this order.
CANDIDATES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "false_alarm_rate": (0.01, 0.02, 0.05),
        "t1": (0.0, 6.0, 12.0, 20.0),
        "colour_gain": (0.0, 0.8, 1.6),
        "colour": (0.0, 0.25, 0.5, 0.75, 1.0),
        "jitter": (0.0, 0.12),
        "detail": ((1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (0.7, 2.0), (0.6, 3.0)),
    }
)


@dataclass(frozen=True)
class Trial:
    """One dose that was tried, and the share of its own answers that the classifier kept under it."""

    dose: Dose
    kept: float
    within_budget: bool


@dataclass(frozen=True)
class Fit:
    """What was chosen, and what it costs.

    Attributes:
        dose: the chosen one.
        kept: share of the classifier's own answers that it keeps under this dose; 1 - budget or more if ``fits``.
        budget, images: what was asked for, and how many images it was asked on.
        fits: False where even the weakest dose costs more than the budget; the weakest is then chosen.
        trials: all that was tried, in order.
    """

    dose: Dose
    kept: float
    budget: float
    images: int
    fits: bool
    trials: tuple[Trial, ...] = field(repr=False)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value}" for name, value in asdict(self.dose).items())
        verdict = "within" if self.fits else "not within"
        return f"{parts}: keeps {self.kept:.1%} of the answers on {self.images} images, {verdict} {self.budget:.1%}"

    def steps(self) -> str:
        """A line for each dose that was tried: what it raised, what the classifier kept, and whether it stayed."""
        lines: list[str] = []
        before: Dose | None = None  # until a first dose is within the budget, all of each is said
        for trial in self.trials:
            parts = [f"{k} {v}" for k, v in asdict(trial.dose).items() if before is None or v != getattr(before, k)]
            stayed = "stays" if trial.within_budget else "too much" if before is None else "taken back"
            lines.append(f"{', '.join(parts)}: keeps {trial.kept:.1%}, {stayed}")
            before = trial.dose if trial.within_budget else before
        return "\n".join(lines)


def fit_to_classifier(
    model: Callable[[Images], Tensor],
    purify: Callable[[Images, Dose], Images],
    images: Images,
    *,
    budget: float = 0.01,
    start: Dose | None = None,
    candidates: Mapping[str, tuple[Any, ...]] = CANDIDATES,
    batch_size: int = 64,
) -> Fit:
    """The strongest dose under which a classifier keeps ``1 - budget`` of its own answers on clean images.

    Where ``start`` breaks the budget its parts are brought to their weakest values one after the other, until it is
    kept. From there on each part in turn is raised to its next value. What breaks the budget is taken back, and
    that part stays where it is from then on; only of the detail the further values are tried as well. The order of the
    parts and the values alone decide, nothing is drawn at random: with a ``purify`` that gives the same images each
    time the result is the same.

    Args:
        model: images in [0, 1] to logits (n, k) or classes (n,).
        purify: (images in [0, 1], dose) to images in [0, 1], all of the method but ``Dose.after``, which is applied
            here, so that the images of one dose serve all details.
        images: clean images in [0, 1], a few hundred, without labels.
        budget: share of the answers that may change, in [0, 1).
        start: what is tried first, such as the default's dose; None for the weakest.
        candidates: ascending values of some or all parts of ``Dose``; the first ones are the weakest dose. Parts
            without any stay as in ``start``.

    Raises:
        ValueError: fewer than 100 images, a budget out of range, candidates that are no parts of ``Dose`` or empty.
    """
    _check(images, budget, candidates)
    own, purified = _classes(model, images, batch_size), _Memory(purify, images, batch_size)
    trials: list[Trial] = []

    def attempt(dose: Dose) -> Trial:
        result = [dose.after(part * 2 - 1).add(1).div(2).clamp(0, 1) for part in purified(dose)]
        same = int((_classes(model, torch.cat(result), batch_size) == own).sum())
        # whole images are counted: 1 - budget is not exact in floating point
        trials.append(Trial(dose, same / len(own), len(own) - same <= budget * len(own) + 1e-9))
        return trials[-1]

    for dose in starts(start, candidates):
        best = attempt(dose)
        purified.keep(dose)
        if best.within_budget:
            break
    fits = best.within_budget
    rising = {name: list(values[values.index(getattr(best.dose, name)) + 1 :]) for name, values in candidates.items()}
    while fits and any(rising.values()):
        for name, left in rising.items():
            if not left:
                continue
            trial = attempt(replace(best.dose, **{name: left.pop(0)}))
            if trial.within_budget:
                best = trial
            elif name != "detail":  # a sharper detail may cost less than the one before, and purifies nothing anew
                left.clear()
            purified.keep(best.dose)
    return Fit(best.dose, best.kept, budget, len(own), fits, tuple(trials))


def starts(start: Dose | None, candidates: Mapping[str, tuple[Any, ...]]) -> list[Dose]:
    """Doses to begin with, from ``start`` down to the weakest: one part more at its weakest value each time.

    Parts of ``start`` are brought to the largest candidate that is not above them; those without candidates stay.
    """
    if start is None:
        return [Dose(**{name: values[0] for name, values in candidates.items()})]
    reached = {}
    for name, values in candidates.items():
        below = [value for value in values if value <= getattr(start, name)] if name != "detail" else []
        reached[name] = below[-1] if below else values[0]
    found = [replace(start, **reached)]
    for name, values in candidates.items():
        found.append(replace(found[-1], **{name: values[0]}))
    return list(dict.fromkeys(found))


class _Memory:
    """Purified images of a dose; doses that differ in their detail alone share them."""

    def __init__(self, purify: Callable[[Images, Dose], Images], images: Images, batch_size: int):
        self.purify, self.parts = purify, images.split(batch_size)
        self.known: dict[Dose, list[Images]] = {}

    def __call__(self, dose: Dose) -> list[Images]:
        key = replace(dose, detail=Dose.detail)
        if key not in self.known:
            with torch.no_grad():
                self.known[key] = [self.purify(part, key) for part in self.parts]
        return self.known[key]

    def keep(self, dose: Dose) -> None:
        """Forget all but the images of this dose."""
        key = replace(dose, detail=Dose.detail)
        self.known = {key: self.known[key]}


@torch.no_grad()
def _classes(model: Callable[[Images], Tensor], images: Images, batch_size: int) -> Int[Tensor, " n"]:
    outputs = torch.cat([model(part) for part in images.split(batch_size)])
    return outputs.argmax(dim=1) if outputs.ndim > 1 else outputs


def _check(images: Tensor, budget: float, candidates: Mapping[str, tuple[Any, ...]]) -> None:
    if images.ndim != 4 or len(images) < FEWEST:
        raise ValueError(
            f"images must be a batch (n, c, h, w) of {FEWEST} or more, got shape {tuple(images.shape)}. "
            "A few hundred clean images will do, without labels."
        )
    if not 0 <= budget < 1:
        raise ValueError(f"budget must be a share of the answers in [0, 1), got {budget}. 0.01 is one in a hundred.")
    for name, values in candidates.items():
        if name not in Dose.__dataclass_fields__ or not values:
            known = ", ".join(Dose.__dataclass_fields__)
            raise ValueError(f"candidates must be values of {known}, got {name!r}: {values}. Leave it out.")
