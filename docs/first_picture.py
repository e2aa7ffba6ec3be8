"""The first picture of README: photographs with a patch, what was found, and the result.

    python docs/first_picture.py            # draw docs/first.jpg
    python docs/first_picture.py --check    # only say whether it was drawn with other weights

The photographs are scikit-image's ``coffee`` (CC0), ``chelsea`` (CC0) and ``rocket`` (public domain, NASA).
"""

import hashlib
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

import sampdetox_transforms
from sampdetox_transforms import SampDetox

SIDE, OUT = 224, Path(__file__).parent / "first.jpg"
WEIGHTS = Path(sampdetox_transforms.__file__).parent / "networks/weights/restorer/photographs.safetensors"


def photograph(name: str) -> Tensor:
    """(3, 224, 224) in [0, 1], the middle of a picture."""
    picture = Image.fromarray(getattr(data, name)())
    square = center_crop(picture, min(picture.size)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return pil_to_tensor(square) / 255


def planted() -> dict[str, Tensor]:
    """A white square, a checkerboard and a yellow disc, each on one of the photographs."""
    images = {name: photograph(name) for name in ("coffee", "chelsea", "rocket")}
    images["coffee"][:, 184:212, 184:212] = 1
    cells = torch.arange(28) // 7
    images["chelsea"][:, 20:48, 22:50] = ((cells[:, None] + cells) % 2).float()
    y, x = np.mgrid[:SIDE, :SIDE]
    disc = torch.from_numpy((y - 40) ** 2 + (x - 182) ** 2 <= 15**2)
    images["rocket"] = torch.where(disc, torch.tensor([1.0, 0.85, 0.0])[:, None, None], images["rocket"])
    return images


def main() -> None:
    detox = SampDetox("bundled", seed=0, dtype=torch.float32)
    figure, axes = plt.subplots(3, 3, figsize=(7.2, 7.5), layout="constrained")
    for row, image in zip(axes, planted().values(), strict=True):
        details = detox.explain(image)
        mask = details.found.mask[0].numpy()
        p_value = float(details.found.p_value)
        for axis, picture in zip(row, (image, image, details.image), strict=True):
            axis.imshow(picture.movedim(0, -1).clamp(0, 1))
            axis.set(xticks=[], yticks=[])
        row[1].imshow(np.dstack([np.full_like(mask, c, float) for c in (1, 0.1, 0.1)] + [0.65 * mask]))
        row[1].set_xlabel(f"{mask.mean():.1%} of the pixels, p-value {p_value:.3f}", fontsize=9)
    for axis, title in zip(axes[0], ("triggered", "found", "cleaned"), strict=True):
        axis.set_title(title)
    figure.savefig(OUT, dpi=100, pil_kwargs={"quality": 88, "comment": digest().encode()})


def digest() -> str:
    """Which weights the picture is drawn with."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    if "--check" in sys.argv:
        with Image.open(OUT) as picture:
            sys.exit(picture.info.get("comment") != digest().encode() and "run python docs/first_picture.py")
    main()
