"""``Victim``: a classifier with a backdoor, and its trigger."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from sampdetox_transforms.lab.attacks.composite import CompositePairs
from sampdetox_transforms.lab.attacks.datasets import load_trigger
from sampdetox_transforms.lab.attacks.items import Attack, read_labels, stack_images
from sampdetox_transforms.lab.attacks.recipes import CLEAN, COMPOSITE, RECIPES, get_recipe
from sampdetox_transforms.lab.attacks.triggered import TriggeredDataset
from sampdetox_transforms.lab.metrics import Share, backdoor_shares, predicted
from sampdetox_transforms.lab.victims.classifiers import build_classifier, predict
from sampdetox_transforms.lab.victims.config import ABOUT, CLASSIFIER, POISONING, composite_classes
from sampdetox_transforms.networks.checkpoints import WeightsFileError


@dataclass(frozen=True)
class Victim:
    """A backdoored classifier, and all that its test needs.

    Attributes:
        name: what tables call it.
        model: images (b, c, h, w) in [0, 1] to logits (b, k), in eval mode.
        attack: puts on test images the trigger that the classifier was trained on; None without a backdoor.
        target_label, mode, num_classes: as for ``PoisonedDataset``; mode "composite" for CBA.
        size: height and width of its images, in pixels; None for any.
        about: the settings that it was made with.
    """

    name: str
    model: Callable[[Tensor], Tensor]
    attack: Attack | None
    target_label: int | None
    mode: str
    num_classes: int
    size: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def triggered(self, dataset: Any, seed: int = 0) -> TriggeredDataset | CompositePairs:
        """The test images with the trigger, without those of the target class: the data of PA and ASR.

        Raises:
            ValueError: a classifier without a backdoor, or what the data set refuses.
        """
        if self.mode == COMPOSITE:
            assert self.target_label is not None
            return CompositePairs(dataset, composite_classes(self.about), self.target_label, n=len(dataset), seed=seed)
        if self.attack is None:
            raise ValueError(f"a victim must have a backdoor to be triggered, got {self.name!r} without. Measure CA.")
        return TriggeredDataset(dataset, self.attack, self.target_label, self.mode, self.num_classes)


def materialise(dataset: Any) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """All images of a data set in [0, 1], and all labels."""
    return stack_images(dataset, torch.arange(len(dataset))), read_labels(dataset)


def load_victim(folder: str | Path, *, device: str | torch.device = "cpu") -> Victim:
    """Read what ``train_victim`` wrote.

    Raises:
        WeightsFileError: no such folder, or files of another kind.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text())
        state = load_file(folder / CLASSIFIER)
        model = build_classifier(about["classifier"], len(about["classes"]))
        model.load_state_dict(state)
        name, target_label, attack, mode = about["attack"], about["target_label"], None, COMPOSITE
        if name in RECIPES:
            recipe = get_recipe(name)
            attack = recipe.bind(load_trigger(folder / POISONING), **recipe.with_defaults(about["settings"]))
            mode = recipe.mode if about["mode"] is None else about["mode"]
        elif name == CLEAN:
            mode, target_label = "all2one", None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsFileError(
            f"a victim must be a folder that train_victim wrote, got {folder}: {error}. Was its training finished?"
        ) from error
    model.to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
    return Victim(folder.name, model, attack, target_label, mode, len(about["classes"]), about["size"], about)


def measure(victim: Victim, dataset: Any, device: str | torch.device = "cpu") -> dict[str, Share]:
    """CA, and PA and ASR where there is a backdoor, with no defense."""
    images, labels = materialise(dataset)
    clean = predicted(predict(victim.model, images.to(device))).cpu()
    if victim.attack is None and victim.mode != COMPOSITE:
        return backdoor_shares(clean, labels)
    triggered = victim.triggered(dataset)
    classes = predicted(predict(victim.model, triggered.materialise()[0].to(device))).cpu()
    return backdoor_shares(clean, labels, classes, triggered.targets, triggered.attacker_labels)
