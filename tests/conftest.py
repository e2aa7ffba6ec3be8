"""Fixtures for all tests: data from SAMPDETOX_DATA, tiny checkpoints and denoisers, fixed seeds, few threads."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a thread for each process, and for those that it starts
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

if os.environ.get("SAMPDETOX_SHAPES") != "unchecked":  # before the package is imported
    ROOMS = ("method", "networks", "training")  # transforms and lab refuse other shapes in words of their own
    jaxtyping.install_import_hook([f"sampdetox_transforms.{room}" for room in ROOMS], "shapes.checked")

from sampdetox_transforms import Denoiser, Schedule
from sampdetox_transforms.cli import main as cli
from sampdetox_transforms.networks import precision
from sampdetox_transforms.networks.checkpoints import read_checkpoint, save_checkpoint
from sampdetox_transforms.networks.unet import UNet
from sampdetox_transforms.networks.unet_config import UNetConfig

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))
DATA_FOLDERS = ("models", "triggers", "gtsrb32", "cifar10-lossless")
PHOTOGRAPHS = ("imagenet-sample", "imagenette160", "tiny-imagenet", "lfw", "dtd")
MAX_LEVEL = 160


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """float32 by default on every machine; what chooses is tested with the choice given back."""
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: False)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of test data: models/, triggers/ and, unpacked, gtsrb32/ and cifar10-lossless/."""
    given = os.environ.get("SAMPDETOX_DATA")
    if not given:
        pytest.skip("SAMPDETOX_DATA is not set: it names the folder of test data, see the docs")
    missing = [name for name in DATA_FOLDERS if not (Path(given) / name).is_dir()]
    if missing:
        pytest.skip(f"SAMPDETOX_DATA names a folder without {', '.join(missing)}: unpack the archives there")
    return Path(given)


@pytest.fixture(scope="session")
def data_with_photographs(data) -> Path:
    """The same with the photographs, which not everybody unpacks."""
    missing = [name for name in PHOTOGRAPHS if not (data / name).is_dir()]
    if missing:
        pytest.skip(f"SAMPDETOX_DATA names a folder without {', '.join(missing)}: unpack the archives there")
    return data


def tiny_config(channels: int = 3, **changes) -> UNetConfig:
    """The smallest network worth testing: two resolutions, no attention, some 10 000 parameters."""
    return UNetConfig.from_dict(
        {
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": (8, 8),
            "down_block_types": ("DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "add_attention": False,
            **changes,
        }
    )


def write_tiny(folder: Path, *, config: UNetConfig | None = None, seed: int = 0, about: dict | None = None) -> Path:
    """A checkpoint folder with random weights; it knows levels up to 160 unless ``about`` says otherwise."""
    config = tiny_config() if config is None else config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = UNet(config).state_dict()
    about = {"max_level": MAX_LEVEL} if about is None else about
    save_checkpoint(folder, config, state, Schedule.named("linear"), about)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A checkpoint folder for RGB images, random weights, levels up to 160."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_grey(tmp_path_factory) -> Path:
    """The same for grey images."""
    return write_tiny(tmp_path_factory.mktemp("tiny-grey"), config=tiny_config(1))


@pytest.fixture
def tiny_copy(tmp_path) -> Path:
    """A checkpoint folder of the test's own, to damage; the same weights as ``tiny``."""
    return write_tiny(tmp_path / "tiny-copy")


@pytest.fixture
def tiny_denoiser(tiny) -> Denoiser:
    """The denoiser of ``tiny``, read anew for each test."""
    return read_checkpoint(tiny)


class UnitPrior(nn.Module):
    """The exact denoiser where every pixel is independent and normal with mean 0 and variance 1: one multiplication."""

    def __init__(self):
        super().__init__()
        self.register_buffer("alphas_cumprod", Schedule.named("linear").alphas_cumprod.float())

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        noise_share = 1 - self.alphas_cumprod[t.round().long()]
        return noise_share.sqrt()[:, None, None, None] * x_t


@pytest.fixture
def fast_denoiser() -> Denoiser:
    """A denoiser that costs one multiplication and knows all levels of the linear schedule."""
    return Denoiser(UnitPrior(), Schedule.named("linear"))


class Forbidden(nn.Module):
    """A network that must not be reached."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the denoiser was called")


@pytest.fixture
def forbidden() -> Denoiser:
    """A denoiser that fails the test when it is called; it knows levels up to 160."""
    return Denoiser(Forbidden(), Schedule.named("linear"), max_level=MAX_LEVEL)


@pytest.fixture
def run(capsys):
    """Call the command line; returns the exit status, stdout and stderr."""

    def call(*args) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(arg) for arg in args])
        return status, *capsys.readouterr()

    return call
