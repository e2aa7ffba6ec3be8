"""What the measuring scripts share: test images, public backdoored classifiers and their triggers.

All come from the folder in the environment variable SAMPDETOX_DATA; docs/data.md says what lies in it.
"""

import csv
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from sampdetox_transforms.lab.environment import describe, in_words

CLASSES = {"gtsrb": 43, "cifar10": 10}


@dataclass(frozen=True)
class Victim:
    """A backdoored classifier of images in [0, 1], its trigger, and the class that the trigger leads to."""

    name: str
    model: nn.Module
    trigger: Callable[[Tensor], Tensor]
    target_label: int


def data_folder() -> Path:
    """The folder with the data sets; stops with the remedy where it is not there."""
    folder = os.environ.get("SAMPDETOX_DATA", "")
    if not (Path(folder) / "models").is_dir() or not folder:
        sys.exit("SAMPDETOX_DATA must name the folder with gtsrb32/ and models/, got none. See docs/data.md.")
    return Path(folder)


def load_gtsrb(split: str, n: int, seed: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """``n`` images of a split, drawn with ``seed``, cropped to the sign's box and resized back: [0, 1], and labels."""
    root = data_folder() / "gtsrb32"
    with (root / f"{split}_roi.csv").open() as file:
        rows = list(csv.DictReader(file))
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    images = []
    for i in chosen:
        box = [round(float(rows[i][key])) for key in ("x1", "y1", "x2", "y2")]
        with Image.open(root / rows[i]["path"]) as image:
            images.append(functional.pil_to_tensor(image.convert("RGB").crop(box).resize((size, size), Image.BILINEAR)))
    return torch.stack(images).float() / 255, torch.tensor([int(rows[i]["label"]) for i in chosen])


def ibau_network(classes: int) -> nn.Module:
    """The classifier of Zeng et al. 2022 (I-BAU): six convolutions and a linear layer, for 32x32 images."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ELU()]
            channels = width
        layers += [nn.MaxPool2d(2), nn.Dropout(0.3)]
    network = nn.Module()
    network.features, network.classifier = nn.Sequential(*layers), nn.Linear(2048, classes)
    network.forward = lambda x: network.classifier(network.features(x).flatten(1))
    return network


def load_victims(data: str = "gtsrb") -> list[Victim]:
    """The two public classifiers of "gtsrb" or "cifar10": a solid 4x4 white square, and an added watermark."""
    folder = data_folder()
    watermark = functional.pil_to_tensor(Image.open(folder / "triggers" / "trojan_wm.png").convert("RGB")) / 255

    def square(images: Tensor) -> Tensor:
        images = images.clone()
        images[..., 27:31, 27:31] = 1
        return images

    def add_watermark(images: Tensor) -> Tensor:
        return (images + watermark).clamp(0, 1)

    victims = []
    for name, file, trigger, target in (
        ("square", f"ibau_{data}_badnets_8.pth", square, 8),
        ("watermark", f"ibau_{data}_trojan_wm_2.pth", add_watermark, 2),
    ):
        network = ibau_network(CLASSES[data])
        state = torch.load(folder / "models" / file, map_location="cpu", weights_only=True)["net"]
        network.load_state_dict(state)
        victims.append(Victim(name, network.eval(), trigger, target))
    return victims


def command_line() -> str:
    """The command that is running, with the data folder written as $SAMPDETOX_DATA."""
    return shlex.join(["python", *sys.argv]).replace(str(data_folder()), "$SAMPDETOX_DATA")


def hardware() -> str:
    """Processor, threads in use and versions, for the line under a table."""
    return in_words(describe())
