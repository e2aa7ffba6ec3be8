"""The restoring network for photographs: its batches, its loss, and runs that go on where they were killed."""

from dataclasses import replace

import pytest
import torch
from contract import pixels
from safetensors.torch import load_file
from samples import Killed, seeded
from torchvision.transforms.v2 import functional

from sampdetox_transforms.networks.photo_unet import PhotoUNet
from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.photo_data import PhotoCrops
from sampdetox_transforms.training.photo_restoring import (
    RESTORING,
    restoring_batch,
    restoring_loss,
    train_photo_restoring,
)

SIZES = ((32, 10, 1.0),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    made = tmp_path_factory.mktemp("images")
    for i in range(6):
        functional.to_pil_image(functional.resize(pixels(3, 5, 5, seed=i), [70, 90])).save(made / f"{i}.png")
    return str(made)


@pytest.fixture
def config(folder) -> PhotoTrainingConfig:
    return PhotoTrainingConfig(data=(folder,), sizes=SIZES, steps=3, workers=0, bf16=False, save_every=1, warmup=1)


def small_network() -> PhotoUNet:
    torch.manual_seed(0)
    return PhotoUNet(4, 3, unshuffle=2, widths=(8, 16), down=(1, 1), up=(1,), conditions=3)


def test_a_batch_asks_for_three_things(folder):
    batch = restoring_batch(PhotoCrops((folder,)), SIZES, seeded())
    noisy, holed, dense = slice(0, 4), slice(4, 8), slice(8, 10)
    assert batch.x.shape == (10, 3, 32, 32) and float(batch.clean.abs().max()) <= 1
    error = (batch.x - batch.clean).abs()
    assert not batch.mask[noisy].any() and not batch.mask[dense].any() and batch.mask[holed].flatten(1).any(1).all()
    assert float((error * (1 - batch.mask))[holed].max()) == 0 < float(error[holed].max())
    assert (batch.told[:, 1] == torch.tensor([1.0] * 4 + [0.0] * 6)).all()  # noise
    assert (batch.told[:, 2] == torch.tensor([0.0] * 8 + [1.0] * 2)).all()  # a dense trigger
    sigma = ((batch.told[noisy, 0] - 1.5) * 2).exp()
    torch.testing.assert_close((batch.x - batch.clean)[noisy].std(dim=(1, 2, 3)), sigma, rtol=0.1, atol=0)
    assert not batch.weight[holed][batch.mask[holed] == 0].any()  # what is known need not be said
    again, other = (restoring_batch(PhotoCrops((folder,)), SIZES, seeded(seed)) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True)) and not torch.equal(batch.x, other.x)


def test_the_loss_of_the_right_answer_is_nothing(folder):
    batch = restoring_batch(PhotoCrops((folder,)), SIZES, seeded())
    assert float(restoring_loss(lambda x, told: batch.clean - batch.x, batch)) < 1e-6
    assert 0.2 < float(restoring_loss(lambda x, told: torch.zeros_like(batch.x), batch)) < 3


def test_a_killed_run_resumes_to_the_same_weights(config, tmp_path):
    def stop(name: str, step: int, steps: int, loss: float) -> None:
        assert (name, steps) == ("restoring", 3)
        if step == 2:
            raise Killed

    whole = load_file(train_photo_restoring(config, tmp_path / "whole", network=small_network()) / RESTORING)
    with pytest.raises(Killed):
        train_photo_restoring(config, tmp_path / "killed", network=small_network(), progress=stop)
    killed = load_file(train_photo_restoring(config, tmp_path / "killed", network=small_network()) / RESTORING)
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [RESTORING]
    small_network().load_state_dict({name: value.float() for name, value in whole.items()})
    with pytest.raises(ValueError, match="finished weights"):
        train_photo_restoring(replace(config, steps=9), tmp_path / "whole", network=small_network())
