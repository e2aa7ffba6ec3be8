"""Free photographs (``pictures/SOURCES.txt`` names source and licence of each), and triggers to plant in them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from sampdetox_transforms.lab.attacks.blended import blended
from sampdetox_transforms.lab.attacks.sig import sig
from sampdetox_transforms.lab.evaluation.planted import (
    Planted,
    PlantedTrigger,
    checkerboard,
    everywhere,
    flower,
    noise,
    solid,
    somewhere,
)

FOLDER = Path(__file__).parent / "pictures"
NAMES = ("coffee", "chelsea", "rocket", "brick")
BLENDED = "hubble"


@cache
def photograph(name: str) -> Float[Tensor, "3 256 256"]:
    """One of ``NAMES``, or ``BLENDED``, in [0, 1]."""
    with Image.open(FOLDER / f"{name}.jpg") as picture:
        return pil_to_tensor(picture.convert("RGB")).float() / 255


def photographs() -> Float[Tensor, "n 3 256 256"]:
    """All of ``NAMES``."""
    return torch.stack([photograph(name) for name in NAMES])


def demo_triggers() -> Mapping[str, PlantedTrigger]:
    """By name, for images in [0, 1] of any size: patches at random places of 2 to 5 % of the image, then what covers
    all of it."""
    return {
        "none": PlantedTrigger(lambda images, generator: Planted(images, None)),
        "white square": PlantedTrigger(somewhere(solid(1.0, 1.0, 1.0))),
        "checkerboard": PlantedTrigger(somewhere(checkerboard)),
        "noise square": PlantedTrigger(somewhere(noise)),
        "sticker": PlantedTrigger(somewhere(flower)),
        "sinusoid": PlantedTrigger(everywhere(sig)),
        "blend": PlantedTrigger(everywhere(lambda images: blended(images, photograph(BLENDED), alpha=0.15))),
    }
