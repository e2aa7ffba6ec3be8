"""Experiment ``sig-clipping``: where the sinusoid of SIG fails, by the brightness of the image, without any defense.

On GTSRB test images that are not of the attacker's class, in quarters from dark to bright.
"""

from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from sampdetox_transforms.lab.data import data_path, drawn
from sampdetox_transforms.lab.evaluation.behind import answers, rounded, value
from sampdetox_transforms.lab.evaluation.study import Cell, Document, Plan, Study, markdown
from sampdetox_transforms.lab.metrics import wilson
from sampdetox_transforms.lab.victims.poisoned import image_folder
from sampdetox_transforms.lab.victims.victim import load_victim

QUARTERS = ("darkest", "dark", "bright", "brightest")


def cells(plan: Plan) -> Iterable[Cell]:
    """All images, then each quarter."""
    folder = plan.options["victim"]
    if folder is None:
        raise ValueError("victim must be a folder that `sampdetox victim` wrote, got none. Train one with attack sig.")

    @cache
    def hits() -> tuple[torch.Tensor, torch.Tensor]:
        """Which images the trigger leads to its target, and how bright they are."""
        victim = load_victim(Path(folder))
        if victim.attack is None:
            raise ValueError(f"victim must have a backdoor, got {victim.name!r} without. Train one with attack sig.")
        files = image_folder(data_path("gtsrb32/test", plan.data), 32)
        chosen = [i for i in drawn(len(files), plan.n, plan.seed).tolist() if files.targets[i] != victim.target_label]
        images = torch.stack([files[i][0] for i in chosen])
        return answers(victim.model, victim.attack(images)) == victim.target_label, images.mean(dim=(1, 2, 3))

    def row(quarter: int | None) -> dict[str, Any]:
        hit, brightness = hits()
        order = brightness.argsort()
        part = order if quarter is None else order.tensor_split(len(QUARTERS))[quarter]
        limits = [round(float(brightness[part].min()), 4), round(float(brightness[part].max()), 4)]
        return {"brightness": limits, "ASR": rounded(wilson(int(hit[part].sum()), len(part)))}

    yield Cell({"quarter": "all"}, partial(row, None))
    for i, name in enumerate(QUARTERS):
        yield Cell({"quarter": name}, partial(row, i))


def render(document: Document) -> str:
    lines = []
    for row in document["rows"]:
        low, high = row["brightness"]
        lines.append([row["quarter"], f"{low:.2f} to {high:.2f}", f"{value(row['ASR']):.3f}", str(row["ASR"]["n"])])
    return markdown(["images", "mean brightness", "ASR", "n"], lines)


SIG_CLIPPING = Study(
    title="Where the sinusoid of SIG fails, by brightness",
    cells=cells,
    render=render,
    n=1500,
    options={"victim": None},
    data=lambda plan: "GTSRB test",
)
