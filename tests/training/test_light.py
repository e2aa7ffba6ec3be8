"""Training of the light stage's denoiser: its batches, its loss, and a run."""

import pytest
import torch
from contract import pixels
from safetensors.torch import load_file
from samples import seeded
from torchvision.transforms.v2 import functional

from sampdetox_transforms.networks.light import SIGMAS, Light
from sampdetox_transforms.networks.photo_unet import PhotoUNet
from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.light import WEIGHTS, light_batch, light_loss, train_light
from sampdetox_transforms.training.photo_data import PhotoCrops


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    made = tmp_path_factory.mktemp("images")
    for i in range(24):
        functional.to_pil_image(functional.resize(pixels(3, 4, 4, seed=i), [32, 32])).save(made / f"{i:02}.png")
    return str(made)


def test_batches_hold_images_and_their_noise(folder):
    batch = light_batch(PhotoCrops((folder,)), ((32, 40, 1.0),), seeded())
    assert batch.x.shape == batch.clean.shape == (40, 3, 32, 32) and batch.clean.abs().max() <= 1
    assert SIGMAS[0] <= batch.sigma.min() < 2 * SIGMAS[0] and SIGMAS[1] / 2 < batch.sigma.max() <= SIGMAS[1]
    noise = ((batch.x - batch.clean) / batch.sigma[:, None, None, None]).flatten(1)
    assert ((noise.std(dim=1) - 1).abs() < 0.06).all() and noise.mean().abs() < 0.02


def test_the_loss_is_one_for_doing_nothing_and_nothing_for_the_right_answer(folder):
    batch = light_batch(PhotoCrops((folder,)), ((32, 20, 1.0),), seeded())
    assert light_loss(lambda x, told: torch.zeros_like(x[:, :3]), batch) == pytest.approx(1, abs=0.03)
    assert light_loss(lambda x, told: batch.clean - batch.x, batch) < 1e-9


def test_a_run_gives_a_file_that_the_network_reads(folder, tmp_path):
    config = PhotoTrainingConfig(
        data=(folder,), sizes=((16, 5, 1.0),), steps=2, workers=0, bf16=False, drawn=0, held_out=0.2, warmup=0
    )
    steps = []
    network = PhotoUNet(4, 3, unshuffle=2, widths=(8, 16), down=(1, 1), up=(1,), conditions=3)
    out = train_light(config, tmp_path / "out", network=network, progress=lambda *args: steps.append(args[:3]))
    assert steps == [("light", 1, 2), ("light", 2, 2)]
    state = load_file(out / WEIGHTS)
    assert state.keys() == network.state_dict().keys()
    network.load_state_dict({name: value.float() for name, value in state.items()})
    assert Light(network).restored(torch.zeros(1, 3, 16, 16), torch.tensor([0.05])).shape == (1, 3, 16, 16)
