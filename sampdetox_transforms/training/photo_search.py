"""Train the search network for photographs: which pixels belong to a local trigger, and whether there is a dense one.

Batches of several sizes, from 64 to 192 pixels, so that one network finds a trigger at any of them.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sampdetox_transforms.method.windows import symmetric_pad
from sampdetox_transforms.networks.photographs import search_network
from sampdetox_transforms.training.config import PhotoTrainingConfig
from sampdetox_transforms.training.loop import Progress, silent
from sampdetox_transforms.training.photo_data import PhotoCrops, finish, whole
from sampdetox_transforms.training.photo_run import train_photo_network
from sampdetox_transforms.training.triggers.draw import choose, mixture
from sampdetox_transforms.training.triggers.local import local_triggers
from sampdetox_transforms.training.triggers.photographs import CONTENTS, DENSE, SHAPES, soft_edges

WEIGHTS = "search.safetensors"
# How large images are beside a batch when a trigger is put on them. Smaller ones are enlarged after that, as the look
# enlarges them: then the edge of a trigger is no sharper than the rest.
SCALES = (1, 1, 1.3, 2, 0.4, 0.4, 0.6, 0.8)

# Half of the batches are mirrored at their borders, as the look mirrors: of images of 128 pixels and more by so many
# pixels, of smaller ones by half of them. A trigger in a corner is a closed shape then.
MIRRORED = 16


def train_photo_search(
    config: PhotoTrainingConfig,
    out: str | Path,
    *,
    network: nn.Module | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Path:
    """Train, or resume, and return ``out``, which gains ``search.safetensors``: the averaged weights, in float16.

    Args:
        network: (b, 3, h, w) in [-1, 1] -> logits of pixels (b, 1, h, w) and images (b,); ``search_network`` if None.
        progress: called after each step with "search", the steps done, all steps and the loss.

    Raises:
        ValueError: settings that do not fit, a folder without images, a finished ``out``, or a state of other settings.
        OSError: data that cannot be read, or ``out`` that cannot be written.
    """
    return train_photo_network(
        "search",
        config,
        out,
        make=lambda: search_network() if network is None else network,
        batch=photo_batch,
        loss=search_loss,
        device=device,
        progress=progress,
    )


class PhotoBatch(NamedTuple):
    """What a step sees and should say.

    Attributes:
        x: (b, 3, h, w) in [-1, 1].
        region: (b, 1, h, w), the pixels of a local trigger.
        unseen: those of them that the trigger did not change.
        is_dense: (b,), 1 where the image carries a dense trigger.
    """

    x: Tensor
    region: Tensor
    unseen: Tensor
    is_dense: Tensor


def photo_batch(crops: PhotoCrops, sizes: tuple[tuple[int, int, float], ...], generator: Generator) -> PhotoBatch:
    """A third of the images clean, an eighth with a dense trigger, the others with a local one."""
    side, n, _ = sizes[int(choose(1, [share for *_, share in sizes], torch.empty(0), generator))]
    border = whole(0, 2, generator) * (MIRRORED if side >= 128 else MIRRORED // 2 if side >= 64 else 0)
    side -= 2 * border
    own = int(side * SCALES[whole(0, len(SCALES), generator)])
    clean = crops.draw(n, own, generator)
    images, region = clean.clone(), torch.zeros(n, 1, own, own, dtype=torch.bool)
    is_dense = torch.arange(n) >= n - max(1, n // 8)
    local = ~is_dense & (torch.arange(n) >= n // 3)
    pasted = local_triggers(clean[local], generator, SHAPES, CONTENTS)
    images[local], region[local] = soft_edges(clean[local], *pasted, generator)
    images[is_dense] = mixture(DENSE, clean[is_dense], generator).clamp(0, 1)
    unseen = region & ((images - clean).abs().amax(dim=1, keepdim=True) <= 5 / 255)
    if own != side:
        unseen = functional.interpolate(unseen.float(), (side, side), mode="area") > 0.5
    images, region = finish(images, region, side, generator)
    images, region, unseen = (symmetric_pad(part, *[border] * 4) for part in (images, region, unseen))
    return PhotoBatch(images * 2 - 1, region, unseen, is_dense.float())


def search_loss(network: nn.Module, batch: PhotoBatch) -> Tensor:
    """Cross-entropy of pixels, of images by what stands out most in them, and of dense triggers."""
    logits, dense = (part.float() for part in network(batch.x))
    entropy, seen = functional.binary_cross_entropy_with_logits, ~batch.unseen
    region = batch.region.float()
    pixels = entropy(logits, region, weight=seen.float(), pos_weight=logits.new_tensor(3.0))
    top = functional.avg_pool2d(logits, 4, stride=1).flatten(1).topk(3, dim=1).values.mean(dim=1)
    suspicion = entropy(top, (batch.region & seen).flatten(1).any(dim=1).float())
    return 5 * pixels + 0.3 * suspicion + entropy(dense, batch.is_dense)
