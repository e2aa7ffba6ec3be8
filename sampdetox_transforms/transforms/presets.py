"""Named settings of the method: the paper's, the authors' code, and this package's own."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Real
from typing import Any

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.method.authors_code import purify_authors_code
from sampdetox_transforms.method.maps import WINDOWS, absolute, dissimilarity_map, minmax, squared_error_map
from sampdetox_transforms.method.restore import purify_and_restore
from sampdetox_transforms.method.sampdetox import Purified, purify
from sampdetox_transforms.method.samplers import ddim_step, ddpm_step
from sampdetox_transforms.method.schedule import SCHEDULES

CHOICES = {
    "schedule": (None, *SCHEDULES),
    "sampler": ("ddim", "ddpm"),
    "map": ("ssim", "squared_error"),
    "window": WINDOWS,
    "direction": ("dissimilarity", "similarity"),
    "normalisation": ("minmax", "absolute"),
    "gate": ("own-level", "authors-code"),
    "variance_type": ("fixed_small", "fixed_large"),
    "noise": ("fresh", "shared"),
    "local_stage": ("noise", "restore"),
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """All settings of the method; ``dataclasses.replace`` makes variants.

    Attributes:
        schedule: what the levels mean: "linear", "scaled_linear", "cosine", or None for the network's own schedule.
        t1, t2: level of the global stage, and highest level of the local stage.
        sampler, stride, eta: "ddim" or "ddpm"; levels between two calls; DDIM's stochasticity in [0, 1].
        variance_type: DDPM's: "fixed_small" (posterior) or "fixed_large" (beta).
        map, window, data_range: "ssim" with its window and range, or "squared_error" (which has neither).
        direction: "dissimilarity" noises what changed most; "similarity" is Algorithm 1 read literally.
        normalisation, scale: "minmax" per image, or "absolute", where the map value ``scale`` gets the level t2.
        gate: "own-level" (a pixel moves from its own level on, and ends at 0), or "authors-code".
        noise: "fresh" for each stage and image, or "shared" by all, with whole-number levels (the authors' code).
        local_stage: "noise" noises by the map (the paper's), or "restore" searches for triggers and fills them
            (``restoration.py``): t2 is then the level for images with a dense trigger, and there is no map.
    """

    schedule: str | None = None
    t1: float = 20
    t2: float = 120
    sampler: str = "ddim"
    stride: float = 20
    eta: float = 0.0
    variance_type: str = "fixed_small"
    map: str = "ssim"
    window: str = "uniform"
    data_range: float = 255.0
    direction: str = "dissimilarity"
    normalisation: str = "minmax"
    scale: float = 1.0
    gate: str = "own-level"
    noise: str = "fresh"
    local_stage: str = "noise"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        for name in ("t1", "t2", "stride", "eta", "data_range", "scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                what = "a number, a noise level" if name in ("t1", "t2") else "a number"
                raise TypeError(f"{name} must be {what}, got {value!r}. Leave it out for the default.")
        for name in ("t1", "t2"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}. 20 and 120 are the paper's.")
        for name in ("stride", "data_range", "scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}. Leave it out for the default.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}. 0 is deterministic, 1 is as random as DDPM.")
        if self.local_stage == "restore":
            for name in MAP_SETTINGS:
                if getattr(self, name) != getattr(Preset, name):
                    raise ValueError(
                        f"{name} must be left out where triggers are looked for (local_stage 'restore' has no map), "
                        f"got {getattr(self, name)!r}. Take preset='ddim', which has one."
                    )
        if self.local_stage == "restore" and self.gate == "authors-code":
            raise ValueError("the authors' code has no search, got local_stage='restore'. Start from preset 'restore'.")
        if (self.gate == "authors-code") != (self.noise == "shared"):
            raise ValueError(
                f"gate 'authors-code' and noise 'shared' go together, got {self.gate!r} and {self.noise!r}. "
                "Take preset='authors-code' as it is, or change only its t1 and t2."
            )
        if self.gate == "authors-code":
            for name in AUTHORS_CODE:
                if name not in ("t1", "t2") and getattr(self, name) != AUTHORS_CODE[name]:
                    raise ValueError(
                        f"the authors' code fixes {name} = {AUTHORS_CODE[name]!r}, got {getattr(self, name)!r}. "
                        "Change only its t1 and t2, or start from another preset."
                    )
            if int(self.t1) != self.t1 or int(self.t2) != self.t2:
                raise ValueError(f"the authors' levels must be whole numbers, got {self.t1} and {self.t2}. Round them.")

    @property
    def highest_level(self) -> float:
        """The highest level at which the network is asked; the authors' code noises one level higher than t."""
        return max(self.t1, self.t2) + (1 if self.gate == "authors-code" else 0)

    def algorithm(self) -> Callable[..., Purified]:
        """``purify`` with these settings: call it with (x0, denoiser, schedule, noise=...).

        ``purify_and_restore`` for local_stage "restore", which takes restorer=... and calibration=... as well.
        """
        if self.gate == "authors-code":
            return partial(purify_authors_code, t1=int(self.t1), t2=int(self.t2))
        if self.sampler == "ddpm":
            step = partial(ddpm_step, variance_type=self.variance_type)
        else:
            step = partial(ddim_step, eta=self.eta)
        if self.local_stage == "restore":
            return partial(purify_and_restore, t1=self.t1, t2=self.t2, stride=self.stride, step=step)
        return partial(
            purify,
            t1=self.t1,
            t2=self.t2,
            stride=self.stride,
            step=step,
            dissimilarity=self.dissimilarity,
            normalise=minmax if self.normalisation == "minmax" else partial(absolute, high=self.scale),
        )

    def dissimilarity(self, x0, stage1):
        """The map of these settings, (b, c, h, w) twice to (b, 1, h, w); see ``ssim.py``."""
        if self.map == "squared_error":
            difference = squared_error_map(x0, stage1)
            return difference if self.direction == "dissimilarity" else self.scale - difference
        difference = dissimilarity_map(x0, stage1, window=self.window, data_range=self.data_range)
        return difference if self.direction == "dissimilarity" else 1 - difference


MAP_SETTINGS = ("map", "window", "data_range", "direction", "normalisation", "scale")

AUTHORS_CODE: dict[str, Any] = {field.name: field.default for field in fields(Preset)} | {
    "schedule": "linear",
    "t1": 120,
    "t2": 120,
    "sampler": "ddpm",
    "stride": 1,
    "variance_type": "fixed_large",
    "map": "ssim",
    "window": "gaussian",
    "data_range": 255,
    "gate": "authors-code",
    "noise": "shared",
}

PAPER = Preset(schedule="cosine", sampler="ddpm", stride=1, data_range=1.0)

PRESETS = {
    "ddim": Preset(),
    "restore": Preset(t1=12, t2=120, stride=60, local_stage="restore"),
    "paper": PAPER,
    "paper-linear": replace(PAPER, schedule="linear"),
    "authors-code": Preset(**AUTHORS_CODE),
}

DEFAULT = "restore"


def get_preset(preset: str | Preset) -> Preset:
    """Look a preset up by its name.

    Raises:
        ValueError: an unknown name; the nearest ones are suggested.
    """
    if isinstance(preset, Preset):
        return preset
    check_choice("preset", preset, tuple(PRESETS))
    return PRESETS[preset]
