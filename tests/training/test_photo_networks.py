"""Both networks for photographs and their thresholds, from one folder of images to one that the default reads."""

import json
from dataclasses import replace

import pytest
import torch
from contract import pixels
from samples import Killed
from torchvision.transforms.v2 import functional

from sampdetox_transforms.networks.photographs import PHOTOGRAPHS, Photographs, load_photographs
from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.data import held_out
from sampdetox_transforms.training.photo_data import crops_of
from sampdetox_transforms.training.photo_networks import (
    SETTINGS,
    is_finished,
    measure,
    squares,
    train_photographs,
    usual_side,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    made = tmp_path_factory.mktemp("images")
    for i in range(40):
        functional.to_pil_image(functional.resize(pixels(3, 4, 4, seed=i), [64 + i % 5, 70])).save(made / f"{i:02}.png")
    return str(made)


@pytest.fixture
def config(folder) -> PhotoTrainingConfig:
    rates = {"held_out": 0.5, "false_alarm_rate": 0.2}
    return PhotoTrainingConfig(
        data=(folder,), sizes=((32, 6, 1.0),), steps=1, workers=0, bf16=False, save_every=1, drawn=0, **rates
    )


def test_a_killed_run_ends_as_a_whole_one(config, tmp_path):
    def stop(name: str, step: int, total: int, loss: float) -> None:
        assert total == 2
        if name == "restoring":
            raise Killed

    steps = []
    made = train_photographs(config, tmp_path / "whole", progress=lambda *args: steps.append(args[:3]))
    assert steps == [("search", 1, 2), ("restoring", 2, 2)]
    with pytest.raises(Killed):
        train_photographs(config, tmp_path / "killed", progress=stop)
    train_photographs(config, tmp_path / "killed")
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "killed")]
    assert files[0] == files[1] and len(files[0]) == 3
    networks, calibrations = load_photographs(made)
    calibration = calibrations.medium
    assert isinstance(networks, Photographs) and calibration is not None and calibrations.large == calibration
    assert calibration.images == 20 and calibration.false_alarm_rate == 0.2
    assert networks.look(pixels(1, 3, 64, 64)).local.shape == (1, 1, 64, 64)
    assert train_photographs(config, made, progress=stop) == made  # finished: nothing is done
    assert PHOTOGRAPHS in files[0] and is_finished(made) and not is_finished(tmp_path)
    assert json.loads(files[0][SETTINGS])["training"]["steps"] == 1


def test_what_is_measured_is_not_learnt_from(config, folder):
    measured = held_out(config.data, config.held_out)[folder]
    learnt = crops_of(config).paths[0]
    assert len(measured) == len(learnt) == 20 and not set(measured) & set(learnt)


def test_too_few_images_are_refused_before_any_work(config, tmp_path):
    with pytest.raises(ValueError, match="to hold out 25"):
        train_photographs(replace(config, false_alarm_rate=0.04), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_are_measured_at_their_usual_size(folder, config):
    paths = held_out(config.data, 0.5)[folder]
    assert 64 <= usual_side(paths) <= 68
    found = torch.cat(list(squares(paths, 66, "cpu")))
    assert found.shape == (20, 3, 66, 66) and float(found.abs().max()) <= 1


def test_images_that_are_enlarged_have_thresholds_of_their_own(folder, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    for made, side in ((small, 80), (large, 200)):
        made.mkdir()
        for i in range(20):
            functional.to_pil_image(functional.resize(pixels(3, 4, 4, seed=i), [side, side])).save(made / f"{i}.png")
    folders = {str(made): sorted(made.iterdir()) for made in (small, large)}
    found = measure(Photographs().eval(), folders, 0.2, "cpu")
    assert (
        found.small is None and found.large.data == "20 images of large" and found.medium.data == "20 images of small"
    )
