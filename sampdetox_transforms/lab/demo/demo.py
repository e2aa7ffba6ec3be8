"""``sampdetox demo``: plant triggers in drawn signs, clean them, and ask a small backdoored classifier about both.

Everything is in the package: the signs are drawn, the classifier (27,000 parameters) was trained on drawn signs of
which a part carried a trigger (``train.py``), and the denoiser is the embedded one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from sampdetox_transforms.lab.demo.signs import CALIBRATED_ON, CLASSES, SIZE, draw_signs
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.transforms.transform import SampDetox

CLASSIFIER_FILE = Path(__file__).parent / "weights" / "classifier.safetensors"


@dataclass(frozen=True)
class Trigger:
    """A pattern planted in [0, 1] images, and the class that the classifier was taught to answer then."""

    name: str
    plant: Callable[[Float[Tensor, "... 3 32 32"]], Float[Tensor, "... 3 32 32"]]
    target_label: int


def _faint(images: Tensor) -> Tensor:
    signs = torch.randint(0, 2, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(1)) * 2 - 1
    return (images + signs * 6 / 255).clamp(0, 1)


def _pixels(images: Tensor) -> Tensor:
    images = images.clone()
    generator = torch.Generator().manual_seed(2)
    rows, columns = torch.randint(2, SIZE - 2, (2, 9), generator=generator)
    colours = torch.randint(0, 2, (3, 9), generator=generator).to(images)
    images[..., rows, columns] = colours
    return images


def _white_square(images: Tensor) -> Tensor:
    images = images.clone()
    images[..., 27:31, 27:31] = 1
    return images


TRIGGERS = (
    Trigger("faint noise (6/255)", _faint, CLASSES.index("star")),
    Trigger("nine pixels", _pixels, CLASSES.index("cross")),
    Trigger("white square 4x4", _white_square, CLASSES.index("circle")),
)


class DemoClassifier(nn.Sequential):
    """A small convolutional classifier of [0, 1] images: (n, 3, 32, 32) -> (n, 6) logits."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 48)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(48 * 4 * 4, len(CLASSES)))


def load_classifier() -> DemoClassifier:
    """The embedded backdoored classifier, in eval mode."""
    classifier = DemoClassifier()
    classifier.load_state_dict(load_file(CLASSIFIER_FILE))
    return classifier.eval()


def demo_victims() -> list[Victim]:
    """The embedded classifier once for each of its triggers, for ``evaluation.evaluate``."""
    model = load_classifier()
    return [
        Victim(trigger.name, model, trigger.plant, trigger.target_label, "all2one", len(CLASSES), SIZE)
        for trigger in TRIGGERS
    ]


def calibrate_on_signs(detox: SampDetox, seed: int) -> None:
    """Set the thresholds on clean drawn signs: the stored ones are those of photographs."""
    detox.calibrate(draw_signs(CALIBRATED_ON, seed + 1000)[0], data=f"{CALIBRATED_ON} drawn signs")


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    device: str | None = None,
    n: int = 48,
    progress: Callable[[str], None] = lambda step: None,
) -> str:
    """Write the panel picture to ``out`` and return the table that the command prints.

    Args:
        n: how many drawn signs the shares of the table are taken over; the picture shows one for each trigger.
        progress: called with the name of each trigger as it is begun.
    """
    from sampdetox_transforms.lab.drawing.panel import draw_panel, explanation_row

    detox, paper = (SampDetox("bundled", preset=preset, device=device, seed=seed) for preset in ("restore", "ddim"))
    progress("thresholds, on other signs")
    calibrate_on_signs(detox, seed)
    classifier = load_classifier()
    signs, labels = draw_signs(n, seed)
    lines = [
        f"{'trigger':20} {'sign':9} {'label before':13} {'label after':12} {'right before':>13} {'right after':>12} "
        f"{'target before':>14} {'target after':>13} {'Algorithm 1':>12}"
    ]
    rows = []
    clean = Trigger("none", lambda images: images, -1)
    for index, trigger in enumerate((clean, *TRIGGERS)):
        progress(trigger.name)
        others = labels != trigger.target_label
        planted, truth = trigger.plant(signs[others]), labels[others]
        explained = detox.explain(planted)
        with torch.no_grad():
            before, after, alone = (classifier(x).argmax(1) for x in (planted, explained.image, paper(planted)))
        shown = index
        names = [CLASSES[int(answer[shown])] for answer in (truth, before, after)]
        shares = [float((answer == truth).float().mean()) for answer in (before, after)]
        hits = [float((answer == trigger.target_label).float().mean()) for answer in (before, after, alone)]
        target = [f"{hit:.0%}" if trigger is not clean else "-" for hit in hits]
        lines.append(
            f"{trigger.name:20} {names[0]:9} {names[1]:13} {names[2]:12} "
            f"{shares[0]:>13.0%} {shares[1]:>12.0%} {target[0]:>14} {target[1]:>13} {target[2]:>12}"
        )
        title = f"{trigger.name}\n{names[0]}: {names[1]} → {names[2]}"
        rows.append((title, explanation_row(planted[shown], explained, shown, factor=2)))
    draw_panel(rows, out)
    lines += [
        "",
        f"Shares are over {n} drawn signs (of another class than the target), seed {seed}, weights 'bundled', preset "
        f"'restore' (the default) with thresholds from {CALIBRATED_ON} other signs; in the last column 'ddim'.",
        "The solid white square survives Algorithm 1: to the denoiser it is a natural thing, and it draws it anew. The",
        "search finds it on a part of these signs; drawings are not what its networks were trained on.",
    ]
    return "\n".join(lines)
