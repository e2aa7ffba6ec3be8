"""Random crops of the images of folders, in an order that a resumed run repeats."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


def list_images(folders: Sequence[str | Path]) -> list[Path]:
    """All image files under the folders, sorted, a folder named twice listed twice.

    Raises:
        OSError: a folder that does not exist.
        ValueError: no image in any of them.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"the training data must be a folder, got {folder}. Check the path.")
        found += sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"the data folders must hold images ({', '.join(IMAGE_SUFFIXES)}), got none in {folders}.")
    return found


def held_out(folders: Sequence[str | Path], share: float, needed: int = 0) -> dict[str, list[Path]]:
    """Of each folder a share of its images, evenly from its sorted files: to measure on, and not to learn from.

    Raises:
        ValueError: fewer than are needed.
    """
    nth = round(1 / share)
    found = {str(folder): list_images([folder])[nth - 1 :: nth] for folder in folders}
    for folder, images in found.items():
        if len(images) < needed:
            raise ValueError(
                f"each data folder must hold {needed * nth} images or more to hold out {needed} of them, got "
                f"{len(images)} held out of {folder}. Give more images, or a larger held_out or false_alarm_rate."
            )
    return found


class ImageCrops(Dataset):
    """Random crops, (c, size, size) in [-1, 1]; an item is asked for as (index, key), and the key decides the crop."""

    def __init__(self, paths: list[Path], size: int, channels: int, zoom: float):
        self.paths = paths
        self.mode = "RGB" if channels == 3 else "L"
        crop = v2.RandomResizedCrop(size, scale=(zoom, 1.0), ratio=(0.9, 1.1), antialias=True)
        whole = v2.RandomResizedCrop(size, scale=(1.0, 1.0), ratio=(1.0, 1.0), antialias=True)
        self.augment = v2.Compose(
            [
                v2.RandomChoice([crop, whole]),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * channels, [0.5] * channels),
            ]
        )

    def __getitem__(self, item: tuple[int, int]) -> Tensor:
        index, key = item
        try:
            with Image.open(self.paths[index]) as file:
                image = file.convert(self.mode)
        except Exception as error:  # Pillow raises many kinds on damaged files
            message = f"training images must be readable, got {error} at {self.paths[index]}. Remove it from the data."
            raise OSError(message) from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            return self.augment(image).as_subclass(Tensor)


class ResumableSampler(Sampler):
    """Shuffled (index, key) pairs without end, the same from any first item on, so that a resumed run goes on alike."""

    def __init__(self, length: int, seed: int, first: int):
        self.length, self.seed, self.first = length, seed, first

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.first
        while True:
            epoch, offset = divmod(position, self.length)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            for index in torch.randperm(self.length, generator=generator)[offset:].tolist():
                yield index, self.seed * 1_000_003 + position
                position += 1
