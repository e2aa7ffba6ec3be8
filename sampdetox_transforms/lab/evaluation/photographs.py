"""Experiment ``photographs``: kinds of images x triggers x defenses, from 32 to 224 pixels.

A row says how many images were flagged, how much of the trigger's pixels and of the others lie in the mask, how far
images were changed, what an ImageNet classifier says of the results, and how long that took.
"""

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.environment import all_in_words
from sampdetox_transforms.lab.evaluation.kinds import KINDS, Images, load_kind
from sampdetox_transforms.lab.evaluation.planted import NAMES, Planted, PlantedTrigger, planted_triggers
from sampdetox_transforms.lab.evaluation.sheet import Sheet
from sampdetox_transforms.lab.metrics import predicted, wilson
from sampdetox_transforms.lab.victims.photograph import load_lite_classifier
from sampdetox_transforms.networks.precision import fastest_dtype
from sampdetox_transforms.transforms.transform import SampDetox

TITLE = "Photographs and other images, 32 to 224 pixels"

SETTINGS = ("restore",)  # presets

NO_DEFENSE = "none"

Progress = Callable[[str, int, int], None]  # a row's name, rows done, rows in all


@dataclass(frozen=True)
class Treated:
    """What a defense made of some images.

    Attributes:
        images: the results.
        flagged: whether each was taken for a triggered one; None where the defense does not say.
        mask: what was taken out of each; None where the defense has none.
        ms: an image.
    """

    images: Float[Tensor, "n 3 h w"]
    flagged: Bool[Tensor, " n"] | None
    mask: Bool[Tensor, "n 1 h w"] | None
    ms: float


def run_photographs(
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    n: int = 60,
    seed: int = 0,
    settings: Sequence[str] = SETTINGS,
    kinds: Sequence[str] = tuple(KINDS),
    triggers: Sequence[str] = NAMES,
    build: Callable[[str], SampDetox] | None = None,
    command: str = "",
    overwrite: bool = False,
    batch_size: int = 20,
    progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """Measure every cell and return the document that ``out`` (a JSON file) holds.

    Args:
        data: the folder of the data; None for the one that ``SAMPDETOX_DATA`` names.
        n: images of each kind.
        seed: draws images, places and noise.
        settings: presets, and "none".
        build: from a setting to its ``SampDetox``; None for the bundled weights.

    Raises:
        ValueError: an unknown kind or trigger, or a file of another run.
        FileNotFoundError: no data.
        ImportError: the classifier's packages are not there, for a kind that is shown to it.
    """
    for what, names, allowed in (("kind", kinds, KINDS), ("trigger", triggers, NAMES)):
        for name in names:
            check_choice(what, name, tuple(allowed))
    make = build or (lambda setting: SampDetox("bundled", preset=setting, seed=seed))
    about = {"experiment": "photographs", "n": n, "seed": seed, **({"command": command} if command else {})}
    sheet = Sheet(out, about, overwrite=overwrite)
    plants, done, total = planted_triggers(data), 0, len(settings) * len(kinds) * len(triggers)
    defenses: dict[str, SampDetox | None] = {}
    for kind in kinds:
        wanted = [{"setting": s, "kind": kind, "trigger": t} for t in triggers for s in settings]
        todo = [key for key in wanted if sheet.known(key) is None]
        done += len(wanted) - len(todo)
        if not todo:
            continue
        clean = load_kind(kind, n, seed, data=data)
        judge = Judge(load_lite_classifier(), clean) if KINDS[kind].labels == "imagenet" else None
        for key in todo:
            setting, trigger = key["setting"], key["trigger"]
            if setting not in defenses:
                defenses[setting] = None if setting == NO_DEFENSE else make(setting)
            cell_seed = seed_of(kind, trigger, seed)
            row = measure(plants[trigger], clean, defenses[setting], judge, cell_seed, batch_size)
            sheet.add({**key, **row})
            done += 1
            progress(" / ".join(key.values()), done, total)
    return sheet.document()


class Judge:
    """A classifier, its answers to the clean images, and the time that it takes for one, as fast as it goes here.

    Classifier and defense compute in the same dtype: bfloat16 where the processor has it.
    """

    def __init__(self, model: nn.Module, clean: Images):
        self.model, self.labels = model, clean.labels
        self.answers(clean.images[:2])
        begin = time.perf_counter()
        self.clean = self.answers(clean.images)
        self.ms = 1000 * (time.perf_counter() - begin) / len(clean.images)

    @torch.no_grad()
    def answers(self, images: Float[Tensor, "n 3 h w"]) -> Int[Tensor, " n"]:
        dtype = fastest_dtype(images.device)
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            parts = [self.model(part.to(memory_format=torch.channels_last)).float() for part in images.split(20)]
        return torch.cat([predicted(part) for part in parts])


def measure(
    trigger: PlantedTrigger,
    clean: Images,
    detox: SampDetox | None,
    judge: Judge | None,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """One row, without its key."""
    planted = trigger.plant(clean.images, torch.Generator().manual_seed(seed))
    treated = treat(detox, planted.images, batch_size)
    row: dict[str, Any] = {"n": len(clean.images), "ms": round(treated.ms, 2)}
    if treated.flagged is not None:
        row["flagged"] = share(treated.flagged)
    if treated.mask is not None:
        row |= coverage(planted, treated.mask)
    change = (treated.images - planted.images).abs().mean(dim=(1, 2, 3)) * 255
    row["change"] = round(float(change.mean()), 3)
    if treated.flagged is not None and not bool(treated.flagged.all()):
        row["change, not flagged"] = round(float(change[~treated.flagged].mean()), 3)
    if judge is not None:
        before, after = judge.answers(planted.images), judge.answers(treated.images)
        row |= {"agreement, no defense": share(before == judge.clean), "agreement": share(after == judge.clean)}
        row |= {"top-1, no defense": share(before == judge.labels), "top-1": share(after == judge.labels)}
        if trigger.target is not None:
            target = trigger.target()
            other = judge.labels != target
            row |= {"ASR, no defense": share(before[other] == target), "ASR": share(after[other] == target)}
        row |= {"classifier ms": round(judge.ms, 2), "times": round(1 + treated.ms / judge.ms, 2)}
    return row


def treat(detox: SampDetox | None, images: Float[Tensor, "n 3 h w"], batch_size: int) -> Treated:
    """All images through a defense."""
    if detox is None:
        return Treated(images, None, None, 0.0)
    begin = time.perf_counter()
    parts = [detox.explain(part) for part in images.split(batch_size)]
    ms = 1000 * (time.perf_counter() - begin) / len(images)
    result = torch.cat([part.image for part in parts])
    if any(part.mask is None for part in parts):
        return Treated(result, None, None, ms)
    mask = torch.cat([part.mask for part in parts if part.mask is not None])
    level = torch.cat([part.timestep_map for part in parts])
    return Treated(result, mask.flatten(1).any(1) | (level.flatten(1) > 0).any(1), mask, ms)


def coverage(planted: Planted, mask: Bool[Tensor, "n 1 h w"]) -> dict[str, Any]:
    """Shares of the trigger's pixels and of the others that lie in the mask, as means over the images.

    A pixel is the trigger's from half of its opacity on; where less of it shows, it counts for neither.
    """
    covered = mask.float().mean(dim=(1, 2, 3))
    if planted.alpha is None:
        return {"others in the mask": round(float(covered.mean()), 4)}
    own, other = planted.alpha >= 0.5, planted.alpha == 0
    inside = (mask & own).sum(dim=(1, 2, 3)) / own.sum(dim=(1, 2, 3))
    beside = (mask & other).sum(dim=(1, 2, 3)) / other.sum(dim=(1, 2, 3))
    return {
        "found": share(inside >= 0.5),
        "trigger in the mask": round(float(inside.mean()), 4),
        "others in the mask": round(float(beside.mean()), 4),
        "area": round(float(own.float().mean()), 4),
    }


def share(hits: Bool[Tensor, " n"]) -> dict[str, float]:
    """A share of images with its interval, for JSON."""
    return {name: round(value, 4) for name, value in asdict(wilson(int(hits.sum()), len(hits))).items()}


def seed_of(kind: str, trigger: str, seed: int) -> int:
    """A cell's own seed; each defense gets the same images with the same triggers."""
    return seed * 1_000_003 + zlib.crc32(f"{kind}/{trigger}".encode())


def cells(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        yield tuple(shown(row.get(name)) for name in names)


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


def render_photographs(document: Mapping[str, Any]) -> str:
    """Markdown: a table for each setting."""
    rows, parts = document["rows"], []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == setting]
        names = [name for name in COLUMNS if any(name in row for row in own)]
        head = [f"| {' | '.join(COLUMNS[name] for name in names)} |", "|" + "---|" * len(names)]
        body = [f"| {' | '.join(line)} |" for line in cells(own, names)]
        parts.append("\n".join([f"`{setting}`:", "", *head, *body]))
    settings = document["settings"]
    command = f"`{settings['command']}`: " if "command" in settings else ""
    made = all_in_words([document["environments"][i] for i in sorted({row["environment"] for row in rows})])
    parts.append(
        f"{command}{settings['n']} test images of each kind, seed {settings['seed']}; {made}. Shares in per cent with "
        "95 % intervals (Wilson)."
    )
    return "\n\n".join(parts) + "\n"
