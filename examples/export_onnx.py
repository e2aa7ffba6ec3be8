"""SampDetox with its networks in onnxruntime: the decisions stay in Python, the arithmetic leaves torch.

python examples/export_onnx.py     (needs onnx, onnxscript and onnxruntime)
"""

import tempfile
from pathlib import Path

import onnxruntime
import torch

from sampdetox_transforms import Denoiser, SampDetox
from sampdetox_transforms.lab.demo.signs import draw_signs
from sampdetox_transforms.method.search import Answer
from sampdetox_transforms.networks.light_denoiser import LightDenoiser
from sampdetox_transforms.networks.restorer import Specialists
from sampdetox_transforms.networks.restorers import Restorers


def exported(network, *example):
    """The network as a function that onnxruntime computes: batches of any length, of the example's height and width."""
    with tempfile.TemporaryDirectory() as folder:
        path, batch = Path(folder) / "network.onnx", {0: torch.export.Dim.DYNAMIC}
        shapes = tuple(batch for _ in example)
        torch.onnx.export(network, example, path, dynamo=True, external_data=False, dynamic_shapes=shapes)
        session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]

    def run(*arguments):
        arrays = {name: part.numpy() for name, part in zip(names, arguments, strict=True)}
        return [torch.from_numpy(part) for part in session.run(None, arrays)]

    return run


detox = SampDetox("bundled", seed=0, dtype=torch.float32)
images, mask, t = torch.rand(2, 3, 32, 32), torch.zeros(2, 1, 32, 32, dtype=torch.bool), torch.tensor([11.0, 59.0])
unet = exported(detox.denoiser.network, images, t)
local = exported(detox.restorer.small.local, images, mask)
dense = exported(detox.restorer.small.dense, images, mask)
light = exported(detox.restorer.small.light.network, images, torch.zeros(2, 1))


def search(network):
    """A search network; the mask of erased pixels, which it takes always, is empty where there is none."""

    def ask(x, erased=None):
        return Answer(*network(x, torch.zeros_like(x[:, :1], dtype=torch.bool) if erased is None else erased))

    return ask


def light_network(x, told):
    """The denoiser of the light stage, at the size that it was exported for."""
    return light(x, told)[0]


light_network.size_multiple = 32
denoiser = Denoiser(lambda x, t: unet(x, t.float())[0], detox.denoiser.schedule, size_multiple=32, max_level=160)
networks = Restorers(Specialists(search(local), search(dense), LightDenoiser(light_network)))
deployed = SampDetox(denoiser, restorer=networks, calibration=detox.calibration, seed=0)

if __name__ == "__main__":
    signs, _ = draw_signs(6, seed=0)
    signs[::2, :, 27:31, 27:31] = 1  # a white square
    found, expected = deployed.explain(signs), detox.explain(signs)
    assert torch.equal(found.found.mask, expected.found.mask)
    print("largest difference of a pixel in [0, 1]:", float((found.image - expected.image).abs().max()))
