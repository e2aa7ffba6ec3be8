"""The settings of a victim, and the files that it is kept in. Importing it loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sampdetox_transforms._common import check_choice

CLASSIFIER, POISONING, ABOUT = "classifier.safetensors", "poisoning.safetensors", "victim.json"

COMPOSITE_SETTINGS = {"first": 0, "second": 1}  # the two classes that the composite attack joins


@dataclass(frozen=True, kw_only=True)
class VictimConfig:
    """Everything that a victim depends on; saved beside it.

    Attributes:
        data: an image folder, a subfolder for each class.
        attack: a name of ``RECIPES``, "composite" (CBA), or "none" for a classifier without a backdoor.
        target_label: the attacker's class, an index into the folder's sorted classes; None with mode "all2all".
        poison_rate, mode: as for ``PoisonedDataset``; None for the attack's own.
        settings: changes to the attack's own settings, by name; for "composite" the classes "first" and "second".
        robust_noise: the paper's adaptive attacks (D.4): a share eta of noise in half of the training images,
            (1 - eta) x + eta n with x in [-1, 1], drawn anew in each epoch, poisoned or not: in the poisoned ones
            alone the noise would become the trigger, and the attacker's own would not work without it.
        classifier: a name of ``CLASSIFIERS``.
        size: height and width that all images are resized to, in pixels.
        crop: padding in pixels of the random crops; 0 for none. BackdoorBench's 4 cuts a 3x3 patch in a corner off two
            images in three, which then have a wrong label and no trigger: it needs its 100 epochs.
        flip: mirror half of the images; wrong for signs and letters.
        rotate: degrees by which each image is turned at most, either way; BackdoorBench has 10 for WaNet and Dynamic.
        brightness: share by which each image is brightened or darkened at most.
        fresh_covers: draw cover images (WaNet's noise, BPP's negatives, Dynamic's cross images) anew in each epoch,
            as BackdoorBench does, instead of once.
        surrogate: folder of a victim with attack "none" on the same data, for triggers that are optimised on one.
        picture: an image file, for the attacks that take one; for "low-frequency" a ready pattern as a .npy file, for
            "issba" residuals of its encoder, which it must have.
        bf16: None uses bfloat16 where the processor or card has it.
    """

    data: str
    attack: str = "badnets"
    target_label: int | None = 0
    poison_rate: float | None = None
    mode: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    robust_noise: float = 0.0
    classifier: str = "preact-resnet18-narrow"
    size: int = 32
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    crop: int = 1
    flip: bool = False
    rotate: float = 0.0
    brightness: float = 0.0
    fresh_covers: bool = False
    seed: int = 0
    surrogate: str | None = None
    picture: str | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        from sampdetox_transforms.lab.attacks.recipes import CLEAN, COMPOSITE, RECIPES  # here: these load torch
        from sampdetox_transforms.lab.victims.classifiers import CLASSIFIERS

        check_choice("attack", self.attack, (*RECIPES, COMPOSITE, CLEAN))
        check_choice("classifier", self.classifier, tuple(CLASSIFIERS))
        for name in ("size", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}. Leave it out for the default.")
        if self.poison_rate is not None and not 0 < self.poison_rate <= 1:
            raise ValueError(f"poison_rate must be in (0, 1], got {self.poison_rate}. It is a share: 0.1 is a tenth.")
        if not 0 <= self.robust_noise < 1:
            raise ValueError(f"robust_noise must be in [0, 1), got {self.robust_noise}. The paper tries 0 to 0.3.")
        if not 0 <= self.crop < self.size:
            raise ValueError(f"crop must be in [0, size), got {self.crop} for size {self.size}. 1 suits 32 pixels.")
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"rotate must be in [0, 180], got {self.rotate}. It is in degrees: 10 is BackdoorBench's.")
        if not 0 <= self.brightness < 1:
            raise ValueError(f"brightness must be in [0, 1), got {self.brightness}. It is a share: 0.2 is a fifth.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"learning_rate must be above 0 and weight_decay 0 or more, got {self.learning_rate} and "
                f"{self.weight_decay}. Leave them out for the defaults."
            )
        covered = [name for name, recipe in RECIPES.items() if recipe.cover is not None]
        if self.fresh_covers and self.attack not in covered:
            raise ValueError(
                f"fresh_covers must be False for {self.attack!r}, which has no cover images, got True. "
                f"These have some: {', '.join(covered)}."
            )
        if self.attack in RECIPES:
            recipe = RECIPES[self.attack]
            recipe.with_defaults(self.settings)
            ready = self.attack == "low-frequency" and self.picture is not None
            if recipe.array_of and Path(self.picture or "").suffix != ".npy":
                raise ValueError(
                    f"picture must be a .npy file for {self.attack!r}, got {self.picture}. Give {recipe.array_of}."
                )
            if recipe.surrogate and self.surrogate is None and not ready:
                raise ValueError(
                    f"surrogate must be given for {self.attack!r}, which is optimised on a clean classifier, got none. "
                    "Train one with attack 'none' on the same data first."
                )


def composite_classes(about: Mapping[str, Any]) -> tuple[int, int]:
    """The two classes that the composite attack joins."""
    chosen = {**COMPOSITE_SETTINGS, **about.get("settings", {})}
    return chosen["first"], chosen["second"]
