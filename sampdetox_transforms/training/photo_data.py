"""What the search network for photographs is trained on: crops of many kinds of images, resized, JPEG-encoded, drawn.

A photograph was resized and encoded before a trigger was put on it, and may be afterwards. Where clean and triggered
images have the same history, a network cannot take the history for the trigger.
"""

import io
from collections.abc import Collection
from pathlib import Path

import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.data import held_out, list_images, numbers, random_square, resize, whole
from sampdetox_transforms.training.drawings import draw_picture
from sampdetox_transforms.training.triggers.draw import choose, uniform


class PhotoCrops:
    """Crops of the images of folders, each folder drawn from with its share, and drawings.

    Args:
        folders: image folders, searched at any depth.
        shares: how often each is drawn from; alike where it is empty.
        drawn: the share of drawings among all.
        without: images that are not to be drawn.
    """

    def __init__(
        self,
        folders: tuple[str, ...],
        shares: tuple[float, ...] = (),
        drawn: float = 0.0,
        without: Collection[Path] = (),
    ):
        kept_out = set(without)
        self.paths = [[path for path in list_images([folder]) if path not in kept_out] for folder in folders]
        shares = shares or (1.0,) * len(folders)
        self.weights = [*((1 - drawn) * share / sum(shares) for share in shares), drawn]

    def draw(self, n: int, side: int, generator: Generator) -> Tensor:
        """(n, 3, side, side) in [0, 1]: a part or the whole of each image, mirrored, brightened, some of them JPEG."""
        kinds = choose(n, self.weights, torch.empty(0), generator).tolist()
        x = torch.stack([self._crop(kind, side, generator) for kind in kinds])
        return jpeg_some(x, 0.4, generator)

    def _crop(self, kind: int, side: int, generator: Generator) -> Tensor:
        is_drawn = kind == len(self.paths)
        image = draw_picture(generator) if is_drawn else read(self.paths[kind], generator)
        crop = random_square(image, generator)
        x = resize(crop[None].float() / 255, side, generator)[0]
        flip, brighten, gain, shift, mix = numbers(5, generator)
        x = x.flip(-1) if flip < 0.5 else x
        x = (x * (0.6 + 0.8 * gain) + 0.2 * (shift - 0.5)).clamp(0, 1) if brighten < 0.3 else x
        return x[torch.randperm(3, generator=generator)] if is_drawn and mix < 0.5 else x


def crops_of(config: PhotoTrainingConfig) -> PhotoCrops:
    """The images to learn from that the settings name."""
    measured = held_out(config.data, config.held_out)
    return PhotoCrops(config.data, config.shares, config.drawn, [p for paths in measured.values() for p in paths])


def read(paths: list[Path], generator: Generator) -> Tensor:
    """One of the images, uint8 (3, h, w)."""
    path = paths[whole(0, len(paths), generator)]
    try:
        with Image.open(path) as image:
            return pil_to_tensor(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds on damaged files
        message = f"training images must be readable, got {error} at {path}. Remove it from the data."
        raise OSError(message) from error


def jpeg_some(x: Tensor, share: float, generator: Generator) -> Tensor:
    """A share of the images JPEG-encoded with a quality of 35 to 100."""
    x = x.clone()
    chance, quality = uniform((2, len(x)), 0, 1, x, generator)
    for i in (chance < share).nonzero()[:, 0].tolist():
        buffer = io.BytesIO()
        to_pil_image((x[i] * 255).round().clamp(0, 255).byte()).save(buffer, "JPEG", quality=int(35 + 65 * quality[i]))
        with Image.open(buffer) as image:
            x[i] = pil_to_tensor(image).to(x) / 255
    return x


def finish(x: Tensor, region: Tensor, side: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """What happens to images after a trigger was put on them or not: noised, JPEG-encoded, rounded, as in a file.

    Images larger than ``side`` are shrunk before; smaller ones are enlarged after, as ``shrink`` enlarges them.
    """
    own = x.shape[-1]
    if own > side:
        mode = ("bilinear", "bicubic", "area")[whole(0, 3, generator)]
        options = {} if mode == "area" else {"antialias": True, "align_corners": False}
        x = functional.interpolate(x, (side, side), mode=mode, **options).clamp(0, 1)
    noisy, std = uniform((2, len(x), 1, 1, 1), 0, 1, x, generator)
    std = torch.where(noisy < 0.1, 0.03 * std, 0)
    x = (x + std * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    x = (jpeg_some(x, 0.25, generator) * 255).round() / 255
    if own < side:
        x = functional.interpolate(x, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    if own != side:
        region = functional.interpolate(region.float(), (side, side), mode="area") > 0.4
    return x, region
