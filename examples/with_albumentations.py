"""SampDetox in a pipeline of albumentations: NumPy arrays (h, w, c), uint8, in and out.

python examples/with_albumentations.py
"""

import albumentations as A
import numpy as np

from sampdetox_transforms import SampDetox
from sampdetox_transforms.integrations.albumentations import Purify


def pipeline(detox: SampDetox, size: int = 32) -> A.Compose:
    """Purify, then what a classifier's training does with a picture."""
    return A.Compose([Purify(detox), A.HorizontalFlip(p=0.5), A.Resize(size, size), A.Normalize()])


if __name__ == "__main__":
    picture = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    print(pipeline(SampDetox("bundled", seed=0))(image=picture)["image"].shape)
