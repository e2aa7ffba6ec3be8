"""What the runs of both networks for photographs share."""

from typing import NamedTuple

import pytest
import torch
from contract import pixels
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional

from sampdetox_transforms.networks.photo_unet import PhotoUNet
from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.photo_run import train_photo_network


class Batch(NamedTuple):
    x: torch.Tensor


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_the_seed_draws_the_first_weights(tmp_path, seed, same):
    functional.to_pil_image(pixels(3, 40, 40)).save(tmp_path / "image.png")

    def weights(out: str, seed: int) -> torch.Tensor:
        config = PhotoTrainingConfig(
            data=(str(tmp_path),), steps=1, warmup=0, learning_rate=1e-9, ema=0, workers=0, bf16=False, seed=seed
        )
        parts = {
            "make": lambda: PhotoUNet(3, 1, widths=(8, 8), down=(1, 1), up=(1,)),
            "batch": lambda crops, sizes, generator: Batch(crops.draw(1, 16, generator)),
            "loss": lambda network, batch: network(batch.x).square().mean(),
        }
        made = train_photo_network("any", config, tmp_path / out, device="cpu", progress=lambda *args: None, **parts)
        return load_file(made / "any.safetensors")["stem.weight"]

    torch.rand(7)  # whatever was drawn before
    first = weights("first", 0)
    torch.rand(3)
    assert torch.equal(first, weights("second", seed)) is same
