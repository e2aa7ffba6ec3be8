"""Lite-BD's first stage and its network: shapes and ranges with random weights, and the public ones on photographs."""

import pytest
import torch
from contract import assert_close, assert_same_kind, check_batch, check_copies, is_close, pixels
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.lab.data import square_image
from sampdetox_transforms.lab.defenses import CarnM, LiteBd, load_carn_m
from sampdetox_transforms.lab.defenses.carn import CARN_M, cascade
from sampdetox_transforms.lab.metrics import psnr
from sampdetox_transforms.networks.safe_files import WeightsFileError


class Doubled(CarnM):
    """Repeats each pixel, and remembers what it was given."""

    def forward(self, images: Tensor) -> Tensor:
        self.given = images
        return images.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def photographs(data) -> Tensor:
    """Eight photographs of eight classes, 160x160."""
    folders = sorted((data / "imagenette160" / "val").iterdir())[:8]
    return torch.stack([square_image(sorted(folder.iterdir())[0], 160) for folder in folders]).float() / 255


def halved(images: Tensor) -> Tensor:
    return functional.interpolate(images, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)


# The network


@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 12), (1, 1)])
def test_the_network_doubles_each_side(height, width):
    assert CarnM()(pixels(2, 3, height, width)).shape == (2, 3, 2 * height, 2 * width)


def test_the_network_is_ready_for_use():
    network = CarnM()
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_a_cascade_fuses_all_outputs_so_far():
    """With x = 1, steps that add 1 and fusions that sum: 1 -> 2, 1 + 2 = 3 -> 4, 1 + 2 + 4 = 7 -> 8, 15."""
    seen = []

    def total(so_far: Tensor) -> Tensor:
        seen.append(so_far.flatten().tolist())
        return so_far.sum(dim=1, keepdim=True)

    result = cascade(torch.ones(1, 1, 1, 1), [lambda x: x + 1] * 3, [total] * 3)
    assert seen == [[1, 2], [1, 2, 4], [1, 2, 4, 8]]
    assert float(result) == 15


def test_super_resolution_comes_nearer_to_photographs_than_bicubic_enlargement(data_with_photographs):
    """What the network is for, which no arithmetic of ours repeats: with a layer out of place it comes out below."""
    images = photographs(data_with_photographs)
    small = halved(images)
    bicubic = functional.interpolate(small, scale_factor=2, mode="bicubic", antialias=True).clamp(0, 1)
    network = load_carn_m(data_with_photographs / CARN_M)
    gain = psnr(images * 2 - 1, network(small).clamp(0, 1) * 2 - 1) - psnr(images * 2 - 1, bicubic * 2 - 1)
    assert gain.min() > 0.7 and gain.mean() > 1.5


def test_the_means_are_those_of_the_weights(data):
    state = torch.load(data / CARN_M, map_location="cpu", weights_only=True)
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        assert torch.equal(state[f"{name}.shifter.weight"][:, :, 0, 0], torch.eye(3))
        assert torch.equal(state[f"{name}.shifter.bias"] * sign, CarnM().means.flatten())


def test_other_files_than_the_pinned_one_are_refused(tmp_path):
    with pytest.raises(WeightsFileError, match=r"must hold the file carn_m.pth, got none at .* Fetch it anew"):
        load_carn_m(tmp_path / "carn_m.pth")
    torch.save(CarnM().state_dict(), tmp_path / "carn_m.pth")
    with pytest.raises(WeightsFileError, match=r"must have the sha256 d48a759a.*, got .* Remove it and fetch it anew"):
        load_carn_m(tmp_path / "carn_m.pth")
    (tmp_path / "carn_m.pth").write_bytes(bytes(5 * 2**20))
    with pytest.raises(WeightsFileError, match=r"must have 4194304 bytes or fewer, got 5242880"):
        load_carn_m(tmp_path / "carn_m.pth")


# The defense


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 16, 16), (3, 9, 12), (1, 9, 11), (1, 1, 1), (4, 6, 5)])
def test_contract(channels, height, width, dtype):
    defense = LiteBd(CarnM())
    images = pixels(2, channels, height, width, dtype=dtype)
    before, state = images.clone(), torch.get_rng_state()
    result = defense(images)
    assert torch.equal(images, before)
    assert_same_kind(result, images)
    assert not is_close(result, images), "the defense did nothing"
    assert torch.equal(torch.get_rng_state(), state)
    assert not result.requires_grad
    check_copies(defense, images, result)
    check_batch(defense, images[0])
    check_batch(defense, images)


def test_many_images_are_split_into_batches_without_a_difference():
    images, network = pixels(5, 3, 9, 12), CarnM()
    assert_close(LiteBd(network, batch_size=2)(images), LiteBd(network)(images))
    assert LiteBd(network)(images[:0]).shape == (0, 3, 9, 12)


def test_results_stay_in_range():
    network = CarnM()
    network.exit.bias.fill_(9)
    assert (LiteBd(network)(pixels(1, 3, 8, 8)) == 1).all()
    network.exit.bias.fill_(-9)
    assert (LiteBd(network)(pixels(1, 3, 8, 8)) == 0).all()
    edge = (torch.arange(16) < 8).float().expand(1, 3, 16, 16)
    doubled = Doubled()
    LiteBd(doubled)(edge)
    assert doubled.given.min() == 0 and doubled.given.max() == 1  # bicubic weights overshoot at an edge


@pytest.mark.parametrize(("height", "width"), [(16, 20), (15, 20), (16, 19), (15, 19)])
def test_an_odd_side_leaves_the_image_where_it_was(height, width):
    """On a ramp, each pair of pixels becomes its mean, away from the borders."""
    ramp = torch.linspace(0.2, 0.8, height)[:, None] + torch.linspace(-0.1, 0.1, width)
    result = LiteBd(Doubled())(ramp.expand(1, 3, -1, -1))[0, 0]
    blocks = ramp[4 : height - 5, 4 : width - 5]
    blocks = blocks[: len(blocks) // 2 * 2, : blocks.shape[1] // 2 * 2]
    expected = functional.avg_pool2d(blocks[None], 2)[0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    found = result[4 : 4 + len(expected), 4 : 4 + expected.shape[1]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_grey_images_go_through_as_three_equal_channels():
    network, grey = CarnM(), pixels(2, 1, 9, 12)
    assert_close(LiteBd(network)(grey), LiteBd(network).purify(grey.expand(-1, 3, -1, -1)).mean(1, keepdim=True))
    doubled = Doubled()
    LiteBd(doubled)(grey)
    assert doubled.given.shape == (2, 3, 5, 6)


def test_what_it_asks_for():
    defense = LiteBd(CarnM())
    assert (defense.access, defense.denoiser_calls, defense.classifier_calls) == ("none", 1, 0)
    assert defense.title == "Lite-BD, stage 1 (CARN-M for SwinIR)"
    assert len(repr(defense)) < 300
    assert not any(module.training for module in defense.train().modules())


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match=r"network must be a CarnM, got str. Load one with load_carn_m\(path\)"):
        LiteBd("carn_m.pth")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"batch_size must be a whole number of 1 or more, got 0"):
        LiteBd(CarnM(), batch_size=0)
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got values from .* before Normalize"):
        LiteBd(CarnM())(pixels(3, 8, 8) * 2)


def test_a_photograph_keeps_what_half_its_size_shows(data_with_photographs):
    images = photographs(data_with_photographs)[:2, :, :95, :64]
    result = LiteBd(load_carn_m(data_with_photographs / CARN_M))(images)
    assert psnr(images * 2 - 1, result * 2 - 1).min() > 22
    assert psnr(halved(images[..., :94, :]) * 2 - 1, halved(result[..., :94, :]) * 2 - 1).min() > 35
