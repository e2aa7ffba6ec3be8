"""Kinds of images to measure on: photographs, faces, textures, signs; 32 to 224 pixels, test images only."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.data import data_path, drawn, square_image
from sampdetox_transforms.lab.demo.signs import draw_signs

THIRD = 3  # of the ImageNet sample every third image is for testing; the others are for training

# The ten classes of Imagenette, as indices of ImageNet's sorted list.
IMAGENETTE = {
    "n01440764": 0,
    "n02102040": 217,
    "n02979186": 482,
    "n03000684": 491,
    "n03028079": 497,
    "n03394916": 566,
    "n03417042": 569,
    "n03425413": 571,
    "n03445777": 574,
    "n03888257": 701,
}

DRAWN = "drawn"


@dataclass(frozen=True)
class Kind:
    """One kind of images.

    Attributes:
        folder: within the data.
        size: height and width.
        title: in words, for a table.
        labels: from file names to labels: "imagenet" where an ImageNet classifier's class is known, else "folder".
        pattern: which files.
        every: of the sorted files every so many-th.
    """

    folder: str
    size: int
    title: str
    labels: str = "folder"
    pattern: str = "*/*"
    every: int = 1


KINDS = {
    "imagenet": Kind("imagenet-sample", 224, "ImageNet", "imagenet", "*", THIRD),
    "imagenette": Kind("imagenette160/val", 160, "Imagenette", "imagenet"),
    "tiny-imagenet": Kind("tiny-imagenet/test", 64, "Tiny-ImageNet"),
    "lfw": Kind("lfw/test", 128, "LFW faces"),
    "dtd": Kind("dtd/test", 128, "DTD textures"),
    "cifar10": Kind("cifar10-lossless/test", 32, "CIFAR-10"),
    "gtsrb": Kind("gtsrb32/test", 32, "GTSRB"),
    DRAWN: Kind("", 32, "drawn signs"),
}


@dataclass(frozen=True)
class Images:
    """Images in [0, 1] and their labels."""

    images: Float[Tensor, "n 3 h w"]
    labels: Int[Tensor, " n"]


def load_kind(
    name: str, n: int | None = None, seed: int = 0, *, data: str | Path | None = None, size: int | None = None
) -> Images:
    """``n`` test images of a kind, drawn with ``seed``, at the kind's own size or another.

    Raises:
        ValueError: an unknown kind.
        FileNotFoundError: no data; the remedy is named.
    """
    check_choice("kind", name, tuple(KINDS))
    kind = KINDS[name]
    if name == DRAWN:
        count = 200 if n is None else n
        return Images(*draw_signs(count, seed + 5_000_000))
    paths = paths_for_testing(name, data)
    chosen = [paths[i] for i in drawn(len(paths), n, seed).tolist()]
    images = torch.stack([square_image(path, size or kind.size) for path in chosen])
    label = label_of(kind, paths)
    return Images(images.float() / 255, torch.tensor([label(path) for path in chosen]))


def paths_for_testing(name: str, data: str | Path | None = None) -> list[Path]:
    """All test files of a kind, sorted."""
    kind = KINDS[name]
    return sorted(path for path in data_path(kind.folder, data).glob(kind.pattern) if path.is_file())[:: kind.every]


def paths_for_training(data: str | Path | None = None) -> list[Path]:
    """The photographs with an ImageNet class that are not for testing: two thirds of the sample, and Imagenette's."""
    sample = sorted(data_path("imagenet-sample", data).glob("*"))
    return [path for i, path in enumerate(sample) if i % THIRD] + sorted(
        data_path("imagenette160/train", data).glob("*/*")
    )


def imagenet_class(path: Path) -> int:
    """The index of the class in ImageNet's sorted list, from a file's name or its folder's."""
    return IMAGENETTE[path.parent.name] if path.parent.name in IMAGENETTE else int(path.stem)


def label_of(kind: Kind, paths: list[Path]) -> Callable[[Path], int]:
    """From a file to its label."""
    if kind.labels == "imagenet":
        return imagenet_class
    classes = sorted({path.parent.name for path in paths})
    return lambda path: classes.index(path.parent.name)
