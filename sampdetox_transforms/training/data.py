"""Random crops of the images of folders, in an order that a resumed run repeats."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

SMALLEST = 96  # pixels a side of the smallest square, where an image is larger

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
        self.paths, self.size = paths, size
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


def random_square(image: Tensor, generator: Generator) -> Tensor:
    """A square of ``SMALLEST`` pixels up to the shorter side, three in ten of them as large as fits."""
    height, width = image.shape[-2:]
    largest = min(height, width)
    smallest = SMALLEST if largest > SMALLEST else 0.8 * largest
    anywhere, share = numbers(2, generator)
    side = round(smallest * (largest / smallest) ** share) if anywhere < 0.7 else largest
    top, left = whole(0, height - side + 1, generator), whole(0, width - side + 1, generator)
    return image[:, top : top + side, left : left + side]


def resize(x: Tensor, side: int, generator: Generator) -> Tensor:
    """(n, c, side, side), as one program or another would."""
    mode, antialias = ("bicubic", "bilinear", "bilinear")[whole(0, 3, generator)], numbers(1, generator)[0] < 0.85
    return functional.interpolate(x, (side, side), mode=mode, antialias=antialias, align_corners=False).clamp(0, 1)


def numbers(n: int, generator: Generator) -> list[float]:
    """Uniform numbers in [0, 1)."""
    return torch.rand(n, generator=generator).tolist()


def whole(low: int, high: int, generator: Generator) -> int:
    """A whole number from ``low`` to below ``high``."""
    return int(torch.randint(low, high, (), generator=generator))
