"""Experiment ``shared-relabel``: a poisoned training set, its trigger recovered from a sample, a classifier retrained.

Some hundred training images are looked at by the default, the trigger that they share is recovered, and all images are
matched with it, which takes no network. Ways, all tested on images that are not purified:
- as it is: trained on all images.
- left out: trained on those that do not match.
- cleaned: trained on all, the trigger taken out of those that match. Their labels stay, and are the attacker's.
Beside them stands the classifier that is stored with the victim. Images are kept in 8 bits, as a data set is.
"poison_rate" poisons another share of the images than the victim's own training set has, with the same trigger.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sampdetox_transforms.lab.evaluation.behind import rounded
from sampdetox_transforms.lab.evaluation.relabel import images_for_testing, in_percent, shares, trained
from sampdetox_transforms.lab.evaluation.shared_trigger import correlation
from sampdetox_transforms.lab.evaluation.study import Cell, Document, Plan, Study, markdown
from sampdetox_transforms.lab.evaluation.training_sets import digest, drawn_from, poisoned_set, stored_config, weights
from sampdetox_transforms.lab.metrics import wilson
from sampdetox_transforms.lab.victims.config import VictimConfig
from sampdetox_transforms.lab.victims.victim import load_victim
from sampdetox_transforms.transforms.shared_recovery import recover_trigger
from sampdetox_transforms.transforms.transform import SampDetox

STORED, AS_IT_IS, LEFT_OUT, CLEANED = "stored classifier", "as it is", "left out", "cleaned"

OPTIONS: dict[str, Any] = {
    "victims": (),
    "sample": 400,
    "limit": None,
    "epochs": None,
    "retrain": True,
    "poison_rate": None,
    "work": Path("runs/shared-relabel"),
}


def cells(plan: Plan) -> Iterable[Cell]:
    """A row for each victim."""
    options = plan.options
    if not options["victims"]:
        raise ValueError("victims must be folders that `sampdetox victim` wrote, got none. Name them.")
    folders = [Path(folder) for folder in options["victims"]]
    configs = [  # refuses before any work
        replace(stored, poison_rate=options["poison_rate"] or stored.poison_rate)
        for stored in (stored_config(folder, options["epochs"], plan.data) for folder in folders)
    ]
    detox = plan.detox("restore")
    for folder, config in zip(folders, configs, strict=True):
        yield Cell({"victim": folder.name}, partial(measure, folder, config, detox, plan))


def measure(folder: Path, config: VictimConfig, detox: SampDetox, plan: Plan) -> dict[str, Any]:
    """One row: what was found, and CA and ASR of each way."""
    victim, options = load_victim(folder), plan.options
    asked = (options["limit"], options["sample"], options["poison_rate"])
    made_of = digest(repr((victim.about, *asked, plan.seed)), *weights(detox))
    work = Path(options["work"]) / f"{folder.name}-{made_of}"
    work.mkdir(parents=True, exist_ok=True)
    images, labels, _, poisoned = poisoned_set(folder, config, work, plan.progress)
    chosen = drawn_from(len(images), options["limit"], plan.seed)
    images, labels, poisoned = (images[chosen] * 255).round().to(torch.uint8), labels[chosen], poisoned[chosen]

    sample = drawn_from(len(images), options["sample"], plan.seed + 1)
    trigger = recover_trigger(images[sample], detox)
    row: dict[str, Any] = {"training images": len(images), "poisoned": int(poisoned.sum()), "looked at": len(sample)}
    found = trigger is not None
    row |= {"poisoned looked at": int(poisoned[sample].sum()), "found": found, "correlation": None}
    tests = images_for_testing(victim, config, plan.n, plan.seed)
    matched, clean = torch.zeros(len(images), dtype=torch.bool), images
    if trigger is not None:
        matched = torch.cat([trigger.matches(part) for part in images.split(1024)])
        others = tests.labels != victim.target_label
        if tests.triggered is not None and not trigger.moves:
            sources = tests.clean[others][: len(tests.triggered)]
            row["correlation"] = correlation(trigger, sources, tests.triggered[: len(sources)])
        clean = images.clone()
        for index in matched.nonzero()[:, 0].split(256):
            clean[index] = trigger.remove(images[index])
    row["poisoned matched"] = rounded(wilson(int((matched & poisoned).sum()), max(1, int(poisoned.sum()))))
    row["clean matched"] = rounded(wilson(int((matched & ~poisoned).sum()), max(1, int((~poisoned).sum()))))
    row["ways"] = {STORED: shares(victim.model, tests)}
    ways = {AS_IT_IS: (images, labels), LEFT_OUT: (images[~matched], labels[~matched]), CLEANED: (clean, labels)}
    for way, (x, y) in ways.items() if options["retrain"] else ():
        place = work / way.replace(" ", "-")
        place.mkdir(exist_ok=True)
        model = trained(way, x, y, config, victim.num_classes, place, plan.progress)
        row["ways"][way] = shares(model, tests)
    return row


def render(document: Document) -> str:
    """What was found, and what a classifier learns from the rest."""
    rows = document["rows"]
    head = ["victim", "training images", "poisoned", "of them looked at", "found", "poisoned matched", "clean matched"]
    lines = [
        [
            *(row["victim"], str(row["training images"]), str(row["poisoned"])),
            f"{row['poisoned looked at']} of {row['looked at']}",
            "yes" if row["found"] else "no",
            *(in_percent(row[name]) for name in ("poisoned matched", "clean matched")),
        ]
        for row in rows
    ]
    trained_on = [
        [row["victim"], way, in_percent(found["CA"]), in_percent(found["ASR"])]
        for row in rows
        for way, found in row["ways"].items()
    ]
    said = "Shares in %, with 95 % intervals (Wilson); CA and ASR on test images that are not purified."
    return "\n\n".join([markdown(head, lines), markdown(["victim", "trained on", "CA", "ASR"], trained_on), said])


SHARED_RELABEL = Study(
    title="A poisoned training set: its trigger recovered, a classifier retrained",
    cells=cells,
    render=render,
    n=2000,
    dtype=None,
    options=OPTIONS,
    data=lambda plan: "test images of the victims' data",
)
