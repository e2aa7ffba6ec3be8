"""How each attack is carried out by default: how its trigger is made, its mode, its poison rate, its cover images.

``RECIPES`` is the list of attacks that ``sampdetox victim`` and the evaluation know by name. A recipe's trigger is a
dictionary of tensors, saved with the victim, so that test images carry what the victim saw.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from sampdetox_transforms._common import check_choice, suggest
from sampdetox_transforms.lab.attacks.badnets import badnets
from sampdetox_transforms.lab.attacks.blended import blended
from sampdetox_transforms.lab.attacks.bpp import bpp, bpp_negative
from sampdetox_transforms.lab.attacks.color_style import color_style
from sampdetox_transforms.lab.attacks.input_aware import input_aware, input_aware_cross
from sampdetox_transforms.lab.attacks.issba import issba, load_residuals
from sampdetox_transforms.lab.attacks.items import Attack
from sampdetox_transforms.lab.attacks.label_consistent import label_consistent
from sampdetox_transforms.lab.attacks.low_frequency import load_pattern, low_frequency
from sampdetox_transforms.lab.attacks.pictures import cartoon, sunrise
from sampdetox_transforms.lab.attacks.preparation import (
    Settings,
    _adversarial,
    _encoder,
    _field,
    _input_aware_networks,
    _no_trigger,
    _optimised_pattern,
    _picture_or,
    _reflections,
    _residuals,
    _seeded_refool,
    _trojan_trigger,
)
from sampdetox_transforms.lab.attacks.sig import sig
from sampdetox_transforms.lab.attacks.stega import stega
from sampdetox_transforms.lab.attacks.trojannn import trojannn
from sampdetox_transforms.lab.attacks.wanet import wanet, wanet_noise

CLEAN = "none"  # the name under which a classifier without a backdoor is trained

COMPOSITE = "composite"  # two images make one: its data sets are its own


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
        array: reads the .npy file that a user may give as the picture.
        array_of: what that file holds, for an attack that is nothing without one.
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
    array: Callable[..., Tensor] = load_pattern
    array_of: str | None = None

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
    "issba": Recipe(
        source="ISSBA (ten of its residuals)",
        bind=lambda trigger: partial(issba, residuals=trigger["residuals"]),
        prepare=_residuals,
        array=load_residuals,
        array_of="residuals of ISSBA's encoder, such as triggers/issba_residuals.npy of the data",
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
