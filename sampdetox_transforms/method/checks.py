"""What the settings of all algorithms have in common: their checks."""

from functools import partial
from numbers import Integral, Real
from typing import Any

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.method.samplers import Step, ddim_step, ddpm_step
from sampdetox_transforms.method.schedule import SCHEDULES


def check_numbers(settings: Any, *names: str) -> None:
    """Raise TypeError unless each field is a number (no bool); those of other libraries become Python's own."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, Real):
            what = "a number, a noise level" if name.startswith("t") else "a number"
            raise TypeError(f"{name} must be {what}, got {value!r}. Leave it out for the default.")
        if not isinstance(value, int | float):  # NumPy's would be unknown to JSON, and to PyTorch of another precision
            object.__setattr__(settings, name, int(value) if isinstance(value, Integral) else float(value))


def check_levels(settings: Any, *names: str) -> None:
    """Raise unless each field is a noise level: a number of 0 or more."""
    check_numbers(settings, *names)
    for name in names:
        if not 0 <= getattr(settings, name) < float("inf"):
            raise ValueError(f"{name} must be 0 or more, got {getattr(settings, name)}. 20 and 120 are the paper's.")


def check_positive(settings: Any, *names: str) -> None:
    """Raise unless each field is a number above 0."""
    check_numbers(settings, *names)
    for name in names:
        if not 0 < getattr(settings, name) < float("inf"):
            raise ValueError(f"{name} must be above 0, got {getattr(settings, name)}. Leave it out for the default.")


def check_walk(settings: Any) -> None:
    """Raise unless schedule, sampler, stride, eta and variance_type can be walked with."""
    check_choice("schedule", settings.schedule, (None, *SCHEDULES))
    check_choice("sampler", settings.sampler, ("ddim", "ddpm"))
    check_choice("variance_type", settings.variance_type, ("fixed_small", "fixed_large"))
    check_positive(settings, "stride")
    check_numbers(settings, "eta")
    if not 0 <= settings.eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {settings.eta}. 0 is deterministic, 1 is as random as DDPM.")


def step_of(settings: Any) -> Step:
    """The reverse step that the settings name."""
    if settings.sampler == "ddpm":
        return partial(ddpm_step, variance_type=settings.variance_type)
    return partial(ddim_step, eta=settings.eta)
