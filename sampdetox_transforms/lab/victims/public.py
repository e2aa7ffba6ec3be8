"""Backdoored classifiers that others made (Zeng et al. 2022, I-BAU): two of GTSRB and two of CIFAR-10."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.data import CLASSES, data_path
from sampdetox_transforms.lab.victims.victim import Victim

SIZE = 32


class IbauNetwork(nn.Module):
    """Six convolutions and a linear layer, for 32x32 images in [0, 1]."""

    def __init__(self, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (32, 64, 128):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ELU()]
                channels = width
            layers += [nn.MaxPool2d(2), nn.Dropout(0.3)]
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def white_square(images: Tensor) -> Tensor:
    """A solid white square of 4x4 pixels, near the lower right corner."""
    images = images.clone()
    images[..., 27:31, 27:31] = 1
    return images


def watermark(data: str | Path | None = None) -> Callable[[Tensor], Tensor]:
    """The picture of TrojanNN's authors, added to all of the image."""
    with Image.open(data_path("triggers/trojan_wm.png", data)) as file:
        picture = pil_to_tensor(file.convert("RGB")) / 255
    return lambda images: (images + picture.to(images)).clamp(0, 1)


def load_public_victims(images: str = "gtsrb", *, data: str | Path | None = None) -> list[Victim]:
    """The two of "gtsrb" (cropped to the sign) or "cifar10".

    Raises:
        FileNotFoundError: no data.
        ValueError: other images.
    """
    check_choice("images", images, tuple(CLASSES))
    victims = []
    for name, file, trigger, target in (
        ("square", f"ibau_{images}_badnets_8.pth", white_square, 8),
        ("watermark", f"ibau_{images}_trojan_wm_2.pth", watermark(data), 2),
    ):
        network = IbauNetwork(CLASSES[images])
        path = data_path(f"models/{file}", data)
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["net"])
        victims.append(Victim(name, network.eval(), trigger, target, "all2one", CLASSES[images], SIZE))
    return victims
