"""What the defenses of a table are built from, and a named table of victims behind defenses."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sampdetox_transforms.lab.attacks.recipes import TEN_ATTACKS
from sampdetox_transforms.lab.evaluation.paper_results import Cell
from sampdetox_transforms.lab.evaluation.rows import Column, Images, Row
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.networks.denoiser import Denoiser
from sampdetox_transforms.transforms.fit import Fit
from sampdetox_transforms.transforms.presets import PRESETS, Preset
from sampdetox_transforms.transforms.transform import SampDetox
from sampdetox_transforms.transforms.wrapper import DetoxWrapper


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What defenses are built from.

    Attributes:
        denoiser: the weights that are evaluated.
        full_range: a denoiser that knows all levels, for ZIP, Sancdifi and levels above the other's; None leaves these
            out.
        others: further denoisers by name, for the experiments that compare denoisers.
        seed, dtype, device: of all of them.
        n_slow: at most so many images for the defenses that make more than 20 network calls an image.
        restorer, calibration: search networks and thresholds of presets that search; None for those in the package.
    """

    denoiser: Denoiser
    full_range: Denoiser | None = None
    others: Mapping[str, Denoiser] = field(default_factory=dict)
    seed: int = 0
    dtype: torch.dtype | None = None
    device: str | torch.device = "cpu"
    n_slow: int | None = 20
    restorer: Any = None
    calibration: Any = None

    def sampdetox(
        self,
        name: str,
        preset: Preset,
        *,
        n: int | None = None,
        denoiser: Any = None,
        dtype: torch.dtype | None = None,
    ) -> Column:
        """SampDetox with all settings of a preset."""
        weights = self.denoiser if denoiser is None else denoiser

        def build(model: Any) -> SampDetox:
            doors: dict[str, Any] = {"restorer": self.restorer, "calibration": self.calibration}
            doors = doors if isinstance(preset, Restore) else {}
            given = {"seed": self.seed, "dtype": dtype or self.dtype, "device": self.device}
            return SampDetox(weights, preset=preset, **given, **doors)

        source = source_of(weights) if isinstance(weights, Denoiser) else "none"
        settings = {**vars(preset), "weights": source, **({} if dtype is None else {"dtype": str(dtype)})}
        return Column(name=name, build=build, settings=settings, n=n)

    def baseline(self, name: str, make: Callable[..., Any], *, n: int | None = None, **settings: Any) -> Column:
        """A defense of this package: ``make(model, seed=..., **settings)``."""

        def build(model: Any) -> Any:
            return make(model, seed=self.seed, **settings).to(self.device)

        access = getattr(make, "access", "none")
        return Column(name=name, build=build, settings=settings, n=n, access=access)

    def fitted(self, images: Images, name: str = "sampdetox-restore-fitted") -> Column:
        """The default as strong as each victim stands it, by its answers to clean images in [0, 1]."""
        plain = self.sampdetox(name, PRESETS["restore"])
        about = {**plain.settings, "images to fit": len(images)}

        def build(model: Any) -> Fitted:
            detox: Any = plain.build(model)
            wrapper = DetoxWrapper(getattr(model, "model", model), detox)  # calls to fit are not counted
            return Fitted(wrapper.fit(images.to(self.device)), wrapper.detox)

        return Column(name=name, build=build, settings=about, access="hard labels")


class Fitted(nn.Module):
    """A defense that was fitted to a victim, and what was chosen, which its row's settings then hold."""

    def __init__(self, found: Fit, detox: SampDetox):
        super().__init__()
        self.detox = detox
        self.chosen = {"dose": asdict(found.dose), "kept": found.kept, "fitted": str(found)}

    def forward(self, images: Images) -> Images:
        return self.detox(images)


def source_of(denoiser: Denoiser) -> str:
    """Where the weights come from; a folder by its last name, since results are published."""
    return Path(denoiser.source).name if Path(denoiser.source).is_dir() else denoiser.source


@dataclass(frozen=True)
class Experiment:
    """A named experiment: its columns, what the paper's table is, and the paper's numbers for a row, if any."""

    title: str
    columns: Callable[[Tools], list[Column]]
    paper: Callable[[Row], Cell | None] = lambda row: None
    attacks: tuple[str, ...] = field(default=TEN_ATTACKS)
