"""Train classifiers with a backdoor, to measure defenses on: poison an image folder, train, save.

Training is shorter than BackdoorBench's (SGD, 100 epochs, crops padded by 4): AdamW with a one-cycle learning rate,
smaller crops and few epochs, so that the narrow network takes minutes on two processor cores.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.datasets import ImageFolder

from sampdetox_transforms.attacks.composite import CompositeDataset, CompositePairs
from sampdetox_transforms.attacks.low_frequency import load_pattern
from sampdetox_transforms.attacks.poisoning import (
    Attack,
    PoisonedDataset,
    TriggeredDataset,
    load_trigger,
    read_labels,
    stack_images,
    unit_image,
)
from sampdetox_transforms.attacks.recipes import CLEAN, COMPOSITE, RECIPES, Preparation, get_recipe
from sampdetox_transforms.checkpoints import WeightsFileError, write_atomically
from sampdetox_transforms.classifiers import CLASSIFIERS, build_classifier, predict
from sampdetox_transforms.metrics import Share, accuracy, attack_success, predicted
from sampdetox_transforms.names import check_choice
from sampdetox_transforms.precision import has_fast_bf16
from sampdetox_transforms.training import STATE, TrainingState

CLASSIFIER, POISONING, ABOUT = "classifier.safetensors", "poisoning.safetensors", "victim.json"
COMPOSITE_SETTINGS = {"first": 0, "second": 1}  # the two classes that the composite attack joins


@dataclass(frozen=True, kw_only=True)
class VictimConfig:
    """Everything that a victim depends on; saved beside it.

    Attributes:
        data: an image folder, a subfolder for each class.
        attack: a name of ``RECIPES``, "composite" (CBA), or "none" for a classifier without a backdoor.
        target_label: the attacker's class, an index into the folder's sorted classes; None with mode "all2all".
        poison_rate, mode: as for ``PoisonedDataset``; None for the attack's own.
        settings: changes to the attack's own settings, by name; for "composite" the classes "first" and "second".
        robust_noise: the paper's adaptive attacks (D.4): a share eta of noise in half of the training images,
            (1 - eta) x + eta n with x in [-1, 1], drawn anew in each epoch, poisoned or not: in the poisoned ones
            alone the noise would become the trigger, and the attacker's own would not work without it.
        classifier: a name of ``CLASSIFIERS``.
        size: height and width that all images are resized to, in pixels.
        crop: padding in pixels of the random crops; 0 for none. BackdoorBench's 4 cuts a 3x3 patch in a corner off two
            images in three, which then have a wrong label and no trigger: it needs its 100 epochs.
        flip: mirror half of the images; wrong for signs and letters.
        surrogate: folder of a victim with attack "none" on the same data, for triggers that are optimised on one.
        picture: an image file, for the attacks that take one; for "low-frequency" a ready pattern as a .npy file.
        bf16: None uses bfloat16 where the processor or card has it.
    """

    data: str
    attack: str = "badnets"
    target_label: int | None = 0
    poison_rate: float | None = None
    mode: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    robust_noise: float = 0.0
    classifier: str = "preact-resnet18-narrow"
    size: int = 32
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    crop: int = 1
    flip: bool = False
    seed: int = 0
    surrogate: str | None = None
    picture: str | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        check_choice("attack", self.attack, (*RECIPES, COMPOSITE, CLEAN))
        check_choice("classifier", self.classifier, tuple(CLASSIFIERS))
        for name in ("size", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}. Leave it out for the default.")
        if self.poison_rate is not None and not 0 < self.poison_rate <= 1:
            raise ValueError(f"poison_rate must be in (0, 1], got {self.poison_rate}. It is a share: 0.1 is a tenth.")
        if not 0 <= self.robust_noise < 1:
            raise ValueError(f"robust_noise must be in [0, 1), got {self.robust_noise}. The paper tries 0 to 0.3.")
        if not 0 <= self.crop < self.size:
            raise ValueError(f"crop must be in [0, size), got {self.crop} for size {self.size}. 1 suits 32 pixels.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"learning_rate must be above 0 and weight_decay 0 or more, got {self.learning_rate} and "
                f"{self.weight_decay}. Leave them out for the defaults."
            )
        if self.attack in RECIPES:
            recipe = RECIPES[self.attack]
            recipe.with_defaults(self.settings)
            ready = self.attack == "low-frequency" and self.picture is not None
            if recipe.surrogate and self.surrogate is None and not ready:
                raise ValueError(
                    f"surrogate must be given for {self.attack!r}, which is optimised on a clean classifier, got none. "
                    "Train one with attack 'none' on the same data first."
                )


@dataclass(frozen=True)
class Victim:
    """A backdoored classifier, and all that its test needs.

    Attributes:
        name: what tables call it.
        model: images (b, c, h, w) in [0, 1] to logits (b, k), in eval mode.
        attack: puts on test images the trigger that the classifier was trained on; None without a backdoor.
        target_label, mode, num_classes: as for ``PoisonedDataset``; mode "composite" for CBA.
        size: height and width of its images, in pixels; None for any.
        about: the settings that it was made with.
    """

    name: str
    model: Callable[[Tensor], Tensor]
    attack: Attack | None
    target_label: int | None
    mode: str
    num_classes: int
    size: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def triggered(self, dataset: Any, seed: int = 0) -> TriggeredDataset | CompositePairs:
        """The test images with the trigger, without those of the target class: the data of PA and ASR.

        Raises:
            ValueError: a classifier without a backdoor, or what the data set refuses.
        """
        if self.mode == COMPOSITE:
            assert self.target_label is not None
            return CompositePairs(dataset, composite_classes(self.about), self.target_label, n=len(dataset), seed=seed)
        if self.attack is None:
            raise ValueError(f"a victim must have a backdoor to be triggered, got {self.name!r} without. Measure CA.")
        return TriggeredDataset(dataset, self.attack, self.target_label, self.mode, self.num_classes)


def image_folder(folder: str | Path, size: int | None = None) -> ImageFolder:
    """An image folder as RGB images in [0, 1], all ``size`` x ``size`` where a size is given.

    Raises:
        OSError: no such folder.
        ValueError: a folder without classes or images.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"the data must be a folder with a subfolder for each class, got {folder}. Check it.")

    def transform(image: Image.Image) -> Tensor:  # ImageFolder gives RGB
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return unit_image(image)

    try:
        return ImageFolder(str(folder), transform)
    except FileNotFoundError as error:
        raise ValueError(f"each class must be a subfolder with images, got {folder}: {error}. Check it.") from error


def composite_classes(about: Mapping[str, Any]) -> tuple[int, int]:
    """The two classes that the composite attack joins."""
    chosen = {**COMPOSITE_SETTINGS, **about.get("settings", {})}
    return chosen["first"], chosen["second"]


def materialise(dataset: Any) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """All images of a data set in [0, 1], and all labels."""
    return stack_images(dataset, torch.arange(len(dataset))), read_labels(dataset)


class Images(torch.utils.data.Dataset):
    """Images and labels in memory, as a data set with ``targets`` and ``classes``."""

    def __init__(self, images: Tensor, targets: Tensor, classes: list[str]):
        self.images, self.targets, self.classes = images, targets, classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])


def train_victim(
    config: VictimConfig,
    out: str | Path,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[str, int, int, float], None] = lambda what, done, total, loss: None,
) -> Victim:
    """Poison, train, save: ``out`` gains the classifier, the trigger with the poisoned indices, and the settings.

    A killed run goes on from its last epoch when it is started again with the same settings; the result is the same
    as without the kill, on the same machine.

    Args:
        progress: called with what is being done ("trigger" or "epochs"), steps done, steps in all, and the loss.

    Raises:
        ValueError: settings that do not fit the data, or a folder that holds another victim.
        OSError: data that cannot be read, or ``out`` that cannot be written.
    """
    out, device = Path(out), torch.device(device)
    if (out / ABOUT).exists():
        raise ValueError(f"out must be a new folder, or that of an unfinished run, got the victim {out}. Name another.")
    out.mkdir(parents=True, exist_ok=True)
    folder = image_folder(config.data, config.size)
    num_classes = len(folder.classes)
    dataset = Images(*materialise(folder), folder.classes)
    model = new_classifier(config, num_classes).to(device)
    images, targets = poisoned_tensors(config, dataset, out, device, progress)
    fit(model, images, targets, config, out / STATE, device=device, progress=progress)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(out / CLASSIFIER, lambda path: save_file(weights, path))
    about = {**asdict(config), "data": "/".join(Path(config.data).parts[-2:]), "classes": folder.classes}
    about |= {name: Path(about[name]).name for name in ("surrogate", "picture") if about[name]}
    write_atomically(out / ABOUT, lambda path: path.write_text(json.dumps(about, indent=2) + "\n"))
    (out / STATE).unlink(missing_ok=True)
    return load_victim(out, device=device)


def new_classifier(config: VictimConfig, num_classes: int) -> nn.Module:
    """The classifier with the random weights that the seed draws from torch's own generator, which it sets.

    Cover images of WaNet are drawn from there next: ``poisoned_tensors`` gives the same again only after this.
    """
    torch.manual_seed(config.seed)
    model = build_classifier(config.classifier, num_classes)
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def fit(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    targets: Int[Tensor, " n"],
    config: VictimConfig,
    state: Path,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[str, int, int, float], None] = lambda what, done, total, loss: None,
) -> None:
    """Train a classifier in place, with what ``config`` says of training; poisoned or not is the images' affair.

    Args:
        state: file that each epoch is saved in, and that a killed run goes on from; it stays there.
        progress: as for ``train_victim``.

    Raises:
        ValueError: a ``state`` of other settings.
    """
    device = torch.device(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay)
    training = TrainingState(state, json.dumps(asdict(config), sort_keys=True), model, optimizer)
    losses = training.load()
    bf16 = has_fast_bf16(device) if config.bf16 is None else config.bf16
    per_epoch = -(-len(images) // config.batch_size)
    total = config.epochs * per_epoch
    for epoch in range(len(losses) // per_epoch, config.epochs):
        model.train()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        for step, (x, chosen) in enumerate(batches(images, config, generator), start=epoch * per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * one_cycle(step / total)
            x = x.to(device, memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                outputs = model(x)
            loss = functional.cross_entropy(outputs.float(), targets[chosen].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            progress("epochs", step + 1, total, losses[-1])
        training.save(losses)


def poisoned_tensors(
    config: VictimConfig,
    dataset: Images,
    out: Path,
    device: str | torch.device = "cpu",
    progress: Callable[[str, int, int, float], None] = lambda what, done, total, loss: None,
) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """The training images and their labels as taught.

    ``out`` gains the trigger and the poisoned indices; a trigger that is there already is used, not made anew.
    """
    if config.attack == CLEAN:
        return dataset.images, dataset.targets
    num_classes = len(dataset.classes)
    if config.attack == COMPOSITE:
        rate = 0.1 if config.poison_rate is None else config.poison_rate
        classes, target_label = composite_classes(asdict(config)), config.target_label
        if target_label is None:
            raise ValueError("the composite attack must have a target label, got none. Give target_label.")
        return CompositeDataset(dataset, classes, target_label, poison_rate=rate, seed=config.seed).materialise()

    recipe = get_recipe(config.attack)
    settings = recipe.with_defaults(config.settings)
    surrogate = None
    if config.surrogate is not None:
        surrogate = load_victim(config.surrogate, device=device)
        if surrogate.attack is not None or surrogate.num_classes != num_classes:
            raise ValueError(
                f"surrogate must be a victim with attack 'none' and {num_classes} classes, got {config.surrogate}. "
                "Train one on the same data."
            )
    made = (out / POISONING).exists()
    preparation = Preparation(
        images=dataset.images,
        labels=dataset.targets,
        target_label=config.target_label,
        num_classes=num_classes,
        seed=config.seed,
        surrogate=None if surrogate is None else surrogate.model,  # pyright: ignore[reportArgumentType]
        network=partial(build_classifier, "preact-resnet18-narrow", num_classes),
        picture=None if made or config.picture is None else read_picture(config.picture),
        progress=lambda done, steps: progress("trigger", done, steps, float("nan")),
    )
    trigger = load_trigger(out / POISONING) if made else recipe.prepare(preparation, **settings)
    poisoned = PoisonedDataset(
        dataset,
        recipe.bind(trigger, **settings),
        config.target_label,
        recipe.poison_rate if config.poison_rate is None else config.poison_rate,
        recipe.mode if config.mode is None else config.mode,
        config.seed,
        num_classes,
        cover=None if recipe.cover is None else recipe.cover(trigger, **settings),
        cover_rate=recipe.cover_rate,
    )
    poisoned.save(out / POISONING, trigger=trigger)
    poison = None if recipe.poison is None else recipe.poison(preparation, trigger, **settings)
    return poisoned.materialise(poison=poison)


def batches(
    images: Tensor, config: VictimConfig, generator: torch.Generator
) -> Iterator[tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]]:
    """One epoch in random order: augmented images, and their indices."""
    for chosen in torch.randperm(len(images), generator=generator).split(config.batch_size):
        x = images[chosen]
        if config.robust_noise:
            noise = torch.randn(x.shape, generator=generator) / 2  # n beside an image in [-1, 1]; half that in [0, 1]
            noised = (1 - config.robust_noise) * (x - 0.5) + 0.5 + config.robust_noise * noise
            half = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(half[:, None, None, None], noised, x)
        if config.flip:
            mirror = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirror[:, None, None, None], x.flip(-1), x)
        yield random_crops(x, config.crop, generator), chosen


def random_crops(x: Float[Tensor, "b c h w"], padding: int, generator: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Each image, padded with zeros, cut at its own random place."""
    if padding == 0:
        return x
    height, width = x.shape[-2:]
    padded = functional.pad(x, [padding] * 4).permute(0, 2, 3, 1)
    offsets = torch.randint(2 * padding + 1, (2, len(x), 1), generator=generator)
    rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
    index = torch.arange(len(x))[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def one_cycle(share: float) -> float:
    """The share of the learning rate after a share of the steps: linear up over the first fifth, then down to 0."""
    return share / 0.2 if share < 0.2 else (1 - share) / 0.8


def load_victim(folder: str | Path, *, device: str | torch.device = "cpu") -> Victim:
    """Read what ``train_victim`` wrote.

    Raises:
        WeightsFileError: no such folder, or files of another kind.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text())
        state = load_file(folder / CLASSIFIER)
        model = build_classifier(about["classifier"], len(about["classes"]))
        model.load_state_dict(state)
        name, target_label, attack, mode = about["attack"], about["target_label"], None, COMPOSITE
        if name in RECIPES:
            recipe = get_recipe(name)
            attack = recipe.bind(load_trigger(folder / POISONING), **recipe.with_defaults(about["settings"]))
            mode = recipe.mode if about["mode"] is None else about["mode"]
        elif name == CLEAN:
            mode, target_label = "all2one", None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsFileError(
            f"a victim must be a folder that train_victim wrote, got {folder}: {error}. Was its training finished?"
        ) from error
    model.to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
    return Victim(folder.name, model, attack, target_label, mode, len(about["classes"]), about["size"], about)


def measure(victim: Victim, dataset: Any, device: str | torch.device = "cpu") -> dict[str, Share]:
    """CA, and PA and ASR where there is a backdoor, with no defense."""
    images, labels = materialise(dataset)
    result = {"CA": accuracy(predicted(predict(victim.model, images.to(device))).cpu(), labels)}
    if victim.attack is not None or victim.mode == COMPOSITE:
        triggered = victim.triggered(dataset)
        classes = predicted(predict(victim.model, triggered.materialise()[0].to(device))).cpu()
        result["PA"] = accuracy(classes, triggered.targets)
        result["ASR"] = attack_success(classes, triggered.targets, triggered.attacker_labels)
    return result


def read_picture(path: str | Path) -> Float[Tensor, "3 y x"]:
    """A user's picture as RGB in [0, 1], or the pattern in a .npy file."""
    if Path(path).suffix == ".npy":
        return load_pattern(path)
    with Image.open(path) as image:
        return unit_image(image.convert("RGB"))
