"""The network in the package: size, cost, false alarms on test images, and patches that it must find and fill."""

import csv

import pytest
import torch
from contract import IMAGES, check_transform
from torch.utils.flop_counter import FlopCounterMode

from sampdetox_transforms import SampDetox
from sampdetox_transforms.method.restore import fill, locate
from sampdetox_transforms.method.search import local_suspicion
from sampdetox_transforms.networks.checkpoints import verify_sha256
from sampdetox_transforms.networks.restorer_files import RESTORER, RESTORER_FOLDER, RESTORER_SHA256, load_restorer


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
    verify_sha256(RESTORER_FOLDER / RESTORER, RESTORER_SHA256)
    assert (RESTORER_FOLDER / RESTORER).stat().st_size <= 9e6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        restorer(torch.zeros(1, 3, 32, 32))
    assert 0.3e9 < counter.get_total_flops() < 0.8e9
    assert calibration.images > 1000 and "GTSRB" in calibration.data and "CIFAR-10" in calibration.data


@torch.no_grad()
def test_false_alarms_on_test_images(bundled, signs):
    restorer, calibration = bundled
    answer = restorer(signs * 2 - 1)
    share = calibration.clean_share(local_suspicion(answer.local), answer.dense)
    assert (share < calibration.false_alarm_rate).double().mean() <= 0.08  # .05 of 158, and two standard errors


@torch.no_grad()
@pytest.mark.parametrize("value", [1.0, 0.0])
def test_patches_are_found_where_they_are(bundled, signs, value):
    restorer, _ = bundled
    region = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    region[..., 5:10, 20:25] = True
    triggered = torch.where(region, value, signs)
    visible = (triggered - signs).abs().mean(dim=1)[:, 5:10, 20:25].mean(dim=(1, 2)) > 0.2
    found = locate(restorer(triggered * 2 - 1).local, seed=0.0, low=-1.0, margin=0)[visible]
    assert (found & region).sum() > 0.8 * 25 * len(found)
    assert (found & ~region).sum(dim=(1, 2, 3)).float().median() < 60


@torch.no_grad()
def test_fills_are_close_to_what_was_there(bundled, signs):
    restorer, _ = bundled
    region = torch.zeros(len(signs), 1, 32, 32, dtype=torch.bool)
    region[..., 20:25, 6:11] = True
    x = signs * 2 - 1
    error = (fill(x, region, restorer) - x).abs()[:, :, 20:25, 6:11].mean()
    flat = (x.mean(dim=(2, 3), keepdim=True) - x).abs()[:, :, 20:25, 6:11].mean()
    assert error < 0.6 * flat


@pytest.mark.parametrize("kind", IMAGES)
def test_the_preset_keeps_the_contract_of_transforms(tiny, kind):
    check_transform(SampDetox(tiny, preset="restore", seed=0), IMAGES[kind]())


def test_large_images_keep_their_size(tiny):
    assert SampDetox(tiny, preset="restore", seed=0)(torch.rand(3, 97, 130)).shape == (3, 97, 130)
