"""Checkpoint folders to damage, and what a network predicts: shared by the tests of files."""

import json

import torch
from safetensors.torch import load_file, save_file

from sampdetox_transforms.networks.checkpoints import PICKLED, SAFETENSORS

BATCH = (2, 3, 8, 12)


def predict(network, batch=BATCH) -> torch.Tensor:
    x_t = torch.randn(batch, generator=torch.Generator().manual_seed(3))
    eps = network(x_t, torch.tensor([4, 150])[: batch[0]])
    return getattr(eps, "sample", eps)


def edit_json(path, **changes) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def edit_weights(folder, edit) -> None:
    state = load_file(folder / SAFETENSORS)
    edit(state)
    save_file(state, folder / SAFETENSORS)


def to_pickle(folder, content) -> None:
    (folder / SAFETENSORS).unlink()
    torch.save(content, folder / PICKLED)
