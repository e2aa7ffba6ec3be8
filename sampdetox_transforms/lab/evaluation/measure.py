"""One row: CA, PA, ASR, time and network calls of a defense before a victim."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Subset

from sampdetox_transforms.lab.defenses.carn import CarnM
from sampdetox_transforms.lab.evaluation.rows import Column, Images, Model, Row
from sampdetox_transforms.lab.metrics import backdoor_shares, predicted, wilson
from sampdetox_transforms.lab.victims.classifiers import predict
from sampdetox_transforms.lab.victims.victim import Victim, materialise
from sampdetox_transforms.networks.denoiser import Denoiser
from sampdetox_transforms.networks.light_denoiser import LightDenoiser


@dataclass(frozen=True)
class CleanAndTriggered:
    """The test images of one victim; ``triggered`` is None for a classifier without a backdoor."""

    clean: Images
    labels: Int[Tensor, " n"]
    triggered: Float[Tensor, "m c h w"] | None = None
    targets: Int[Tensor, " m"] | None = None
    attacker_labels: Int[Tensor, " m"] | None = None
    second_targets: Int[Tensor, " m"] | None = None  # of the composite attack, whose images show two classes

    @classmethod
    def of(cls, victim: Victim, dataset: Any, chosen: Tensor, device: str | torch.device) -> "CleanAndTriggered":
        part = Subset(dataset, chosen.tolist())
        images, labels = materialise(part)
        if victim.attack is None and victim.mode != "composite":
            return cls(images.to(device), labels)
        # The composite attack joins images of two classes, of which a small part of the data may have none.
        source = dataset if victim.mode == "composite" else part
        triggered = victim.triggered(source)
        wrong, targets = triggered.materialise()
        keep = slice(0, len(chosen))
        second = getattr(triggered, "second_targets", None)
        return cls(
            images.to(device),
            labels,
            wrong[keep].to(device),
            targets[keep],
            triggered.attacker_labels[keep],
            None if second is None else second[keep],
        )


def measure_row(
    victim: Victim,
    defense: Column,
    data: CleanAndTriggered,
    batch_size: int,
    device: str | torch.device,
    progress: Callable[[str, str, int, int], None],
) -> Row:
    """One cell of the table."""
    model = Counted(victim.model)
    apply = defense.build(model)
    limit = defense.n
    clean, labels = data.clean[:limit], data.labels[:limit]
    triggered = None if data.triggered is None else data.triggered[:limit]
    total = len(clean) + (0 if triggered is None else len(triggered))

    def run(images: Images, first: int) -> tuple[Tensor, float, float]:
        """Predictions behind the defense, its seconds, and its denoiser's calls."""
        results, begin = [], time.perf_counter()
        with counted_denoiser(apply) as calls:
            for chunk in images.split(batch_size):
                results.append(apply(chunk.clone()))
                check_result(defense.name, chunk, results[-1])
                progress(victim.name, defense.name, first + sum(map(len, results)), total)
            if images.device.type == "cuda":
                torch.cuda.synchronize(images.device)
        seconds = time.perf_counter() - begin
        outputs = predict(victim.model, torch.cat(results))
        return predicted(outputs, victim.num_classes).cpu(), seconds, calls[0]

    classes, seconds, calls = run(clean, 0)
    seconds_all, calls_all, calls_triggered = seconds, calls, None
    if triggered is None:
        found = backdoor_shares(classes, labels, num_classes=victim.num_classes)
    else:
        assert data.targets is not None and data.attacker_labels is not None
        answers, seconds, calls_triggered = run(triggered, len(clean))
        seconds_all, calls_all = seconds_all + seconds, calls_all + calls_triggered
        targets, wanted = data.targets[:limit], data.attacker_labels[:limit]
        found = backdoor_shares(classes, labels, answers, targets, wanted, victim.num_classes)
        if data.second_targets is not None:
            right = (answers == targets) | (answers == data.second_targets[:limit])
            found["PA"] = wilson(int(right.sum()), len(right))
    return Row(
        victim=victim.name,
        attack=victim.about.get("attack", victim.name),
        mode=victim.mode,
        target_label=victim.target_label,
        classifier=victim.about.get("classifier", ""),
        robust_noise=victim.about.get("robust_noise", 0.0),
        defense=defense.name,
        settings={**defense.settings, **getattr(apply, "chosen", {})},
        access=defense.access,
        ca=found["CA"],
        pa=found.get("PA"),
        asr=found.get("ASR"),
        ms_per_image=seconds_all / total * 1000,
        denoiser_calls=calls_all / total,
        denoiser_calls_clean=calls / len(clean),
        denoiser_calls_triggered=None if triggered is None else (calls_triggered or 0) / len(triggered),
        classifier_calls=model.images / total,
    )


class Counted(nn.Module):
    """A model that counts the images it is asked about."""

    def __init__(self, model: Model):
        super().__init__()
        self.model, self.images = model, 0
        self.training = False  # as its model, which evaluate checks

    def forward(self, images: Images) -> Tensor:
        self.images += len(images)
        return self.model(images)


@contextmanager
def counted_denoiser(defense: Any) -> Iterator[list[int]]:
    """Count the images that go through the denoisers within a defense that is a module, as the list's one number.

    The network that Lite-BD has in a denoiser's place counts as one.
    """
    calls = [0]

    def count(module: nn.Module, inputs: tuple) -> None:
        calls[0] += len(inputs[0])

    counted = (Denoiser, LightDenoiser, CarnM)
    found = [m for m in defense.modules() if isinstance(m, counted)] if isinstance(defense, nn.Module) else []
    hooks = [module.register_forward_pre_hook(count) for module in found]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def check_result(name: str, images: Tensor, result: Any) -> None:
    """Raise unless a defense returned images of the shape that it was given, in [0, 1]."""
    if not isinstance(result, Tensor):
        raise TypeError(f"a defense must return a tensor, got {type(result).__name__} from {name!r}. Return images.")
    if result.shape != images.shape:
        raise ValueError(
            f"a defense must keep the images' shape {tuple(images.shape)}, got {tuple(result.shape)} from {name!r}. "
            "Resize the result."
        )
    low, high = float(result.min()), float(result.max())
    if not (low >= -1e-5 and high <= 1 + 1e-5):  # NaN fails both
        raise ValueError(
            f"a defense must return images in [0, 1], got values in [{low:.4g}, {high:.4g}] from {name!r}. "
            "Undo a normalisation; clamp."
        )
