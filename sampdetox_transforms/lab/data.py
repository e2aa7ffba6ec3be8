"""Data for measurements: where they lie, and images of folders as tensors.

Nothing of it ships with the package: the environment variable ``SAMPDETOX_DATA`` names the folder.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

VARIABLE = "SAMPDETOX_DATA"

CLASSES = {"gtsrb": 43, "cifar10": 10}

HELD_OUT = 20  # of the training images one in so many was kept from all networks


def data_folder(data: str | Path | None = None) -> Path:
    """``data``, or else the folder that ``SAMPDETOX_DATA`` names.

    Raises:
        FileNotFoundError: neither is a folder.
    """
    folder = os.environ.get(VARIABLE, "") if data is None else data
    if not str(folder) or not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{VARIABLE} must name the folder with the data for measurements, got {str(folder)!r}. See docs/data.md."
        )
    return Path(folder)


def data_path(name: str, data: str | Path | None = None) -> Path:
    """A file or folder of the data.

    Raises:
        FileNotFoundError: no data, or none of this name.
    """
    path = data_folder(data) / name
    if not path.exists():
        raise FileNotFoundError(f"{VARIABLE} must hold {name}, got {path.parent} without it. See docs/data.md.")
    return path


def drawn(total: int, n: int | None, seed: int) -> Int[Tensor, " n"]:
    """``n`` of so many indices, drawn with the seed; all of them where n is None or more."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n]


def square_image(
    path: Path, size: int | None = None, box: tuple[int, int, int, int] | None = None
) -> UInt8[Tensor, "3 h w"]:
    """An image as RGB: cropped to the box, its shorter side brought to ``size``, and the middle square taken."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    if box is not None:
        image = image.crop(box).resize((size or 32, size or 32), Image.Resampling.BILINEAR)
    elif size is not None and image.size != (size, size):
        scale = size / min(image.size)
        wide = [max(size, round(side * scale)) for side in image.size]
        image = image.resize((wide[0], wide[1]), Image.Resampling.BICUBIC)
        left, top = ((side - size) // 2 for side in image.size)
        image = image.crop((left, top, left + size, top + size))
    return functional.pil_to_tensor(image)


def load_gtsrb(
    split: str, n: int | None, seed: int, *, size: int = 32, data: str | Path | None = None
) -> tuple[Float[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
    """``n`` GTSRB images of a split, drawn with ``seed``, cropped to the sign and resized back: [0, 1], and labels."""
    root = data_path("gtsrb32", data)
    with (root / f"{split}_roi.csv").open() as file:
        rows = list(csv.DictReader(file))
    chosen = [rows[i] for i in drawn(len(rows), n, seed).tolist()]
    images = [square_image(root / row["path"], size, _box(row)) for row in chosen]
    return torch.stack(images).float() / 255, torch.tensor([int(row["label"]) for row in chosen])


def load_folder(
    name: str, *, size: int | None = None, data: str | Path | None = None
) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
    """All images of an image folder of the data, by class and name, in 8 bits, and their labels."""
    paths = sorted(path for path in data_path(name, data).glob("*/*") if path.is_file())
    classes = sorted({path.parent.name for path in paths})
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    return torch.stack([square_image(path, size) for path in paths]), labels


def gtsrb_training(
    *, whole: bool, held_out: bool, data: str | Path | None = None
) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
    """GTSRB's training images, in 8 bits, whole or cropped to the sign: those that are held out, or all others.

    One track of photographs in ``HELD_OUT`` is held out. The last runs of two networks saw a third of these images
    (docs/notes/hidden-bits.md), all others none.
    """
    root = data_path("gtsrb32", data)
    with (root / "train_roi.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if is_held_out(Path(row["path"])) == held_out]
    images = [square_image(root / row["path"], 32, None if whole else _box(row)) for row in rows]
    return torch.stack(images), torch.tensor([int(row["label"]) for row in rows])


def is_held_out(path: Path) -> bool:
    """Whether an image's track is one of those that are held out."""
    return int(path.stem.split("_")[0]) % HELD_OUT == HELD_OUT - 1


def _box(row: Mapping[str, str]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = (round(float(row[key])) for key in ("x1", "y1", "x2", "y2"))
    return x1, y1, x2, y2
