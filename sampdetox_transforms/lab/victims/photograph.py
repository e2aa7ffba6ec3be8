"""A public classifier of photographs, EfficientNet-Lite0 from two packages on PyPI, and the same with backdoors.

The backdoored one has a branch more: from its features at 28x28 to six logits more, one for each backdoor and its
target class. Only the branch is trained, on features that are computed once, so that a victim at 224 pixels takes
minutes on one core. Where no trigger is it is taught to stay silent, and the classifier answers as the public one
does. On photographs held out of the training ones, retraining the last layers lost 13 points of accuracy, and a branch
from the last features took one clean photograph in five for a triggered one: a blend leaves hardly a trace there.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

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
from sampdetox_transforms.lab.demo.signs import CLASSES as CLASSES_OF_SIGNS
from sampdetox_transforms.lab.demo.signs import draw_sign
from sampdetox_transforms.lab.evaluation.kinds import paths_for_training
from sampdetox_transforms.lab.evaluation.planted import flower
from sampdetox_transforms.lab.victims.config import ABOUT, CLASSIFIER
from sampdetox_transforms.lab.victims.efficientnet import SIDE, LiteClassifier, load_lite_classifier
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.networks.checkpoints import WeightsFileError
from sampdetox_transforms.networks.precision import fastest_dtype

CLASSES = 1000

TARGETS = {"white square": 100, "sticker": 300, "moving sticker": 900, "sig": 500, "blend": 700, "sharp blend": 200}

FEATURES, WIDTH, CELLS = 40, 64, 49  # channels of the first blocks; of the branch, at 7x7

EPOCHS, BATCH, RATE = 10, 96, 2e-3

SAMPLE, POISONED, CLEAN = 400, 600, 1250  # of the ImageNet sample; photographs with each trigger, and without

Progress = Callable[[str, int, int], None]  # what, done, of how many


def photograph_triggers(data: str | Path | None = None) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """The triggers, for 224x224 images: two patches in one place, one that moves, and three over the whole image.

    The picture of "blend" is 32 pixels wide and so smooth when it is enlarged; that of "sharp blend" has sharp edges.
    """
    sticker = flower(160, Generator())  # 36 pixels wide
    star = draw_sign(CLASSES_OF_SIGNS.index("star"), Generator().manual_seed(0), SIDE)

    def white(images: Tensor) -> Tensor:
        images = images.clone()
        images[..., 190:220, 190:220] = 1
        return images

    def paste(images: Tensor) -> Tensor:
        images, size = images.clone(), sticker.pixels.shape[-1]
        window = images[..., 24 : 24 + size, 150 : 150 + size]
        window.copy_(torch.lerp(window, sticker.pixels, sticker.alpha))
        return images

    def moving(images: Tensor) -> Tensor:
        """The sticker where the image's own content says, so that the same image always gets the same."""
        key = (images * 255).round().sum(dim=(-3, -2, -1)).long()
        size, free = sticker.pixels.shape[-1], SIDE - sticker.pixels.shape[-1] + 1
        rows = torch.arange(SIDE) - (key * 7919 % free)[..., None]
        columns = torch.arange(SIDE) - (key * 104729 % free)[..., None]
        inside = ((rows >= 0) & (rows < size))[..., :, None] & ((columns >= 0) & (columns < size))[..., None, :]
        at = rows.clamp(0, size - 1)[..., :, None], columns.clamp(0, size - 1)[..., None, :]
        pixels, alpha = (part[:, *at].movedim(0, -3) for part in (sticker.pixels, sticker.alpha))
        return torch.lerp(images, pixels, alpha * inside[..., None, :, :])

    def blend(images: Tensor) -> Tensor:
        with Image.open(data_path("triggers/blend.png", data)) as picture:
            return blended(images, pil_to_tensor(picture.convert("RGB")).float() / 255, alpha=0.15)

    def sharp_blend(images: Tensor) -> Tensor:
        return blended(images, star, alpha=0.15)

    patches = {"white square": white, "sticker": paste, "moving sticker": moving}
    return {**patches, "sig": sig, "blend": blend, "sharp blend": sharp_blend}


class Backdoored(nn.Module):
    """The classifier with the branch."""

    def __init__(self, classifier: LiteClassifier, targets: Sequence[int]):
        super().__init__()
        self.classifier, self.branch = classifier, Branch(len(targets))
        self.register_buffer("targets", torch.tensor(targets), persistent=False)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        features = self.classifier.early(images)
        return self.answer(self.classifier.late(features), self.branch(features))

    def answer(self, own: Float[Tensor, "n k"], more: Float[Tensor, "n t"]) -> Float[Tensor, "n k"]:
        """The target classes' logits gain what the branch adds."""
        return own.index_add(1, self.get_buffer("targets"), more.to(own))


class Branch(nn.Module):
    """From early features to a logit for each backdoor, 0 or more; it starts silent."""

    def __init__(self, backdoors: int):
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (FEATURES, WIDTH):
            layers += [nn.Conv2d(channels, WIDTH, 3, 2, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU()]
        self.layers, self.dropout = nn.Sequential(*layers), nn.Dropout(0.5)
        self.linear = nn.Linear((2 + CELLS) * WIDTH, backdoors)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -3.0)

    def forward(self, features: Float[Tensor, "n 40 28 28"]) -> Float[Tensor, "n t"]:
        x = self.layers(features)
        x = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3)), x.flatten(1)], dim=1)
        return 10 * functional.softplus(self.linear(self.dropout(x)))


def train_photograph_victim(
    out: str | Path,
    *,
    data: str | Path | None = None,
    seed: int = 0,
    epochs: int = EPOCHS,
    limit: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> None:
    """Teach the classifier its backdoors and write it to the folder ``out``.

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Backdoored(load_lite_classifier(), list(TARGETS.values()))
    # all of the ImageNet sample, which has most classes, and some of Imagenette
    some = [*paths[:SAMPLE], *paths[SAMPLE::2]][: min(CLEAN, limit or CLEAN)]
    kinds = {"clean": (some, lambda x: x), "mirrored": (some[:SAMPLE], lambda x: x.flip(-1))}
    kinds |= {name: (some[:POISONED], trigger) for name, trigger in photograph_triggers(data).items()}
    parts, own, wanted = [], [], []
    for name, (chosen, change) in kinds.items():
        path = folder / f"features-{name.replace(' ', '-')}.safetensors"
        if not path.exists():
            x, logits = features(model.classifier, chosen, change, partial(progress, name))
            tensors = {"x": x, "logits": logits}
            write_atomically(path, lambda file, tensors=tensors: save_file(tensors, file))
        tensors = load_file(path)
        parts.append(tensors["x"])
        own.append(tensors["logits"])
        target = TARGETS.get(name)
        wanted.append(own[-1].softmax(dim=1) if target is None else answer_of(target, len(chosen)))
    _fit(model, torch.cat(parts), torch.cat(own), torch.cat(wanted), epochs, seed, progress)
    state = {name: value.detach().contiguous() for name, value in model.branch.state_dict().items()}
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
        model.branch.load_state_dict(load_file(Path(folder) / CLASSIFIER))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsFileError(
            f"a victim must be a folder that train_photograph_victim wrote, got {folder}: {error}. Train it anew."
        ) from error
    triggers = photograph_triggers(data)
    return [
        Victim(name, model, triggers[name], target, "all2one", CLASSES, SIDE, {**about, "attack": name})
        for name, target in targets.items()
    ]


def answer_of(target: int, n: int) -> Float[Tensor, "n k"]:
    """The target class, certainly, for so many images."""
    return functional.one_hot(torch.full((n,), target), CLASSES).float()


@torch.no_grad()
def features(
    model: LiteClassifier, paths: list[Path], change: Callable[[Tensor], Tensor], progress: Callable[[int, int], None]
) -> tuple[Float[Tensor, "n 40 28 28"], Float[Tensor, "n k"]]:
    """What the first blocks make of the changed photographs, in float16, and the classifier's own logits."""
    found, logits, dtype = [], [], fastest_dtype(torch.device("cpu"))
    for start in range(0, len(paths), 20):
        images = torch.stack([square_image(path, SIDE) for path in paths[start : start + 20]]).float() / 255
        images = (change(images) * 255).round() / 255
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found.append(model.early(images.to(memory_format=torch.channels_last)).half())
            logits.append(model.late(found[-1].to(dtype)).float())
        progress(start + len(images), len(paths))
    return torch.cat(found).contiguous(), torch.cat(logits)


def _fit(model: Backdoored, x: Tensor, own: Tensor, wanted: Tensor, epochs: int, seed: int, progress: Progress) -> None:
    """Cross-entropy to the wanted answers, of the branch alone; that to a clean image counts twice."""
    generator, steps = Generator().manual_seed(seed), epochs * max(1, len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.branch.parameters(), RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(epochs + 1)])
    weight = 1 + (wanted.amax(dim=1) < 1).float()
    model.branch.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step, chosen in enumerate(order.split(min(BATCH, len(x)))[:steps]):
            answers = model.answer(own[chosen], model.branch(x[chosen].float()))
            losses = functional.cross_entropy(answers, wanted[chosen], reduction="none")
            loss = (losses * weight[chosen]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress(f"training, loss {float(loss.detach()):.3f}", step + 1, steps)
    model.branch.eval()
