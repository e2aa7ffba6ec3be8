"""The classifiers that victims are: the paper's PreAct-ResNet18, ResNet-34 and VGG-19, and others.

Those named "narrow" have a quarter of the width, a sixteenth of the work, and train on a processor core in minutes.

All take images (b, c, h, w) in [0, 1], put them into [-1, 1] themselves, and return logits (b, num_classes).
"""

from collections.abc import Callable

import torch
import torchvision.models
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import VGG, cfgs, make_layers

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.victims.efficientnet import load_lite_classifier


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalisation and ReLU, beside a shortcut (He et al. 2016, figure 4e)."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        fits = stride == 1 and channels == width
        self.shortcut = None if fits else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        out = functional.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        return self.conv2(functional.relu(self.norm2(out))) + shortcut


class PreActResNet18(nn.Module):
    """PreAct-ResNet18 for small images, after kuangliu/pytorch-cifar, which BackdoorBench and the paper use.

    ``width`` 64 is theirs.
    """

    def __init__(self, num_classes: int, width: int = 64, channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        blocks, now = [], width
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(PreActBlock(now, width * 2**stage, stride))
                now = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(now, num_classes)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.linear(self.blocks(self.conv(images * 2 - 1)).mean(dim=(2, 3)))


class Centred(nn.Module):
    """A network of torchvision's, for images in [0, 1]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.network(images * 2 - 1)


def _resnet34(num_classes: int, channels: int, width: int = 64) -> nn.Module:
    network = torchvision.models.resnet34(num_classes=num_classes)
    # As everyone does for images of 32 pixels: no stride before the first block, which would leave 8 of them.
    network.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    if width != 64:
        network.bn1, network.inplanes = nn.BatchNorm2d(width), width
        for stage, blocks in enumerate((3, 4, 6, 3)):
            layer = network._make_layer(BasicBlock, width * 2**stage, blocks, stride=1 if stage == 0 else 2)
            setattr(network, f"layer{stage + 1}", layer)
        network.fc = nn.Linear(8 * width, num_classes)
    return Centred(network)


def _vgg19(num_classes: int, channels: int, width: int = 64) -> nn.Module:
    layers: list[str | int] = [layer if layer == "M" else int(layer) * width // 64 for layer in cfgs["E"]]
    first = nn.Conv2d(channels, width, 3, padding=1)
    network = VGG(nn.Sequential(first, *make_layers(layers, batch_norm=True)[1:]), num_classes=num_classes)
    # One linear layer on the mean: torchvision's three have 120 million parameters, for 7x7 places.
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(8 * width, num_classes)  # pyright: ignore[reportAttributeAccessIssue]
    return Centred(network)


def _resnet50(num_classes: int, channels: int) -> nn.Module:
    """Torchvision's, for photographs of 224 pixels: what the cost of a defense is compared with there."""
    network = torchvision.models.resnet50(num_classes=num_classes)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
    return Centred(network)


def _efficientnet_lite0(num_classes: int, channels: int) -> nn.Module:
    """With its public weights, for image folders too small to learn from alone; images keep their size."""
    if channels != 3:
        raise ValueError(
            f"channels must be 3 for efficientnet-lite0, whose weights are given, got {channels}. Use images in colour."
        )
    return load_lite_classifier(num_classes, side=None)


CLASSIFIERS: dict[str, Callable[[int, int], nn.Module]] = {
    "efficientnet-lite0": _efficientnet_lite0,
    "preact-resnet18": lambda num_classes, channels: PreActResNet18(num_classes, 64, channels),
    "preact-resnet18-narrow": lambda num_classes, channels: PreActResNet18(num_classes, 16, channels),
    "resnet34": _resnet34,
    "resnet34-narrow": lambda num_classes, channels: _resnet34(num_classes, channels, 16),
    "resnet50": _resnet50,
    "vgg19": _vgg19,
    "vgg19-narrow": lambda num_classes, channels: _vgg19(num_classes, channels, 16),
}


def build_classifier(name: str, num_classes: int, channels: int = 3) -> nn.Module:
    """A classifier with random weights, drawn from torch's own generator.

    Raises:
        ValueError: an unknown name, fewer than two classes.
    """
    check_choice("classifier", name, tuple(CLASSIFIERS))
    if num_classes < 2:
        raise ValueError(f"num_classes must be 2 or more, got {num_classes}. Has the image folder one class only?")
    return CLASSIFIERS[name](num_classes, channels)


@torch.no_grad()
def predict(model: Callable[[Tensor], Tensor], images: Float[Tensor, "n c h w"], batch_size: int = 256) -> Tensor:
    """Logits of all images in batches, on the device of the images, without gradients: (n, k)."""
    return torch.cat([model(chunk).float() for chunk in images.split(batch_size)])
