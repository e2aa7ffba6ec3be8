"""SampDetox in the transforms of a timm model.

python examples/with_timm.py
"""

import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

from sampdetox_transforms import SampDetox


def transform_of(model, detox: SampDetox):
    """The model's own transforms, with the purification between cropping and normalising: images in [0, 1]."""
    transform = create_transform(**resolve_data_config(model=model))
    transform.transforms.insert(-1, detox)
    return transform


if __name__ == "__main__":
    model = timm.create_model("resnet18", num_classes=10).eval()  # pretrained=True downloads its weights
    transform = transform_of(model, SampDetox("bundled", seed=0))
    with torch.no_grad():
        print(model(transform(Image.new("RGB", (320, 240), "gray"))[None]).shape)
