"""Columns and rows of a table: a defense, and what was measured of it on one victim."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.lab.metrics import Share

Images = Float[Tensor, "n c h w"]

Model = Callable[[Images], Tensor]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A defense, as a column of a table.

    Attributes:
        name: what the table calls it.
        build: a function of the victim's model, which returns a callable of images in [0, 1]. Most ignore the model.
        settings: what it was built with, to be stored with its numbers.
        n: at most so many images, for slow ones; None for all.
        access: what it needs of the model: "none", "hard labels" or "class scores".
    """

    name: str
    build: Callable[[Model], Callable[[Images], Images]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    n: int | None = None
    access: str = "none"


NO_DEFENSE = Column(name="none", build=lambda model: lambda images: images)


@dataclass(frozen=True)
class Row:
    """One cell of a table: a victim behind a defense.

    Attributes:
        ca, pa, asr: with intervals and n; pa and asr are None for a classifier without a backdoor.
        ms_per_image: time of the defense alone, clean and triggered images together.
        denoiser_calls, classifier_calls: how often an image went through each network within the defense, as a mean;
            for the denoiser also apart, of clean and of triggered images.
        environment: index into the file's environments.
    """

    victim: str
    attack: str
    mode: str
    target_label: int | None
    classifier: str
    robust_noise: float
    defense: str
    settings: Mapping[str, Any]
    access: str
    ca: Share
    pa: Share | None
    asr: Share | None
    ms_per_image: float
    denoiser_calls: float
    denoiser_calls_clean: float
    denoiser_calls_triggered: float | None
    classifier_calls: float
    environment: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.victim, self.defense


@dataclass(frozen=True)
class RobustnessRow:
    """The (v, eta_r) of a victim's triggered images, one of each an image: the dots of the paper's Figure 2."""

    victim: str
    attack: str
    visibility: list[float]
    robustness: list[float]
    asr: float
