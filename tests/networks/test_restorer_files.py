"""The networks in the package: size, cost, false alarms, patches that they must find and fill; and their files."""

import csv
import json
import os
import shutil
from dataclasses import asdict, fields

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from sampdetox_transforms import SampDetox, WeightsFileError
from sampdetox_transforms.method.calibration import Calibration
from sampdetox_transforms.method.search import hysteresis, local_suspicion
from sampdetox_transforms.networks import restorer_files, safe_files
from sampdetox_transforms.networks.photographs import PHOTOGRAPHS_SHA256
from sampdetox_transforms.networks.restorer import Specialists
from sampdetox_transforms.networks.restorer_files import (
    CALIBRATION,
    RESTORER,
    RESTORER_FOLDER,
    RESTORER_SHA256,
    RULES,
    load_calibration,
    load_restorer,
    save_calibration,
    save_restorer,
)
from sampdetox_transforms.networks.safe_files import verify_sha256


@pytest.fixture(scope="module")
def bundled():
    return load_restorer()


@pytest.fixture(scope="module")
def signs(data) -> torch.Tensor:
    """GTSRB test images, cropped to the sign, in [0, 1]."""
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    with (data / "gtsrb32" / "test_roi.csv").open() as file:
        rows = list(csv.DictReader(file))[::60]
    images = []
    for row in rows:
        box = [round(float(row[key])) for key in ("x1", "y1", "x2", "y2")]
        with Image.open(data / "gtsrb32" / row["path"]) as image:
            images.append(pil_to_tensor(image.convert("RGB").crop(box).resize((32, 32), Image.BILINEAR)))
    return torch.stack(images).float() / 255


def test_it_is_small_cheap_and_the_pinned_file(bundled):
    restorer, calibration = bundled
    pinned = RESTORER_SHA256 | PHOTOGRAPHS_SHA256
    assert sorted(pinned) == sorted(path.name for path in RESTORER_FOLDER.iterdir())
    for name, sha256 in pinned.items():
        verify_sha256(RESTORER_FOLDER / name, sha256)
    assert (RESTORER_FOLDER / RESTORER).stat().st_size <= 14e6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        restorer(torch.zeros(1, 3, 32, 32))
    assert 0.3e9 < counter.get_total_flops() < 0.8e9
    assert calibration.images > 1000 and "GTSRB" in calibration.data and "CIFAR-10" in calibration.data


@torch.no_grad()
def test_false_alarms_on_test_images(bundled, signs):
    restorer, calibration = bundled
    answer = restorer(signs * 2 - 1)
    share = calibration.p_value(local_suspicion(answer.local), answer.dense)
    assert (share < calibration.false_alarm_rate).double().mean() <= 0.08  # .05 of 158, and two standard errors


@torch.no_grad()
@pytest.mark.parametrize("value", [1.0, 0.0])
def test_patches_are_found_where_they_are(bundled, signs, value):
    restorer, _ = bundled
    region = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    region[..., 5:10, 20:25] = True
    triggered = torch.where(region, value, signs)
    visible = (triggered - signs).abs().mean(dim=1)[:, 5:10, 20:25].mean(dim=(1, 2)) > 0.2
    found = hysteresis(restorer(triggered * 2 - 1).local, 0.0, -1.0)[visible]
    assert (found & region).sum() > 0.8 * 25 * len(found)
    assert (found & ~region).sum(dim=(1, 2, 3)).float().median() < 60


@torch.no_grad()
def test_fills_are_close_to_what_was_there(bundled, signs):
    restorer, _ = bundled
    region = torch.zeros(len(signs), 1, 32, 32, dtype=torch.bool)
    region[..., 20:25, 6:11] = True
    x = signs * 2 - 1
    error = (restorer.fill(x, region) - x).abs()[:, :, 20:25, 6:11].mean()
    flat = (x.mean(dim=(2, 3), keepdim=True) - x).abs()[:, :, 20:25, 6:11].mean()
    assert error < 0.6 * flat


def test_large_images_keep_their_size(tiny):
    assert SampDetox(tiny, preset="restore", seed=0)(torch.rand(3, 97, 130)).shape == (3, 97, 130)


# Files

SEVEN = Calibration((-1.0, 0.25), (0.0, 2.0), 0.1, 7, "seven images")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return save_restorer(tmp_path_factory.mktemp("restorer") / "new", Specialists(), SEVEN)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_files_round_trip(tmp_path):
    restorer = Specialists()
    other, found = load_restorer(save_restorer(tmp_path / "new", restorer, SEVEN))
    assert found == SEVEN
    for name, value in restorer.state_dict().items():
        assert torch.equal(other.state_dict()[name], value.half().float())
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_a_file_is_read_once_and_no_two_restorers_share_a_weight(copy, monkeypatch):
    read = []
    monkeypatch.setattr(safe_files, "load_file", lambda path: read.append(path) or load_file(path))
    first, second = load_restorer(copy)[0], load_restorer(copy)[0]
    assert len(read) == 1
    with torch.no_grad():
        for parameter in first.to(torch.bfloat16).parameters():
            parameter.zero_()
    expected = load_file(copy / RESTORER)
    for restorer in (second, load_restorer(copy)[0]):
        assert all(torch.equal(value, expected[name].float()) for name, value in restorer.state_dict().items())
    assert len(read) == 1


def test_a_file_that_changed_is_read_anew(copy):
    load_restorer(copy)
    state = {name: torch.zeros_like(value) for name, value in load_file(copy / RESTORER).items()}
    save_file(state, copy / RESTORER)
    os.utime(copy / RESTORER, ns=(1, 1))
    assert not any(parameter.any() for parameter in load_restorer(copy)[0].parameters())


def test_both_files_of_the_package_are_pinned(tmp_path, monkeypatch):
    copy = shutil.copytree(RESTORER_FOLDER, tmp_path / "restorer")
    content = json.loads((copy / CALIBRATION).read_text())
    content["small"]["false_alarm_rate"] = 0.01
    (copy / CALIBRATION).write_text(json.dumps(content))
    assert load_restorer(copy)[1].false_alarm_rate == 0.01  # nothing but the hash tells
    monkeypatch.setattr(restorer_files, "RESTORER_FOLDER", copy)
    with pytest.raises(WeightsFileError, match=f"{CALIBRATION} must have the sha256 .*Remove it and fetch it anew"):
        load_restorer(copy)
    for name in (RESTORER, CALIBRATION):
        with pytest.raises(WeightsFileError, match=f"{name} must have the sha256 0000"):
            load_restorer(copy, sha256={name: "0" * 64})


@pytest.mark.parametrize("name", [RESTORER, CALIBRATION])
def test_a_missing_or_cut_file_is_named(copy, name):
    (copy / name).write_bytes((copy / name).read_bytes()[:-20])
    with pytest.raises(WeightsFileError, match=f"{name} must be a"):
        load_restorer(copy)
    (copy / name).unlink()
    with pytest.raises(WeightsFileError, match=f"got no {name}. Write both anew"):
        load_restorer(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(copy, value):
    state = load_file(copy / RESTORER)
    state["dense.head.bias"][3] = value
    save_file(state, copy / RESTORER)
    with pytest.raises(
        WeightsFileError, match=r"must be finite numbers, got NaN or infinity in dense\.head\.bias\. Fetch"
    ):
        load_restorer(copy)


def test_weights_of_another_network_are_refused_by_name(copy):
    state = load_file(copy / RESTORER)
    state["local.head.bias"] = torch.zeros(3)
    save_file(state, copy / RESTORER)
    with pytest.raises(
        ValueError, match=r"fit the search networks, got local\.head\.bias of shape \(3,\), not \(16,\)"
    ):
        load_restorer(copy)


def test_rules_name_what_a_calibration_holds():
    assert list(RULES) == [field.name for field in fields(Calibration)]


@pytest.mark.parametrize(
    "changes",
    [
        {"local": [1]},
        {"local": None},
        {"local": [0, [1]]},
        {"local": [1, 0]},
        {"local": [0.0] * 100_001},
        {"dense": ["0", "1"]},
        {"dense": [False, True]},
        {"dense": 3},
        {"false_alarm_rate": 0},
        {"false_alarm_rate": "0.05"},
        {"false_alarm_rate": None},
        {"images": -1},
        {"images": 1e3},
        {"images": True},
        {"data": ["GTSRB"]},
        {"more": 1},
    ],
    ids=str,
)
def test_content_that_is_no_calibration_is_refused(tmp_path, changes):
    path = tmp_path / CALIBRATION
    path.write_text(json.dumps(asdict(SEVEN) | changes))
    (name,) = changes
    with pytest.raises(
        WeightsFileError, match=rf"(?s)({name}.*got|got.*{name}).*(Write it anew|Use calibrate)"
    ) as caught:
        load_calibration(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600


def test_a_calibration_without_one_of_its_numbers_is_refused(tmp_path):
    for name in RULES:
        content = asdict(SEVEN)
        del content[name]
        (tmp_path / CALIBRATION).write_text(json.dumps(content))
        with pytest.raises(WeightsFileError, match=f"{name} must be .*, got none. Write it anew"):
            load_calibration(tmp_path / CALIBRATION)


def test_a_calibration_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / CALIBRATION
    save_calibration(path, SEVEN)
    assert load_calibration(path) == SEVEN and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_calibration(path, SEVEN.at(0.5))
    assert load_calibration(path) == SEVEN and list(tmp_path.iterdir()) == [path]
