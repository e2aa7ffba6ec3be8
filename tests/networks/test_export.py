"""The networks leave Python: each in onnxruntime and compiled whole, against the same network in eager mode."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config
from torch import Tensor

from sampdetox_transforms.networks.photo_unet import PhotoUNet
from sampdetox_transforms.networks.restorer import Restorer, RestorerConfig
from sampdetox_transforms.networks.unet import UNet

ROOT = Path(__file__).resolve().parents[2]
SMALL = RestorerConfig(widths=(8, 8), down_blocks=(1, 1), up_blocks=(1,))
SHAPE = {"unshuffle": 2, "widths": (8, 16), "down": (1, 1), "up": (1,)}


def between(*shape: int) -> Tensor:
    return torch.rand(*shape) * 2 - 1


# Each kind of network that the package has, and arguments of two images.
NETWORKS = {
    "UNet": lambda: (UNet(tiny_config()), (between(2, 3, 16, 16), torch.tensor([11.0, 59.0]))),
    "UNet with attention": lambda: (UNet(tiny_config(add_attention=True)), (between(2, 3, 8, 8), torch.ones(2))),
    "Restorer": lambda: (Restorer(SMALL), (between(2, 3, 16, 16),)),
    "Restorer, erased": lambda: (Restorer(SMALL), (between(2, 3, 13, 16), torch.rand(2, 1, 13, 16) > 0.8)),
    "PhotoUNet that searches": lambda: (PhotoUNet(3, 1, **SHAPE, image_logit=True), (between(2, 3, 24, 18),)),
    "PhotoUNet that restores": lambda: (PhotoUNet(4, 3, **SHAPE, conditions=3), (between(2, 4, 24, 20), between(2, 3))),
}

COMPILED = ("UNet", "Restorer, erased", "PhotoUNet that restores")  # one of each class


def outputs(found: Tensor | tuple) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [part for part in found if part is not None]


@pytest.mark.filterwarnings("ignore")  # torch says of its older exporter that there is a newer one
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_computes_what_torch_computes(name, tmp_path):
    """Exported with two images, run with these and with four others."""
    runtime = pytest.importorskip("onnxruntime")
    network, example = NETWORKS[name]()
    names = [f"argument{i}" for i in range(len(example))]
    with torch.no_grad():
        torch.onnx.export(
            network.eval(),
            example,
            tmp_path / "network.onnx",
            dynamo=False,  # the newer one takes a minute where shapes are checked; the slow test has it
            input_names=names,
            dynamic_axes={name: {0: "batch"} for name in names},
        )
    session = runtime.InferenceSession(tmp_path / "network.onnx")
    others = tuple(torch.cat([part.flip(0), part.flip(-1)]) for part in example)
    for arguments in (example, others):
        found = session.run(None, {name: part.numpy() for name, part in zip(names, arguments, strict=True)})
        with torch.no_grad():
            expected = outputs(network(*arguments))
        assert [part.shape for part in found] == [tuple(part.shape) for part in expected]
        for part, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(part, other.numpy(), rtol=0, atol=1e-5)


CODE = """
import torch
import test_export
for name in test_export.COMPILED:
    network, arguments = test_export.NETWORKS[name]()
    compiled = torch.compile(network.eval(), fullgraph=True, backend="eager")
    with torch.no_grad():
        found, expected = (test_export.outputs(f(*arguments)) for f in (compiled, network))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    print(name)
"""


def test_networks_compile_without_a_break():
    """In a process of its own: the tracer takes minutes where shapes are checked."""
    folders = [str(Path(__file__).parent), str(ROOT / "tests")]
    code = f"import sys; sys.path[:0] = {folders!r}\n{CODE}"
    options = {"env": {**os.environ, "SAMPDETOX_SHAPES": "unchecked"}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], check=False, **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(COMPILED)


@pytest.mark.slow
def test_the_bundled_networks_behind_onnxruntime_purify_as_in_torch():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = subprocess.run([sys.executable, "examples/export_onnx.py"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    largest = float(done.stdout.split()[-1])
    assert largest < 1e-3, done.stdout
