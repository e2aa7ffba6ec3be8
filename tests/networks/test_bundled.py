"""The embedded denoiser: size, cost, levels, and quality beside the network that it must reach."""

import shutil

import pytest
import torch
from checkpoint_tools import predict
from torch.utils.flop_counter import FlopCounterMode

from sampdetox_transforms import DetoxWeights, SampDetox, WeightsFileError, load_denoiser
from sampdetox_transforms.lab.metrics import denoise_once, psnr
from sampdetox_transforms.networks import catalogue
from sampdetox_transforms.networks.catalogue import BUNDLED_FOLDER
from sampdetox_transforms.networks.checkpoints import SAFETENSORS, read_checkpoint


@pytest.fixture(scope="module")
def bundled():
    return load_denoiser("bundled")


def test_it_is_small_and_cheap(bundled):
    assert (BUNDLED_FOLDER / SAFETENSORS).stat().st_size <= 10_000_000
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bundled(torch.zeros(1, 3, 32, 32), torch.tensor([10]))
    assert 0.1e9 < counter.get_total_flops() <= 1.4e9


def test_it_has_no_attention_and_takes_any_size(bundled):
    assert bundled.attention_scales == ()
    for height, width in ((1, 1), (7, 50), (224, 33)):
        assert bundled(torch.zeros(1, 3, height, width), torch.tensor([10])).shape == (1, 3, height, width)


def test_it_knows_the_levels_of_every_preset(bundled):
    for preset in ("ddim", "paper", "paper-linear", "authors-code"):
        SampDetox(bundled, preset=preset)
    with pytest.raises(ValueError, match=r"t1 and t2 must be in \[0, 160\]"):
        SampDetox(bundled, t2=161)


def test_diffusers_reads_it(bundled):
    diffusers = pytest.importorskip("diffusers")
    other = diffusers.UNet2DModel.from_pretrained(BUNDLED_FOLDER).eval()
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 119])
    with torch.no_grad():
        assert (bundled(x, t) - other(x, t).sample).abs().max() < 1e-5


@pytest.mark.parametrize("images", ["gtsrb32/test", "cifar10-lossless/test"])
def test_it_denoises_as_well_as_the_reference_network(bundled, data, images):
    """docs/weights.md has the table over 509 images."""
    from PIL import Image
    from torchvision.transforms.v2 import functional

    paths = sorted((data / images).rglob("*.webp"))[::150][:24]
    x0 = torch.stack([functional.pil_to_tensor(Image.open(path).convert("RGB")) for path in paths]).float() / 127.5 - 1
    reference = load_denoiser(data / "models" / "denoiser-lownoise-32")
    for sigma in (0.05, 0.1, 0.2, 0.4):
        mine, other = (
            psnr(x0, denoise_once(network, x0, sigma, torch.Generator().manual_seed(0))).mean()
            for network in (bundled, reference)
        )
        assert mine >= other, f"sigma {sigma}: {mine:.2f} dB against {other:.2f} dB"


def test_bundled_weights_load_with_their_pinned_hash():
    denoiser = load_denoiser("bundled")
    assert denoiser.source == "bundled"
    assert denoiser.attention_scales == () and denoiser.channels == 3
    assert 121 <= denoiser.max_level < 1000, "the authors' levels need 121"
    eps = predict(denoiser, (1, 3, 32, 32))
    assert eps.shape == (1, 3, 32, 32) and bool(eps.isfinite().all())
    size = sum(path.stat().st_size for path in BUNDLED_FOLDER.iterdir())
    assert size <= 10 * 2**20
    assert abs(DetoxWeights.BUNDLED.meta.size_mb - size / 1e6) < 0.1


def test_bundled_weights_with_one_bit_flipped_are_refused(tmp_path, monkeypatch):
    copy = tmp_path / "bundled"
    shutil.copytree(BUNDLED_FOLDER, copy)
    content = bytearray((copy / SAFETENSORS).read_bytes())
    content[-1] ^= 1
    (copy / SAFETENSORS).write_bytes(content)
    read_checkpoint(copy)  # nothing but the hash tells
    monkeypatch.setattr(catalogue, "BUNDLED_FOLDER", copy)
    with pytest.raises(
        WeightsFileError, match=f"sha256 {DetoxWeights.BUNDLED.meta.sha256[SAFETENSORS]}, got [0-9a-f]{{64}}"
    ):
        load_denoiser("bundled")


@pytest.mark.parametrize("name", [path.name for path in sorted(BUNDLED_FOLDER.iterdir())])
def test_every_bundled_file_is_pinned(tmp_path, monkeypatch, name):
    """An altered schedule would load as "bundled", and purify nothing."""
    copy = shutil.copytree(BUNDLED_FOLDER, tmp_path / "bundled")
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    monkeypatch.setattr(catalogue, "BUNDLED_FOLDER", copy)
    with pytest.raises(WeightsFileError, match=f"{name} must have the sha256 [0-9a-f]{{64}}, got"):
        load_denoiser("bundled")
