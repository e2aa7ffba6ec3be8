"""Train classifiers with a backdoor, to measure defenses on: poison an image folder, train, save.

Training is shorter than BackdoorBench's (SGD, 100 epochs, crops padded by 4): AdamW with a one-cycle learning rate,
smaller crops and few epochs, so that the narrow network takes minutes on two processor cores.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.victims.augmentation import augmented
from sampdetox_transforms.lab.victims.classifiers import build_classifier
from sampdetox_transforms.lab.victims.config import ABOUT, CLASSIFIER, VictimConfig
from sampdetox_transforms.lab.victims.poisoned import Covers, Images, image_folder, poisoned_tensors
from sampdetox_transforms.lab.victims.victim import Victim, load_victim, materialise
from sampdetox_transforms.networks.precision import has_fast_bf16
from sampdetox_transforms.training.state import STATE, TrainingState


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
    images, targets, covers = poisoned_tensors(config, dataset, out, device, progress)
    fit(model, images, targets, config, out / STATE, covers=covers, device=device, progress=progress)
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
    covers: Covers | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[str, int, int, float], None] = lambda what, done, total, loss: None,
) -> None:
    """Train a classifier in place, with what ``config`` says of training; poisoned or not is the images' affair.

    Args:
        state: file that each epoch is saved in, and that a killed run goes on from; it stays there.
        covers: the cover images of an epoch, by its number, where they are drawn anew.
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
        if covers is not None:
            images[covers.indices] = covers.of_epoch(epoch).to(images)
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


def batches(
    images: Tensor, config: VictimConfig, generator: torch.Generator
) -> Iterator[tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]]:
    """One epoch in random order: augmented images, and their indices."""
    for chosen in torch.randperm(len(images), generator=generator).split(config.batch_size):
        yield augmented(images[chosen], config, generator), chosen


def one_cycle(share: float) -> float:
    """The share of the learning rate after a share of the steps: linear up over the first fifth, then down to 0."""
    return share / 0.2 if share < 0.2 else (1 - share) / 0.8
