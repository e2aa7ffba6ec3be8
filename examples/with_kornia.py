"""SampDetox in a sequence of kornia's modules: batches of floats in [0, 1] on any device.

python examples/with_kornia.py
"""

import kornia.augmentation as K
import torch
from torch import nn

from sampdetox_transforms import SampDetox


def sequence(detox: SampDetox, size: int = 32) -> nn.Sequential:
    """Purify before normalising; ``.to("cuda")`` moves all of it."""
    mean, std = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.5])
    return nn.Sequential(K.Resize((size, size)), detox, K.Normalize(mean, std))


if __name__ == "__main__":
    print(sequence(SampDetox("bundled", seed=0))(torch.rand(2, 3, 40, 48)).shape)
