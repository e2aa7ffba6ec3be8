"""
Clean what a loader reads
=========================

Two ways: among the transforms of a data set, or behind the loader, in whole batches.
"""

# %%
# **Among the transforms**, a line more. Images must be in [0, 1], so it stands before ``Normalize``.

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from sampdetox_transforms import DetoxLoader, SampDetox

detox = SampDetox("bundled", seed=0)
transform = v2.Compose(
    [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        detox,
        v2.Normalize([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    ]
)
dataset = FakeData(size=8, image_size=(3, 32, 32), num_classes=10, transform=transform)
images, labels = next(iter(DataLoader(dataset, batch_size=8)))
print(tuple(images.shape), images.dtype, labels.tolist())

# %%
# **Behind the loader**: the workers read, and whole batches are purified where the network is, on a card if there is
# one (``device="cuda"``). This is the faster way; :doc:`/speed` has numbers.

from sampdetox_transforms.lab.demo.signs import draw_signs

signs, labels = draw_signs(64, seed=0)
loader = DetoxLoader(DataLoader(TensorDataset(signs, labels), batch_size=32), detox)
for images, classes in loader:
    print(tuple(images.shape), float(images.min()) >= 0, float(images.max()) <= 1, len(classes))
assert len(loader) == 2

# %%
# With a seed an image's result depends on the seed and the image alone, so both ways give the same pictures.

together = detox(signs[:4])
one = detox(signs[2])
print(f"largest difference between alone and in a batch: {float((together[2] - one).abs().max()):.4f}")

figure, axes = plt.subplots(2, 8, figsize=(9, 2.6), layout="constrained")
for column, (sign, cleaned) in enumerate(zip(signs[32:40], images[:8], strict=True)):
    axes[0, column].imshow(sign.movedim(0, -1))
    axes[1, column].imshow(cleaned.movedim(0, -1))
plt.setp(axes, xticks=[], yticks=[])
axes[0, 0].set_ylabel("read")
axes[1, 0].set_ylabel("purified")
plt.show()
