"""The files of the networks for photographs: what is damaged, not finite, or another network is refused by name."""

import shutil

import pytest
import torch
from contract import pixels
from safetensors.torch import load_file, save_file

from sampdetox_transforms import WeightsFileError
from sampdetox_transforms.lab.demo.signs import draw_signs
from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.method.search import local_suspicion, shrink
from sampdetox_transforms.networks import photographs
from sampdetox_transforms.networks.photographs import (
    PHOTOGRAPHS,
    PHOTOGRAPHS_SHA256,
    Photographs,
    load_photographs,
    save_photographs,
)
from sampdetox_transforms.networks.push_pull import push_pull
from sampdetox_transforms.networks.restorer_files import RESTORER_FOLDER

CALIBRATION = Calibration((-1.0, 0.25), (0.0, 2.0), 0.1, 7, "seven images")

OTHER = Calibration((-2.0, 0.5), (0.0, 3.0), 0.1, 7, "others")


@pytest.fixture
def folder(tmp_path):
    return save_photographs(tmp_path / "new", Photographs(), Calibrations(CALIBRATION, CALIBRATION, OTHER))


def test_files_round_trip(folder):
    networks, calibrations = load_photographs(folder)
    assert calibrations == Calibrations(None, CALIBRATION, OTHER)
    assert not networks.training and not any(value.requires_grad for value in networks.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder, value):
    state = load_file(folder / PHOTOGRAPHS)
    state["search.head.bias"][3] = value
    (folder / PHOTOGRAPHS).unlink()
    save_file(state, folder / PHOTOGRAPHS)
    with pytest.raises(WeightsFileError, match=r"got NaN or infinity in search\.head\.bias\. Fetch"):
        load_photographs(folder)


def test_weights_of_another_network_are_refused_by_name(folder):
    (folder / PHOTOGRAPHS).unlink()
    save_file({"search.head.bias": torch.zeros(2)}, folder / PHOTOGRAPHS)
    with pytest.raises(ValueError, match=r"must fit the networks for photographs, got missing .*, and \d+ more"):
        load_photographs(folder)


def test_a_cut_file_is_named(folder):
    (folder / PHOTOGRAPHS).write_bytes((folder / PHOTOGRAPHS).read_bytes()[:1000])
    with pytest.raises(WeightsFileError, match=f"{PHOTOGRAPHS} must be a whole safetensors file"):
        load_photographs(folder)


@pytest.mark.parametrize("name", PHOTOGRAPHS_SHA256)
def test_both_files_of_the_package_are_pinned(tmp_path, monkeypatch, name):
    copy = shutil.copytree(RESTORER_FOLDER, tmp_path / "restorer")
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content + b" " if name.endswith(".json") else content[:-1] + bytes([content[-1] ^ 1]))
    load_photographs(copy)  # nothing but the hash tells
    monkeypatch.setattr(photographs, "RESTORER_FOLDER", copy)
    with pytest.raises(WeightsFileError, match=f"{name} must have the sha256 {PHOTOGRAPHS_SHA256[name]}, got"):
        load_photographs(copy)


def test_a_hole_starts_from_the_smooth_filling():
    networks = Photographs().eval().requires_grad_(False)
    for value in networks.restoring.head.parameters():  # it adds nothing
        value.zero_()
    x, mask = pixels(2, 3, 64, 48) * 2 - 1, torch.zeros(2, 1, 64, 48, dtype=torch.bool)
    mask[..., 10:30, 20:40] = True
    torch.testing.assert_close(networks.fill(x, mask), push_pull(x, mask))


@pytest.mark.parametrize("size", [(160, 160), (160, 203)])
def test_enlarged_images_are_mirrored_at_their_borders_before_the_look(size):
    networks = Photographs()
    seen = []

    class Search(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x[:, :1], x.mean(dim=(1, 2, 3))

    networks.search = Search()
    x = pixels(2, 3, *size)
    assert torch.equal(networks.look(x).local, x[:, :1]) and seen[0].shape == x.shape
    view = networks.of_enlarged()
    assert (view.name, networks.name, networks.border) == ("medium", "large", 0)
    assert torch.equal(view.look(x).local, x[:, :1])  # the image's own pixels, in their places
    assert seen[1].shape[-2:] == (size[0] + 32, size[1] + 32)
    assert torch.equal(seen[1][..., 16:-16, 16:-16], x)
    assert torch.equal(seen[1][..., 16:-16, :16], x[..., :, :16].flip(-1))
    assert torch.equal(seen[1][..., -16:, 16:-16], x[..., -16:, :].flip(-2))


def test_a_square_in_a_corner_of_a_small_photograph_is_found():
    networks, calibrations = load_photographs()
    smooth = torch.nn.functional.interpolate(pixels(24, 3, 6, 6, seed=3), (64, 64), mode="bicubic").clamp(-1, 1)
    x = smooth * 0.6 + 0.05 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(1))
    x[..., -6:, -6:] = 1
    view = networks.of_enlarged()
    found = local_suspicion(view.look(shrink(x, view)).local, view.window)
    assert (found > calibrations.medium.thresholds[0]).float().mean() > 0.9


def test_signs_that_are_drawn_are_no_triggers():
    networks, calibrations = load_photographs()
    view, (signs, _) = networks.of_enlarged(), draw_signs(40, seed=77, size=128)
    with torch.no_grad():
        found = local_suspicion(view.look(shrink(signs * 2 - 1, view)).local, view.window)
    assert (found > calibrations.medium.thresholds[0]).float().mean() <= 0.05
