"""A victim's own training set, purified: made anew from what is stored of its poisoning, and kept in a folder."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.attacks.recipes import RECIPES
from sampdetox_transforms.lab.data import data_folder
from sampdetox_transforms.lab.evaluation.behind import treat
from sampdetox_transforms.lab.victims.config import POISONING, VictimConfig
from sampdetox_transforms.lab.victims.poisoned import Images, image_folder, poisoned_tensors
from sampdetox_transforms.lab.victims.training import new_classifier
from sampdetox_transforms.lab.victims.victim import load_victim, materialise
from sampdetox_transforms.transforms.transform import SampDetox

PART = 1024  # images that are purified between two saves

DRAW = 1_000_003  # parts the seed of a limit from the one that PoisonedDataset draws with

Progress = Callable[[str, int, int], None]  # what, done, of how many


@dataclass(frozen=True)
class TrainingSet:
    """Purified images (n, 3, h, w) in uint8, their labels as taught and true, which carry the trigger, were flagged."""

    images: Tensor
    labels: Tensor
    truth: Tensor
    poisoned: Tensor
    flagged: Tensor | None


def stored_config(folder: Path, epochs: int | None = None, data: Path | None = None) -> VictimConfig:
    """What a victim was made with, its data in SAMPDETOX_DATA, and its surrogate in the folder beside it."""
    about = load_victim(folder).about
    if about["attack"] not in RECIPES:
        raise ValueError(
            f"the attack must be one of {', '.join(RECIPES)}, got {about['attack']!r}. Leave {folder} out."
        )
    if about["robust_noise"]:
        raise ValueError(
            f"robust_noise must be 0, got {about['robust_noise']}: it is drawn anew in each epoch, and no training set "
            f"has it. Leave {folder} out."
        )
    known = {field.name for field in fields(VictimConfig)}
    config = VictimConfig(**{name: value for name, value in about.items() if name in known})
    surrogate = None if config.surrogate is None else str(folder.parent / config.surrogate)
    epochs = config.epochs if epochs is None else epochs
    return replace(config, data=str(data_folder(data) / config.data), surrogate=surrogate, epochs=epochs)


def purified_set(
    folder: Path,
    config: VictimConfig,
    detox: SampDetox,
    limit: int | None,
    seed: int,
    work: Path,
    progress: Progress = lambda what, done, total: None,
) -> TrainingSet:
    """The victim's training set, or ``limit`` images of it, purified; read from ``work`` where it is there."""
    whole = work / "purified.safetensors"
    if not whole.exists():
        images, labels, truth, poisoned = poisoned_set(folder, config, work, progress)
        chosen = drawn_from(len(images), limit, seed)
        parts = [work / f"purified-{start:06}.safetensors" for start in range(0, len(chosen), PART)]
        for i, (path, part) in enumerate(zip(parts, chosen.split(PART), strict=True)):
            if not path.exists():
                tensors = purify(images[part], detox)
                write_atomically(path, lambda file, tensors=tensors: save_file(tensors, file))
            progress(f"{folder.name}: purified", i * PART + len(part), len(chosen))
        found = [load_file(path) for path in parts]
        tensors = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        tensors |= {"labels": labels[chosen], "truth": truth[chosen], "poisoned": poisoned[chosen]}
        write_atomically(whole, lambda file: save_file(tensors, file))
        for path in parts:
            path.unlink()
    return TrainingSet(**{"flagged": None, **load_file(whole)})


def drawn_from(n: int, limit: int | None, seed: int) -> Tensor:
    """``limit`` of n indices. The seed alone would draw the permutation whose first tenth is poisoned."""
    generator = torch.Generator().manual_seed(seed + DRAW)
    return torch.randperm(n, generator=generator)[:limit]


def poisoned_set(
    folder: Path, config: VictimConfig, work: Path, progress: Progress = lambda what, done, total: None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the victim was trained on: images in [0, 1], labels as taught, true labels, and which carry the trigger.

    Another ``poison_rate`` than the victim's poisons so many images of the same data with the same trigger.
    """
    files = image_folder(config.data, config.size)
    dataset = Images(*materialise(files), files.classes)
    stored, built = folder / POISONING, work / POISONING
    shutil.copyfile(stored, built)  # with the trigger, which is made no second time; the victim's folder stays as it is
    new_classifier(config, len(files.classes))  # its draws come before those of the cover images
    images, labels, _ = poisoned_tensors(config, dataset, work, progress=staged(f"{folder.name}: trigger", progress))
    (about, indices), (about_stored, indices_stored) = plan(built), plan(stored)
    own_rate = about["poison_rate"] == about_stored["poison_rate"]
    if about | {"poison_rate": None} != about_stored | {"poison_rate": None} or (
        own_rate and indices != indices_stored
    ):
        raise ValueError(f"{config.data} must be what {folder} was trained on, got other images. Give the same data.")
    poisoned = torch.zeros(len(labels), dtype=torch.bool)
    poisoned[load_file(built)["indices"]] = True
    return images, labels, dataset.targets, poisoned


def plan(path: Path) -> tuple[dict, list[int]]:
    """Which images a file of ``PoisonedDataset.save`` poisons, and what was said of the data set."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["poisoning"]), file.get_tensor("indices").tolist()


def purify(images: Tensor, detox: SampDetox) -> dict[str, Tensor]:
    """Images in uint8, and whether each was flagged where the preset searches."""
    treated = treat(detox, images, len(images))
    result = {"images": (treated.images * 255).round().to(torch.uint8).contiguous()}
    return result if treated.flagged is None else {**result, "flagged": treated.flagged}


def staged(what: str, progress: Progress) -> Callable[[str, int, int, float], None]:
    """What a training reports, for a progress of three arguments."""
    return lambda stage, done, total, loss: progress(f"{what}, loss {loss:.3f}", done, total)


def digest(*parts: str | bytes) -> str:
    sums = [hashlib.sha256(part.encode() if isinstance(part, str) else part).digest() for part in parts]
    return hashlib.sha256(b"".join(sums)).hexdigest()[:12]


def weights(detox: SampDetox) -> list[bytes]:
    """The networks' parameters, as they are computed with."""
    return [value.detach().float().cpu().numpy().tobytes() for value in detox.state_dict().values()]
