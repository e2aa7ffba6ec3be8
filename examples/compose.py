"""SampDetox in a data set's transforms, then in a DataLoader: two lines more than without it.

python examples/compose.py
"""

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from sampdetox_transforms import SampDetox

transform = v2.Compose(
    [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        SampDetox("bundled"),  # images in [0, 1]: before Normalize
        v2.Normalize([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    ]
)

if __name__ == "__main__":
    data = FakeData(size=4, image_size=(3, 32, 32), num_classes=10, transform=transform)
    for images, labels in DataLoader(data, batch_size=2):
        print(tuple(images.shape), images.dtype, labels.tolist())
