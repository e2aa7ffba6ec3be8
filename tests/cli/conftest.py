"""Fixtures for the tests of the command line: a tiny network, none at all, a folder of classes, and a victim."""

import pytest
import torch
from torchvision.transforms.v2 import functional

from sampdetox_transforms.cli.main import main
from sampdetox_transforms.transforms import transform, watch


@pytest.fixture(autouse=True)
def _every_kind_of_picture(monkeypatch, request):
    """The pictures of these tests are a few pixels wide and flat; only those of the app hear what is said of such."""
    if "app" in request.path.parts:
        return
    monkeypatch.setattr(watch, "unlike_photographs", lambda x0: watch.Reason(0, ""))


@pytest.fixture
def weights(tiny) -> str:
    """A checkpoint folder with a tiny random network that knows the levels up to 160."""
    return str(tiny)


@pytest.fixture
def no_weights(monkeypatch):
    """Fail where weights are loaded before the error that is expected."""

    def refuse(*args, **kwargs):
        raise AssertionError("the weights were loaded first")

    monkeypatch.setattr(transform, "load_denoiser", refuse)


QUICK = ("--size", 16, "--epochs", 1, "--batch-size", 8, "--crop", 0, "--no-bf16", "--device", "cpu")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Three classes of flat colours: 8 images each."""
    root = tmp_path_factory.mktemp("data") / "images"
    for label in range(3):
        (root / f"{label}").mkdir(parents=True)
        for i in range(8):
            image = torch.full((3, 16, 16), 0.2 + 0.01 * i)
            image[label] = 0.6
            functional.to_pil_image(image).save(root / f"{label}" / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def victim(folder, tmp_path_factory):
    """A victim that the command trained."""
    out = tmp_path_factory.mktemp("victims") / "patch"
    arguments = ["victim", folder, out, *QUICK, "--set", "size=4", "pattern=checker", "--poison-rate", 0.5]
    assert main([str(argument) for argument in arguments]) == 0
    return out


@pytest.fixture
def quick() -> tuple:
    """Flags of ``sampdetox victim`` for a run of a second."""
    return QUICK
