"""Experiment ``photographs``: kinds of images x triggers x defenses, from 32 to 224 pixels.

A row says how many images were flagged, how much of the trigger's pixels and of the others lie in the mask, how far
images were changed, what an ImageNet classifier says of the results, and how long that took. With a victim (see
``train_photograph_victim``) further rows have its triggers, and CA, PA and ASR.
"""

import time
import zlib
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.evaluation.behind import Treated, answers, mean, planted, rounded, treat, victim_row
from sampdetox_transforms.lab.evaluation.kinds import KINDS, Images, load_kind
from sampdetox_transforms.lab.evaluation.planted import NAMES, Planted, PlantedTrigger, planted_triggers
from sampdetox_transforms.lab.evaluation.study import NO_DEFENSE, Cell, Document, Plan, Study, markdown
from sampdetox_transforms.lab.metrics import predicted, wilson
from sampdetox_transforms.lab.victims.efficientnet import load_lite_classifier
from sampdetox_transforms.lab.victims.photograph import load_photograph_victims
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.networks.precision import fastest_dtype
from sampdetox_transforms.transforms.transform import SampDetox

OPTIONS = {"kinds": tuple(KINDS), "triggers": NAMES, "victim": None, "batch_size": 20}

VICTIM_KIND = "imagenet"


def cells(plan: Plan) -> Iterable[Cell]:
    """A row for each kind, trigger and setting, and for each trigger of the victim; read when it is due."""
    kinds, triggers = plan.options["kinds"], plan.options["triggers"]
    for what, names, allowed in (("kind", kinds, KINDS), ("trigger", triggers, NAMES)):
        for name in names:
            check_choice(what, name, tuple(allowed))
    plants, size = planted_triggers(plan.data), plan.options["batch_size"]
    defense = cache(lambda setting: None if setting == NO_DEFENSE else plan.detox(setting))
    images = cache(lambda kind: load_kind(kind, plan.n, plan.seed, data=plan.data))
    judge = cache(lambda kind: Judge(load_lite_classifier(), images(kind)) if is_judged(kind) else None)

    def row(setting: str, kind: str, trigger: str) -> dict[str, Any]:
        seed = seed_of(kind, trigger, plan.seed)
        return measure(plants[trigger], images(kind), defense(setting), judge(kind), seed, size)

    for kind in kinds:
        for trigger in triggers:
            for setting in plan.settings:
                key = {"setting": setting, "kind": kind, "trigger": trigger}
                yield Cell(key, partial(row, setting, kind, trigger))
    if plan.options["victim"] is not None:
        clean, ask = cache(lambda setting: treat(defense(setting), images(VICTIM_KIND).images, size)), cache(answers)

        def victim_cell(setting: str, victim: Victim) -> dict[str, Any]:
            found = images(VICTIM_KIND)
            data = planted(victim, found.images, found.labels)
            return victim_row(defense(setting), victim, data, clean(setting), ask=ask)

        for victim in load_photograph_victims(plan.options["victim"], data=plan.data):
            for setting in plan.settings:
                key = {"setting": setting, "kind": VICTIM_KIND, "backdoor": victim.name}
                yield Cell(key, partial(victim_cell, setting, victim))


def is_judged(kind: str) -> bool:
    """Whether the classifier knows the classes of this kind."""
    return KINDS[kind].labels == "imagenet"


class Judge:
    """A classifier, its answers to the clean images in float32, and the time that it takes for one.

    The answers are those of float32: rounded to bfloat16 the classifier itself changes some of them. The time is that
    of the fastest dtype here, as the defense's is.
    """

    def __init__(self, model: nn.Module, clean: Images):
        self.model, self.labels = model, clean.labels
        self.clean, some, fastest = self.answers(clean.images), clean.images[:40], fastest_dtype(clean.images.device)
        self.answers(some[:2], fastest)
        begin = time.perf_counter()
        self.answers(some, fastest)
        self.ms = 1000 * (time.perf_counter() - begin) / len(some)

    @torch.no_grad()
    def answers(self, images: Float[Tensor, "n 3 h w"], dtype: torch.dtype = torch.float32) -> Int[Tensor, " n"]:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            parts = [self.model(part.to(memory_format=torch.channels_last)).float() for part in images.split(20)]
        return torch.cat([predicted(part) for part in parts])


def measure(
    trigger: PlantedTrigger,
    clean: Images,
    detox: SampDetox | None,
    judge: Judge | None,
    seed: int,
    batch_size: int = 20,
) -> dict[str, Any]:
    """One row, without its key."""
    seen = trigger.plant(clean.images, torch.Generator().manual_seed(seed))
    treated = treat(detox, seen.images, batch_size)
    row: dict[str, Any] = {"n": len(clean.images), "ms": round(treated.ms, 2)}
    if treated.flagged is not None:
        row["flagged"] = share(treated.flagged)
    if treated.mask is not None:
        row |= coverage(seen, treated.mask)
    change = (treated.images - seen.images).abs().mean(dim=(1, 2, 3)) * 255
    row["change"] = round(float(change.mean()), 3)
    if treated.flagged is not None and not bool(treated.flagged.all()):
        row["change, not flagged"] = round(float(change[~treated.flagged].mean()), 3)
    return row if judge is None else {**row, **judged(judge, seen, treated, trigger)}


def judged(judge: Judge, seen: Planted, treated: Treated, trigger: PlantedTrigger) -> dict[str, Any]:
    """What the classifier says with and without the defense, and the time beside its own."""
    before, after = judge.answers(seen.images), judge.answers(treated.images)
    row: dict[str, Any] = {"agreement": share(after == judge.clean), "top-1": share(after == judge.labels)}
    row |= {"agreement, no defense": share(before == judge.clean), "top-1, no defense": share(before == judge.labels)}
    if trigger.target is not None:
        target = trigger.target()
        other = judge.labels != target
        row |= {"ASR": share(after[other] == target), "ASR, no defense": share(before[other] == target)}
    return {**row, "classifier ms": round(judge.ms, 2), "times": round(1 + treated.ms / judge.ms, 2)}


def coverage(seen: Planted, mask: Bool[Tensor, "n 1 h w"]) -> dict[str, Any]:
    """Shares of the trigger's pixels and of the others that lie in the mask, as means over the images.

    A pixel is the trigger's from half of its opacity on; where less of it shows, it counts for neither.
    """
    if seen.alpha is None:
        return {"others in the mask": mean(mask)}
    own, other = seen.alpha >= 0.5, seen.alpha == 0
    inside = (mask & own).sum(dim=(1, 2, 3)) / own.sum(dim=(1, 2, 3))
    beside = (mask & other).sum(dim=(1, 2, 3)) / other.sum(dim=(1, 2, 3))
    found = {"found": share(inside >= 0.5), "trigger in the mask": mean(inside)}
    return {**found, "others in the mask": mean(beside), "area": mean(own)}


def share(hits: Bool[Tensor, " n"]) -> dict[str, float]:
    """A share of images with its interval, for JSON."""
    return rounded(wilson(int(hits.sum()), len(hits)))


def seed_of(kind: str, trigger: str, seed: int) -> int:
    """A cell's own seed; each defense gets the same images with the same triggers."""
    return seed * 1_000_003 + zlib.crc32(f"{kind}/{trigger}".encode())


def shown(value: Any) -> str:
    """A number, a share in per cent with its interval, or nothing."""
    if isinstance(value, Mapping):
        return f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
    return "" if value is None else f"{value:g}" if isinstance(value, (int, float)) else str(value)


COLUMNS = {
    "kind": "images",
    "trigger": "trigger",
    "flagged": "flagged, %",
    "found": "half of it in the mask, % of images",
    "trigger in the mask": "trigger's pixels in the mask",
    "others in the mask": "others in the mask",
    "change": "change, grey levels",
    "change, not flagged": "not flagged",
    "agreement": "answer as without a trigger, %",
    "agreement, no defense": "no defense",
    "top-1": "top-1, %",
    "top-1, no defense": "no defense",
    "ASR": "ASR, %",
    "ASR, no defense": "no defense",
    "ms": "ms",
    "times": "times the classifier",
}

VICTIM_COLUMNS = {
    "backdoor": "backdoor",
    "setting": "setting",
    "CA": "CA, %",
    "PA": "PA, %",
    "ASR": "ASR, %",
    "ms": "ms",
}


def render(document: Document) -> str:
    """A table for each setting, and one of the victims."""
    rows, parts = document["rows"], []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == setting and "trigger" in row]
        if own:
            names = [name for name in COLUMNS if any(name in row for row in own)]
            table = markdown(
                [COLUMNS[name] for name in names], [[shown(row.get(name)) for name in names] for row in own]
            )
            parts.append(f"`{setting}`:\n\n{table}")
    own = [row for row in rows if "backdoor" in row]
    if own:
        lines = [[shown(row[name]) for name in VICTIM_COLUMNS] for row in own]
        parts.append(f"A backdoored classifier at 224 pixels:\n\n{markdown(list(VICTIM_COLUMNS.values()), lines)}")
    return "\n\n".join(
        [*parts, "Shares of images with 95 % intervals (Wilson); other shares are means over the images."]
    )


PHOTOGRAPHS = Study(
    title="Photographs and other images, 32 to 224 pixels",
    cells=cells,
    render=render,
    n=60,
    settings=("restore",),
    dtype=None,
    options=OPTIONS,
    data=lambda plan: "test images of each kind",
)
