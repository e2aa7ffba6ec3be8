"""What an attack prepares before its images are poisoned: pictures, patterns, networks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sampdetox_transforms.lab.attacks.input_aware import train_input_aware
from sampdetox_transforms.lab.attacks.items import Attack
from sampdetox_transforms.lab.attacks.label_consistent import label_consistent, pgd
from sampdetox_transforms.lab.attacks.low_frequency import optimise_pattern
from sampdetox_transforms.lab.attacks.pictures import reflections
from sampdetox_transforms.lab.attacks.refool import refool
from sampdetox_transforms.lab.attacks.stega import train_stega
from sampdetox_transforms.lab.attacks.trojannn import apple_mask, optimise_trigger
from sampdetox_transforms.lab.attacks.wanet import warp_field
from sampdetox_transforms.method.noise import SeededNoise

Trigger = Mapping[str, Tensor]

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a trigger may be made from.

    Attributes:
        images, labels: the training set, (n, c, h, w) in [0, 1], and (n,).
        target_label: the attacker's class; None for all-to-all.
        num_classes: K.
        surrogate: a classifier without a backdoor, for triggers that are optimised on one.
        network: makes a small classifier with random weights, for triggers that are trained together with one.
        picture: the user's own picture, where an attack takes one; for "low-frequency" a ready pattern, for
            "issba" (k, c, y, x) residuals.
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
    picture: Float[Tensor, "*k c y x"] | None = None
    progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def generator(self) -> torch.Generator:
        """A new generator, seeded with ``seed``."""
        return torch.Generator().manual_seed(self.seed)


def _no_trigger(preparation: Preparation, **settings: Any) -> dict[str, Tensor]:
    return {}


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


def _residuals(preparation: Preparation) -> dict[str, Tensor]:
    if preparation.picture is None:
        raise ValueError("the issba attack must be given residuals of its encoder, got none. Give picture=FILE.npy.")
    return {"residuals": preparation.picture}


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
