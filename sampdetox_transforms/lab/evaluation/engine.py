"""Victims x defenses -> CA, PA, ASR, time and network calls, one JSON file, from which the tables are made.

Any callable from images to images is a defense, any callable from images to logits a model. An interrupted run goes
on at the first row that its file lacks.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from sampdetox_transforms.lab.attacks.items import read_labels
from sampdetox_transforms.lab.attacks.triggered import TriggeredDataset
from sampdetox_transforms.lab.evaluation.measure import CleanAndTriggered, measure_row
from sampdetox_transforms.lab.evaluation.report import Report
from sampdetox_transforms.lab.evaluation.rows import Column, RobustnessRow
from sampdetox_transforms.lab.metrics import predicted, robustness, visibility
from sampdetox_transforms.lab.victims.classifiers import predict
from sampdetox_transforms.lab.victims.victim import Victim, materialise


def evaluate(
    victims: Sequence[Victim],
    defenses: Sequence[Column],
    dataset: Any,
    *,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[str, str, int, int], None] = lambda victim, defense, done, total: None,
) -> "Report":
    """Measure every defense on every victim, on the same test images.

    CA is taken on ``n`` images of the data set, drawn with ``seed``; PA and ASR on those of them that are not of the
    attacker's class, with the trigger. Defenses that draw random numbers should be seeded for results that hold.

    Args:
        dataset: test images with labels, such as ``victims.image_folder(folder, 32)``.
        n: None for all images.
        batch_size: how many images a defense gets at once.
        out: a JSON file that gains each row as it is measured. Rows that it has already are not measured again.
        about: further settings to store in it, such as the data's name and the command.
        progress: called with the names of victim and defense, images done, and images in all, in this row.

    Returns:
        all rows with settings and environments; those of the file first.

    Raises:
        ValueError: two victims or defenses of one name; a file of another run; a model in training mode, or with
            another number of classes; a defense that changes the images' shape or leaves [0, 1].
        OSError: a file that cannot be written, before any work.
    """
    for what, names in (("victims", [v.name for v in victims]), ("defenses", [d.name for d in defenses])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise ValueError(f"{what} must have different names, and be there, got {twice or 'none'}. Name each.")
    training = [v.name for v in victims if isinstance(v.model, nn.Module) and v.model.training]
    if training:
        raise ValueError(f"models must be in eval mode, got training mode in {training}. Call model.eval().")
    labels = read_labels(dataset)
    if n is not None and not 1 <= n <= len(labels):
        raise ValueError(f"n must be in [1, {len(labels)}], the number of test images, got {n}. Leave it out for all.")
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:n]
    report = Report(out, {"n": len(chosen), "seed": seed, "test_images": len(labels), **(about or {})}, device)
    for victim in victims:
        todo = [defense for defense in defenses if (victim.name, defense.name) not in report.done]
        if todo:
            data = CleanAndTriggered.of(victim, dataset, chosen, device)
            for defense in todo:
                report.add(measure_row(victim, defense, data, batch_size, device, progress))
    return report


def evaluate_robustness(
    victims: Sequence[Victim],
    dataset: Any,
    *,
    n: int = 50,
    draws: int = 5,
    steps: int = 8,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[str, str, int, int], None] = lambda victim, what, done, total: None,
) -> list[RobustnessRow]:
    """Visibility and robustness (section 3.1) of ``n`` triggered test images of each victim.

    eta_r is the mean over ``draws`` noise draws of the bisection that ``metrics.robustness`` describes, in ``steps``
    halvings, with images in [-1, 1].

    Raises:
        ValueError: a victim without a backdoor; n out of range.
    """
    labels = read_labels(dataset)
    if not 1 <= n <= len(labels):
        raise ValueError(f"n must be in [1, {len(labels)}], the number of test images, got {n}. Lower it.")
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:n]
    rows = []
    for i, victim in enumerate(victims):
        if victim.mode == "composite" or victim.attack is None:
            raise ValueError(
                f"robustness needs a trigger on one image, got {victim.name!r} of another kind. Leave it out."
            )
        part = Subset(dataset, chosen.tolist())
        triggered = victim.triggered(part)
        assert isinstance(triggered, TriggeredDataset)
        clean = materialise(part)[0][triggered.indices]
        images = triggered.materialise()[0]
        model = victim.model
        eta = robustness(
            lambda x, model=model: model((x + 1) / 2),
            (images * 2 - 1).to(device),
            triggered.attacker_labels.to(device),
            draws=draws,
            steps=steps,
            generator=torch.Generator().manual_seed(seed),
        )
        hits = predicted(predict(model, images.to(device))).cpu() == triggered.attacker_labels
        rows.append(
            RobustnessRow(
                victim.name,
                victim.about.get("attack", victim.name),
                [round(v, 5) for v in visibility(clean, images).tolist()],
                [round(v, 5) for v in eta.mean(dim=1).tolist()],
                float(hits.float().mean()),
            )
        )
        progress(victim.name, "robustness", i + 1, len(victims))
    return rows
