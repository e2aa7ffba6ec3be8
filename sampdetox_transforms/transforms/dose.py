"""A ``SampDetox`` at a dose, and images in the units that a fit counts in: what ``DetoxWrapper.fit`` is made of."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.transforms.fit import Dose
from sampdetox_transforms.transforms.transform import SampDetox


def with_dose(detox: SampDetox, dose: Dose, *, fitting: bool = False) -> SampDetox:
    """The same transform, sharing the networks, at a dose.

    Args:
        fitting: without the detail, for images in [0, 1], and with seeded noise, so that a fit is the same again.
    """
    other = copy.copy(detox)
    assert isinstance(detox.settings, Restore) and detox.calibration is not None
    other.settings = dose.before(detox.settings) if fitting else dose.of(detox.settings)
    other.calibration = detox.calibration.at(dose.false_alarm_rate)
    if fitting:
        other.normalisation, other.seed = None, detox.seed or 0
    return other


def dose_of(detox: SampDetox, images: Tensor) -> Dose:
    """The dose that images of this size get from the settings as they are."""
    settings, calibration = detox.settings, detox.calibration
    assert isinstance(settings, Restore) and calibration is not None and detox.restorer is not None
    return Dose(
        false_alarm_rate=calibration.of(detox.restorer.of(images)).false_alarm_rate,
        t1=settings.level_of(images),
        colour_gain=settings.colour_gain,
        colour=settings.colour,
        jitter=settings.jitter,
        detail=(settings.resample, settings.sharpness),
    )


def candidates_for(detox: SampDetox, candidates: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Without the false-alarm rates that the calibration has too few images to show; its own rate where none is left.

    Levels above the highest of the settings, up to which the denoiser is known to know them, are left out, too.
    """
    assert detox.calibration is not None
    rates = candidates.get("false_alarm_rate", (detox.calibration.false_alarm_rate,))
    shown = tuple(rate for rate in rates if _is_shown(detox, rate))
    result = {**candidates, "false_alarm_rate": shown or (detox.calibration.false_alarm_rate,)}
    if "t1" in result:
        result["t1"] = tuple(t1 for t1 in result["t1"] if t1 <= detox.settings.highest_level)
    return result


def _is_shown(detox: SampDetox, rate: float) -> bool:
    assert detox.calibration is not None
    try:
        detox.calibration.at(rate)
    except ValueError:
        return False
    return True


def in_units(images: Tensor, detox: SampDetox) -> Tensor:
    """Images of the range that a transform takes, in [0, 1]."""
    x = images if images.is_floating_point() else images.float() / 255
    return (x if detox.normalisation is None else detox.normalisation.undo(x)).clamp(0, 1)


def in_wanted_units(unit: Tensor, detox: SampDetox, like: Tensor) -> Tensor:
    """Images in [0, 1] as the transform would return those of the dtype and range of ``like``."""
    if detox.normalisation is not None:
        return detox.normalisation.redo(unit).to(like.dtype)
    return unit.to(like.dtype) if like.is_floating_point() else (unit * 255).round().to(like.dtype)
