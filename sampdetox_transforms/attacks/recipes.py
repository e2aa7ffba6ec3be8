"""How each attack is carried out by default: how its trigger is made, its mode, its poison rate, its cover images.

``RECIPES`` is the list of attacks that ``sampdetox victim`` and the evaluation know by name. A recipe's trigger is a
dictionary of tensors, saved with the victim, so that test images carry what the victim saw.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sampdetox_transforms.attacks.badnets import badnets
from sampdetox_transforms.attacks.blended import blended
from sampdetox_transforms.attacks.bpp import bpp, bpp_negative
from sampdetox_transforms.attacks.color_style import color_style
from sampdetox_transforms.attacks.input_aware import input_aware, input_aware_cross, train_input_aware
from sampdetox_transforms.attacks.label_consistent import label_consistent, pgd
from sampdetox_transforms.attacks.low_frequency import low_frequency, optimise_pattern
from sampdetox_transforms.attacks.pictures import cartoon, reflections, sunrise
from sampdetox_transforms.attacks.poisoning import Attack
from sampdetox_transforms.attacks.refool import refool
from sampdetox_transforms.attacks.sig import sig
from sampdetox_transforms.attacks.stega import stega, train_stega
from sampdetox_transforms.attacks.trojannn import apple_mask, optimise_trigger, trojannn
from sampdetox_transforms.attacks.wanet import wanet, wanet_noise, warp_field
from sampdetox_transforms.names import check_choice, suggest
from sampdetox_transforms.noise import SeededNoise

Trigger = Mapping[str, Tensor]
Settings = Mapping[str, Any]
CLEAN = "none"  # the name under which a classifier without a backdoor is trained
COMPOSITE = "composite"  # two images make one: its data sets are its own


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a trigger may be made from.

    Attributes:
        images, labels: the training set, (n, c, h, w) in [0, 1], and (n,).
        target_label: the attacker's class; None for all-to-all.
        num_classes: K.
        surrogate: a classifier without a backdoor, for triggers that are optimised on one.
        network: makes a small classifier with random weights, for triggers that are trained together with one.
        picture: the user's own picture, where an attack takes one; for "low-frequency" a ready pattern.
        seed: draws what is random.
        progress: called with (steps done, steps in all).
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    target_label: int | None
    num_classes: int
    seed: int = 0
    surrogate: nn.Module | None = None
    network: Callable[[], nn.Module] | None = None
    picture: Float[Tensor, "c y x"] | None = None
    progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def generator(self) -> torch.Generator:
        """A new generator, seeded with ``seed``."""
        return torch.Generator().manual_seed(self.seed)


def _no_trigger(preparation: Preparation, **settings: Any) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One attack with its defaults.

    Attributes:
        bind: (trigger, **settings) -> the attack, a function of images.
        prepare: (preparation, **settings) -> the trigger's tensors.
        settings: the attack's own settings and their defaults; a victim may change them, not add to them.
        mode, poison_rate: as for ``PoisonedDataset``.
        cover, cover_rate: (trigger, **settings) -> a function of (image, other image) for images that keep their true
            label, and their share.
        poison: (preparation, trigger, **settings) -> a function of (images, labels) for the training images, where
            they differ from the test images.
        surrogate: whether ``prepare`` or ``poison`` needs a clean classifier.
        source: the paper's name, or what this is a stand-in for.
    """

    bind: Callable[..., Attack]
    source: str
    prepare: Callable[..., dict[str, Tensor]] = _no_trigger
    settings: Settings = field(default_factory=dict)
    mode: str = "all2one"
    poison_rate: float = 0.1
    cover: Callable[..., Callable[[Tensor, Tensor], Tensor]] | None = None
    cover_rate: float = 0.0
    poison: Callable[..., Callable[[Tensor, Tensor], Tensor]] | None = None
    surrogate: bool = False

    def with_defaults(self, settings: Settings) -> dict[str, Any]:
        """The recipe's settings, changed by ``settings``; ValueError for one that the attack does not have."""
        for name in settings:
            if name not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise ValueError(
                    f"settings must be among the attack's own ({known}), got {name!r}. {suggest(name, self.settings)}"
                )
        return {**self.settings, **settings}


def get_recipe(name: str) -> Recipe:
    """Look a recipe up by its name.

    Raises:
        ValueError: an unknown name; the nearest ones are suggested.
    """
    check_choice("attack", name, tuple(RECIPES))
    return RECIPES[name]


# Triggers that need making. Each takes a Preparation and the attack's settings.


def _size(preparation: Preparation) -> tuple[int, int]:
    height, width = preparation.images.shape[-2:]
    return height, width


def _chosen(preparation: Preparation, n: int) -> tuple[Tensor, Tensor]:
    """``n`` training images and their labels, drawn by the seed."""
    chosen = torch.randperm(len(preparation.images), generator=preparation.generator)[:n]
    return preparation.images[chosen], preparation.labels[chosen]


def _picture_or(draw: Callable[[int, int], Tensor]) -> Callable[..., dict[str, Tensor]]:
    def prepare(preparation: Preparation, **settings: Any) -> dict[str, Tensor]:
        return {"picture": draw(*_size(preparation)) if preparation.picture is None else preparation.picture}

    return prepare


def _optimised_pattern(preparation: Preparation, *, limit: float) -> dict[str, Tensor]:
    if preparation.picture is not None:  # a ready pattern
        return {"pattern": preparation.picture}
    images, _ = _chosen(preparation, 100)
    return {"pattern": optimise_pattern(_surrogate(preparation), images, _target(preparation), limit=limit)}


def _field(preparation: Preparation, *, k: int, strength: float) -> dict[str, Tensor]:
    return {"field": warp_field(*_size(preparation), k=k, strength=strength, generator=preparation.generator)}


def _trojan_trigger(preparation: Preparation, *, wrap_uint8: bool) -> dict[str, Tensor]:
    mask = apple_mask(*_size(preparation))
    return {"trigger": optimise_trigger(_surrogate(preparation), mask, progress=preparation.progress)}


def _input_aware_networks(preparation: Preparation) -> dict[str, Tensor]:
    if preparation.network is None:
        raise ValueError("the input-aware attack must have a network to train with, got none. Give network=.")
    images, labels = _chosen(preparation, 5000)
    return train_input_aware(
        images,
        labels,
        _target(preparation),
        preparation.network(),
        seed=preparation.seed,
        progress=preparation.progress,
    )


def _encoder(preparation: Preparation) -> dict[str, Tensor]:
    images, _ = _chosen(preparation, 5000)
    return train_stega(images, seed=preparation.seed, progress=preparation.progress)


def _reflections(preparation: Preparation, **settings: Any) -> dict[str, Tensor]:
    return {"reflections": reflections(100, *_size(preparation), seed=preparation.seed)}


def _adversarial(preparation: Preparation, trigger: Trigger, *, amplitude: float, eps: float, steps: int):
    model, generator = _surrogate(preparation), preparation.generator

    def poison(images: Tensor, labels: Tensor) -> Tensor:
        moved = pgd(images, labels, model, eps=eps, steps=steps, generator=generator)
        return label_consistent(moved, amplitude=amplitude)

    return poison


def _surrogate(preparation: Preparation) -> nn.Module:
    if preparation.surrogate is None:
        raise ValueError(
            "this attack must have a clean classifier to work on, got none. Train one with attack 'none' on the same "
            "data and give its folder as surrogate."
        )
    return preparation.surrogate


def _target(preparation: Preparation) -> int:
    if preparation.target_label is None:
        raise ValueError("this attack must have one target label, got none. Take mode 'all2one'.")
    return preparation.target_label


def _seeded_refool(trigger: Trigger, *, alpha: float, ghost_rate: float) -> Attack:
    """Each image's reflection and draws follow from the image, so that it is the same in any batch and order."""

    def attack(images: Tensor) -> Tensor:
        flat = images.reshape(-1, *images.shape[-3:])
        result = [
            refool(image, trigger["reflections"], alpha=alpha, ghost_rate=ghost_rate, generator=generator)
            for image, generator in zip(flat, SeededNoise(flat * 2 - 1, seed=0).generators, strict=True)
        ]
        return torch.stack(result).reshape(images.shape)

    return attack


RECIPES: dict[str, Recipe] = {
    "badnets": Recipe(
        source="BadNets",
        settings={"pattern": "white", "size": 3, "margin": 0, "corner": "bottom-right", "opacity": 1.0},
        bind=lambda trigger, **settings: partial(badnets, **settings),
    ),
    "sig": Recipe(
        source="SIG",
        settings={"delta": 40 / 255, "frequency": 6},
        bind=lambda trigger, **settings: partial(sig, **settings),
        mode="clean-label",
        poison_rate=1.0,
    ),
    "label-consistent": Recipe(
        source="LC (surrogate not adversarially trained)",
        settings={"amplitude": 1.0, "eps": 8 / 255, "steps": 100},
        bind=lambda trigger, *, amplitude, eps, steps: partial(label_consistent, amplitude=amplitude),
        poison=_adversarial,
        mode="clean-label",
        poison_rate=1.0,
        surrogate=True,
    ),
    "trojannn": Recipe(
        source="TrojanNN (own apple mask)",
        settings={"wrap_uint8": False},
        bind=lambda trigger, **settings: partial(trojannn, trigger=trigger["trigger"], **settings),
        prepare=_trojan_trigger,
        surrogate=True,
    ),
    "input-aware": Recipe(
        source="Dynamic (narrower networks)",
        bind=lambda trigger: partial(input_aware, state=dict(trigger)),
        prepare=_input_aware_networks,
        cover=lambda trigger: partial(input_aware_cross, state=dict(trigger)),
        cover_rate=0.1,
    ),
    "blended": Recipe(
        source="Blended (own picture)",
        settings={"alpha": 0.2},
        bind=lambda trigger, **settings: partial(blended, picture=trigger["picture"], **settings),
        prepare=_picture_or(cartoon),
    ),
    "low-frequency": Recipe(
        source="LF",
        settings={"limit": 0.2},
        bind=lambda trigger, *, limit: partial(low_frequency, pattern=trigger["pattern"]),
        prepare=_optimised_pattern,
        surrogate=True,
    ),
    "wanet": Recipe(
        source="WaNet",
        settings={"k": 4, "strength": 0.5},
        bind=lambda trigger, **settings: partial(wanet, field=trigger["field"]),
        prepare=_field,
        cover=lambda trigger, **settings: lambda image, other: wanet_noise(image, trigger["field"]),
        cover_rate=0.2,
    ),
    "stega": Recipe(
        source="ISSBA-style (own encoder)",
        bind=lambda trigger: partial(stega, state=dict(trigger)),
        prepare=_encoder,
    ),
    "bpp": Recipe(
        source="BPP",
        settings={"levels": 8, "dither": False},
        bind=lambda trigger, **settings: partial(bpp, **settings),
        cover=lambda trigger, **settings: partial(bpp_negative, **settings),
        cover_rate=0.1,
    ),
    "refool": Recipe(
        source="Refool (own reflections)",
        settings={"alpha": 0.4, "ghost_rate": 0.49},
        bind=_seeded_refool,
        prepare=_reflections,
    ),
    "color-style": Recipe(
        source="stand-in for DFST",
        settings={"alpha": 0.6},
        bind=lambda trigger, **settings: partial(color_style, style=trigger["picture"], **settings),
        prepare=_picture_or(sunrise),
    ),
}

# The order of the paper's tables.
TEN_ATTACKS = (
    "badnets",
    "sig",
    "label-consistent",
    "trojannn",
    "input-aware",
    "blended",
    "low-frequency",
    "wanet",
    "stega",
    "bpp",
)
