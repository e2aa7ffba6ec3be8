"""The poisoned training images of a victim."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from sampdetox_transforms.lab.attacks.composite import CompositeDataset
from sampdetox_transforms.lab.attacks.datasets import PoisonedDataset, load_trigger, unit_image
from sampdetox_transforms.lab.attacks.preparation import Preparation
from sampdetox_transforms.lab.attacks.recipes import CLEAN, COMPOSITE, get_recipe
from sampdetox_transforms.lab.victims.classifiers import build_classifier
from sampdetox_transforms.lab.victims.config import POISONING, VictimConfig, composite_classes
from sampdetox_transforms.lab.victims.victim import load_victim


def image_folder(folder: str | Path, size: int | None = None) -> ImageFolder:
    """An image folder as RGB images in [0, 1], all ``size`` x ``size`` where a size is given.

    Raises:
        OSError: no such folder.
        ValueError: a folder without classes or images.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"the data must be a folder with a subfolder for each class, got {folder}. Check it.")

    def transform(image: Image.Image) -> Tensor:  # ImageFolder gives RGB
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return unit_image(image)

    try:
        return ImageFolder(str(folder), transform)
    except FileNotFoundError as error:
        raise ValueError(f"each class must be a subfolder with images, got {folder}: {error}. Check it.") from error


class Images(torch.utils.data.Dataset):
    """Images and labels in memory, as a data set with ``targets`` and ``classes``."""

    def __init__(self, images: Tensor, targets: Tensor, classes: list[str]):
        self.images, self.targets, self.classes = images, targets, classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])


class Covers(NamedTuple):
    """Which training images keep their label although they are altered, and what they look like in an epoch."""

    indices: Int[Tensor, " k"]
    of_epoch: Callable[[int], Float[Tensor, "k c h w"]]


def poisoned_tensors(
    config: VictimConfig,
    dataset: Images,
    out: Path,
    device: str | torch.device = "cpu",
    progress: Callable[[str, int, int, float], None] = lambda what, done, total, loss: None,
) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"], Covers | None]:
    """The training images and their labels as taught, and those of them that are drawn anew.

    ``out`` gains the trigger and the poisoned indices; a trigger that is there already is used, not made anew.
    """
    if config.attack == CLEAN:
        return dataset.images, dataset.targets, None
    num_classes = len(dataset.classes)
    if config.attack == COMPOSITE:
        rate = 0.1 if config.poison_rate is None else config.poison_rate
        classes, target_label = composite_classes(asdict(config)), config.target_label
        if target_label is None:
            raise ValueError("the composite attack must have a target label, got none. Give target_label.")
        mixed = CompositeDataset(dataset, classes, target_label, poison_rate=rate, seed=config.seed)
        return *mixed.materialise(), None

    recipe = get_recipe(config.attack)
    settings = recipe.with_defaults(config.settings)
    surrogate = None
    if config.surrogate is not None:
        surrogate = load_victim(config.surrogate, device=device)
        if surrogate.attack is not None or surrogate.num_classes != num_classes:
            raise ValueError(
                f"surrogate must be a victim with attack 'none' and {num_classes} classes, got {config.surrogate}. "
                "Train one on the same data."
            )
    made = (out / POISONING).exists()
    preparation = Preparation(
        images=dataset.images,
        labels=dataset.targets,
        target_label=config.target_label,
        num_classes=num_classes,
        seed=config.seed,
        surrogate=None if surrogate is None else surrogate.model,  # pyright: ignore[reportArgumentType]
        network=partial(build_classifier, "preact-resnet18-narrow", num_classes),
        picture=None if made or config.picture is None else read_picture(config.picture, recipe.array),
        progress=lambda done, steps: progress("trigger", done, steps, float("nan")),
    )
    trigger = load_trigger(out / POISONING) if made else recipe.prepare(preparation, **settings)
    poisoned = PoisonedDataset(
        dataset,
        recipe.bind(trigger, **settings),
        config.target_label,
        recipe.poison_rate if config.poison_rate is None else config.poison_rate,
        recipe.mode if config.mode is None else config.mode,
        config.seed,
        num_classes,
        cover=None if recipe.cover is None else recipe.cover(trigger, **settings),
        cover_rate=recipe.cover_rate,
    )
    poisoned.save(out / POISONING, trigger=trigger)
    poison = None if recipe.poison is None else recipe.poison(preparation, trigger, **settings)
    fresh = config.fresh_covers and poisoned.cover is not None
    covers = Covers(poisoned.cover_indices, poisoned.draw_covers) if fresh else None
    return *poisoned.materialise(poison=poison), covers


def read_picture(path: str | Path, array: Callable[..., Tensor]) -> Float[Tensor, "*k 3 y x"]:
    """A user's picture as RGB in [0, 1], or what a .npy file holds, read by ``array``."""
    if Path(path).suffix == ".npy":
        return array(path)
    with Image.open(path) as image:
        return unit_image(image.convert("RGB"))
