"""The embedded denoiser: size, cost, levels, and quality beside the network that it must reach."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sampdetox_transforms import SampDetox, load_denoiser
from sampdetox_transforms.lab.metrics import denoise_once, psnr
from sampdetox_transforms.networks.catalogue import BUNDLED_FOLDER
from sampdetox_transforms.networks.checkpoints import SAFETENSORS


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

    paths = sorted((data / images).rglob("*.webp"))[::60][:64]
    x0 = torch.stack([functional.pil_to_tensor(Image.open(path).convert("RGB")) for path in paths]).float() / 127.5 - 1
    reference = load_denoiser(data / "models" / "denoiser-lownoise-32")
    for sigma in (0.05, 0.1, 0.2, 0.4):
        mine, other = (
            psnr(x0, denoise_once(network, x0, sigma, torch.Generator().manual_seed(0))).mean()
            for network in (bundled, reference)
        )
        assert mine >= other, f"sigma {sigma}: {mine:.2f} dB against {other:.2f} dB"
