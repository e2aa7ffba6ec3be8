"""The search network for photographs: its images, its batches, its loss, and runs that go on where they were killed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contract import pixels
from safetensors.torch import load_file
from samples import Killed, seeded
from torch import nn
from torchvision.transforms.v2 import functional

from sampdetox_transforms.method.search import shrink
from sampdetox_transforms.networks.photo_unet import PhotoUNet
from sampdetox_transforms.networks.photographs import Photographs
from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.data import random_square
from sampdetox_transforms.training.photo_data import (
    PhotoCrops,
    finish,
    jpeg_some,
)
from sampdetox_transforms.training.photo_search import WEIGHTS, photo_batch, search_loss, train_photo_search
from sampdetox_transforms.training.state import STATE

SIZES = ((32, 10, 1.0),)


def small_network() -> PhotoUNet:
    torch.manual_seed(0)
    return PhotoUNet(3, 1, unshuffle=2, widths=(8, 16), down=(1, 1), up=(1,), image_logit=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    """A folder of smooth red pictures and one of blue ones, of several sizes."""
    made = []
    for k, name in enumerate(("red", "blue")):
        folder = tmp_path_factory.mktemp(name)
        for i in range(6):
            image = functional.resize(pixels(3, 3, 3, seed=i), [40 + 9 * i, 130 - 12 * i]).clamp(0, 1) * 0.4
            image[2 * k] += 0.6
            functional.to_pil_image(image).save(folder / f"{i}.png")
        made.append(str(folder))
    return made[0], made[1]


@pytest.fixture
def config(folders) -> PhotoTrainingConfig:
    return PhotoTrainingConfig(
        data=folders, sizes=SIZES, steps=4, workers=0, bf16=False, save_every=1, drawn=0.2, warmup=1
    )


@pytest.fixture
def crops(folders) -> PhotoCrops:
    return PhotoCrops(folders, drawn=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": (1.0,)}, "one number for each of 2 folders, got 1"),
        ({"drawn": 1.0}, r"drawn must be in \[0, 1\), got 1.0"),
        ({"sizes": ()}, "sizes must hold"),
        ({"sizes": ((64, 4, 1.0),)}, "5 images or more"),
        ({"steps": 0}, "steps must be 1 or more"),
    ],
)
def test_setting_that_makes_no_sense_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


# Images


def test_folders_are_drawn_from_with_their_shares(folders):
    def share_of_red(*shares: float) -> float:
        x = PhotoCrops(folders, shares).draw(60, 16, seeded())
        return float((x[:, 0].mean(dim=(1, 2)) > x[:, 2].mean(dim=(1, 2))).float().mean())

    assert share_of_red(1, 0) == 1 and share_of_red(0, 1) == 0
    assert 0.6 < share_of_red(3, 1) < 0.9 and 0.3 < share_of_red() < 0.7


def test_crops_are_images_of_the_size_and_the_generator_decides(crops):
    first, again, other = (crops.draw(6, 48, seeded(seed)) for seed in (1, 1, 2))
    assert first.shape == (6, 3, 48, 48) and float(first.min()) >= 0 and float(first.max()) <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(torch.unique(first, dim=0)) == 6


def test_squares_are_96_pixels_up_to_the_shorter_side():
    image = torch.arange(150 * 300).reshape(1, 150, 300).expand(3, -1, -1)
    sides, corners = set(), set()
    for seed in range(60):
        square = random_square(image, seeded(seed))
        assert square.shape[1] == square.shape[2]
        sides.add(square.shape[1])
        corners.add(int(square[0, 0, 0]))
    assert min(sides) in range(96, 102) and max(sides) == 150 and len(sides) > 10 and len(corners) > 20
    assert 32 <= random_square(image[:, :40], seeded()).shape[1] <= 40


def test_jpeg_changes_a_share_of_the_images_a_little():
    x = pixels(200, 3, 16, 16)
    before = x.clone()
    encoded = jpeg_some(x, 0.4, seeded())
    assert torch.equal(x, before)
    changed = (encoded != x).flatten(1).any(dim=1)
    assert 0.25 < changed.float().mean() < 0.55
    assert 0 < float((encoded - x)[changed].abs().mean()) < 0.2
    assert torch.equal(jpeg_some(x, 0.0, seeded()), x)


def test_finishing_resizes_image_and_region_alike():
    x, region = torch.zeros(8, 3, 64, 64), torch.zeros(8, 1, 64, 64, dtype=torch.bool)
    x[..., 16:32, 8:24], region[..., 16:32, 8:24] = 1, True
    image, marked = finish(x, region, 32, seeded())
    assert image.shape == (8, 3, 32, 32) and marked.dtype == torch.bool
    assert marked[..., 8:16, 4:12].all() and int(marked.sum()) == 8 * 64
    assert float(image[..., 9:15, 5:11].mean()) > 0.9 and float(image[..., 20:, 20:].mean()) < 0.1
    assert torch.equal((image * 255).round() / 255, image)


def test_images_that_are_smaller_than_the_batch_are_finished_and_then_enlarged_as_the_look_does():
    networks = Photographs()
    networks.least = 80
    x, region = pixels(8, 3, 32, 32, seed=3), torch.zeros(8, 1, 32, 32, dtype=torch.bool)
    region[..., 8:16, 4:12] = True
    image, marked = finish(x, region, 80, seeded())
    own, same = finish(x, region, 32, seeded())
    assert torch.equal(region, same) and torch.equal((own * 255).round() / 255, own)
    torch.testing.assert_close(image * 2 - 1, shrink(own * 2 - 1, networks), atol=1e-5, rtol=0)
    assert marked[..., 20:40, 10:30].all() and int(marked.sum()) == 8 * 400


# Batches, and the loss


def test_a_batch_says_what_it_holds(crops):
    batch = photo_batch(crops, ((40, 15, 1.0),), seeded())
    assert batch.x.shape == (15, 3, 40, 40) and batch.region.shape == batch.unseen.shape == (15, 1, 40, 40)
    assert float(batch.x.abs().max()) <= 1 and batch.is_dense.tolist() == [0] * 14 + [1]
    marked = batch.region.flatten(1).any(dim=1)
    assert not marked[:5].any() and marked[5:14].float().mean() > 0.8 and not marked[14:].any()
    again, other = (photo_batch(crops, ((40, 15, 1.0),), seeded(seed)) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True)) and not torch.equal(batch.x, other.x)


def test_batches_have_the_sizes_that_the_settings_name(crops):
    sides = {photo_batch(crops, ((24, 5, 0.5), (32, 6, 0.5)), seeded(seed)).x.shape[::3] for seed in range(12)}
    assert sides == {(5, 24), (6, 32)}


def test_the_loss_of_the_right_answer_is_small(crops):
    batch = photo_batch(crops, ((40, 15, 1.0),), seeded())
    pixels_, images = 40 * batch.region.float() - 20, 40 * batch.is_dense - 20
    assert float(search_loss(lambda x: (pixels_, images), batch)) < 1.5  # a region narrower than a square is averaged
    assert float(search_loss(lambda x: (-pixels_, -images), batch)) > 50


@pytest.mark.parametrize(("side", "border"), [(64, 8), (128, 16)])
def test_half_of_the_batches_are_mirrored_at_their_borders(crops, side, border):
    """Images and what is to be found in them, as the look at an enlarged image mirrors it."""
    mirrored = 0
    for seed in range(10):
        batch = photo_batch(crops, ((side, 5, 1.0),), seeded(seed))
        assert batch.x.shape[-2:] == batch.region.shape[-2:] == batch.unseen.shape[-2:] == (side, side)
        inner = [part[..., border : 2 * border].flip(-1) for part in (batch.x, batch.region, batch.unseen)]
        same = [torch.equal(part[..., :border], own) for part, own in zip(batch[:3], inner, strict=True)]
        assert all(same) or not same[0]
        mirrored += all(same)
    assert 2 <= mirrored <= 8


def test_steps_lower_the_loss_of_a_fixed_batch(crops):
    network, batch = small_network(), photo_batch(crops, SIZES, seeded())
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = search_loss(network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# Runs


def run(config: PhotoTrainingConfig, out: Path, network: nn.Module | None = None, **options) -> dict:
    return load_file(train_photo_search(config, out, network=network or small_network(), **options) / WEIGHTS)


@pytest.mark.parametrize("killed_at", [1, 4])
def test_a_killed_run_resumes_to_the_same_weights(config, tmp_path, killed_at):
    def stop(name: str, step: int, steps: int, loss: float) -> None:
        assert (name, steps) == ("search", 4)
        if step == killed_at:
            raise Killed

    whole = run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", progress=stop)
    seen = []
    killed = run(config, tmp_path / "killed", progress=lambda name, step, *_: seen.append(step))
    assert seen == list(range(killed_at, 5))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [WEIGHTS]
    assert all(value.dtype == torch.float16 for value in whole.values())
    small_network().load_state_dict({name: value.float() for name, value in whole.items()})


def test_a_finished_folder_and_other_settings_are_refused(config, tmp_path):
    run(replace(config, steps=1), tmp_path / "out")
    with pytest.raises(ValueError, match="finished weights"):
        run(config, tmp_path / "out")
    (tmp_path / "out" / WEIGHTS).unlink()

    def stop(*args) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(replace(config, save_every=1), tmp_path / "out", progress=stop)
    assert not (tmp_path / "out" / STATE).exists()  # killed before its first state
    with pytest.raises(Killed):
        run(replace(config, save_every=1), tmp_path / "out", progress=lambda n, step, *_: stop() if step == 2 else None)
    with pytest.raises(ValueError, match="resumed only with the settings"):
        run(replace(config, drawn=0.0), tmp_path / "out")
