"""Images to measure speed and memory on."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import functional

from sampdetox_transforms.lab.demo.signs import draw_signs
from sampdetox_transforms.lab.victims.poisoned import image_folder


def benchmark_images(data: str | None, size: int, n: int) -> Float[Tensor, "n 3 size size"]:
    """At most ``n`` images in [0, 1]: drawn signs, or images of a folder, drawn with seed 0."""
    if data is None:
        return functional.resize(draw_signs(min(n, 64), seed=0)[0], [size, size]).clamp(0, 1)
    dataset = image_folder(data, size)
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:n]
    return torch.stack([dataset[i][0] for i in chosen.tolist()])
