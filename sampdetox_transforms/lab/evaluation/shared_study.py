"""Experiment ``shared-trigger``: triggers recovered from a traffic of unlabelled images, one row a victim.

A row holds, for each number of triggered images in the traffic, CA, PA and ASR behind the default alone, with the
trigger taken out of what matches, and with both. Further rows say how often a trigger is claimed among clean images
("draws", of the "kinds" that are named), what the search costs ("costs", kinds of images), and what an attacker does
who floods the traffic with something natural ("floods"): whether that is claimed, whether it lies within the limits of
automatic use, and what a classifier says of honest images that lost it.

Public victims see GTSRB cropped to the sign; victims of folders see whole images; a backdoored classifier of
photographs ("photographs", its folder) sees ImageNet's at 224 pixels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.data import data_path, drawn
from sampdetox_transforms.lab.evaluation.behind import answers, rounded
from sampdetox_transforms.lab.evaluation.kinds import KINDS, load_kind
from sampdetox_transforms.lab.evaluation.restore import TEST, TITLES, images_for_testing
from sampdetox_transforms.lab.evaluation.shared_clean import claims_on_clean, measure_costs
from sampdetox_transforms.lab.evaluation.shared_floods import FLOODS, measure_flood
from sampdetox_transforms.lab.evaluation.shared_trigger import (
    Behind,
    Looked,
    Purify,
    Subject,
    look,
    measure_shared,
)
from sampdetox_transforms.lab.evaluation.study import Cell, Document, Plan, Study, markdown
from sampdetox_transforms.lab.metrics import wilson
from sampdetox_transforms.lab.victims.photograph import load_photograph_victims
from sampdetox_transforms.lab.victims.poisoned import image_folder
from sampdetox_transforms.lab.victims.public import load_public_victims
from sampdetox_transforms.lab.victims.victim import Victim, load_victim, materialise
from sampdetox_transforms.transforms.shared_images import fill_by, for_comparison
from sampdetox_transforms.transforms.transform import SampDetox

OPTIONS = {
    "images": "gtsrb",
    "public": True,
    "victims": (),
    "photographs": None,
    "traffic": 200,
    "triggered": (10, 40),
    "again": True,
    "draws": 0,
    "kinds": (),
    "floods": (),
    "costs": (),
}


CROPPED, WHOLE, LARGE = "cropped", "whole", "photographs"


def cells(plan: Plan) -> Iterable[Cell]:
    """A row for each victim, one for the clean draws, one for each flood."""
    options = plan.options
    check_choice("images", options["images"], tuple(TEST))
    for name in options["floods"]:
        check_choice("flood", name, tuple(FLOODS))
    for name in (*options["kinds"], *options["costs"]):
        check_choice("kind", name, tuple(KINDS))
    detox = plan.detox("restore")
    looked = cache(partial(looked_at, plan, detox))
    public = load_public_victims(options["images"], data=plan.data)
    folders = [load_victim(Path(folder)) for folder in options["victims"]]
    subjects = [(v, CROPPED) for v in public if options["public"]] + [(v, WHOLE) for v in folders]
    if options["photographs"] is not None:
        subjects += [(v, LARGE) for v in load_photograph_victims(options["photographs"], data=plan.data)]
    for victim, view in subjects:
        yield Cell({"victim": victim.name}, partial(victim_row, victim, view, looked, detox, plan))
    if options["draws"]:
        yield Cell({"clean draws": options["draws"]}, partial(clean_row, detox, plan))
    for name in options["floods"]:
        yield Cell({"flood": name}, lambda name=name: flood_row(name, public[0], looked, detox, plan))
    for name in options["costs"]:
        yield Cell({"costs": name}, lambda name=name: costs_row(name, detox, plan))


def looked_at(plan: Plan, detox: SampDetox, view: str) -> tuple[Looked, Looked]:
    """Traffic as it is compared and evaluation images as they are purified, none in both."""
    images, labels = images_of(plan, view)
    first = plan.options["traffic"]
    if len(images) < first + plan.n:
        raise ValueError(
            f"traffic and n must be at most {len(images)} images together, got {first} and {plan.n}. Ask for fewer."
        )
    traffic = look(images[:first], labels[:first], comparer(detox))
    return traffic, look(images[first:], labels[first:], purifier(detox))


def images_of(plan: Plan, view: str) -> tuple[Tensor, Tensor]:
    """Traffic and then evaluation images of a view, and their labels."""
    total, name = plan.options["traffic"] + plan.n, plan.options["images"]
    if view == LARGE:
        found = load_kind("imagenet", total, plan.seed, data=plan.data)
        return found.images, found.labels
    if view == WHOLE:
        dataset = image_folder(data_path(TEST[name], plan.data), 32)
        chosen = drawn(len(dataset), total, plan.seed)
        return materialise(torch.utils.data.Subset(dataset, chosen.tolist()))
    return images_for_testing(name, total, plan.seed, plan.data)


def comparer(detox: SampDetox) -> Purify:
    """Images to what they are compared with where one looks for what they share, as ``recover_trigger`` does."""
    return purifier(for_comparison(detox))


def purifier(detox: SampDetox) -> Purify:
    """Images to what the default makes of them, without gradients."""

    def purify(images: Tensor) -> Tensor:
        with torch.no_grad():
            return detox(images)

    return purify


def victim_row(victim: Victim, view: str, looked: Any, detox: SampDetox, plan: Plan) -> dict[str, Any]:
    """One victim: a list with one entry for each number of triggered images and way to purify."""
    if victim.attack is None or victim.target_label is None:
        raise ValueError(f"a victim must have one target class, got {victim.name!r} without. Leave it out.")
    subject = Subject(victim.name, victim.model, victim.attack, victim.target_label)
    traffic, evaluation = looked(view)
    rows, _ = measure_shared(
        subject,
        traffic,
        evaluation,
        purifier(detox),
        comparer(detox),
        triggered=tuple(int(number) for number in plan.options["triggered"]),
        fill=fill_by(detox),
        behind=behind(detox) if plan.options["again"] else None,
    )
    shares = ("CA", "PA", "ASR", "matched", "clean_matched")
    return {"rows": [{**asdict(row), **{name: rounded(getattr(row, name)) for name in shares}} for row in rows]}


def behind(detox: SampDetox) -> Behind:
    """A recovered trigger to the default that takes it out first."""
    return lambda trigger: purifier(detox.with_trigger(trigger))


def clean_row(detox: SampDetox, plan: Plan) -> dict[str, Any]:
    """How often a trigger is claimed among clean images: of the kinds that are named, else of both views."""
    pools, draws, wanted = {}, plan.options["draws"], plan.options["kinds"]
    for name in wanted:
        kind = load_kind(name, plan.options["traffic"] + plan.n, plan.seed, data=plan.data)
        seen = look(kind.images, kind.labels, comparer(detox))
        pools[name] = seen.images, seen.purified
    for view in () if wanted else (CROPPED, WHOLE) if plan.options["images"] == "gtsrb" else (CROPPED,):
        seen = look(*images_of(plan, view), comparer(detox))
        pools[f"{plan.options['images']}, {view}"] = seen.images, seen.purified
    found = claims_on_clean(pools, draws=draws, n=plan.options["traffic"], seed=plan.seed)
    return {
        "claims": {name: rounded(wilson(count["claimed"], count["draws"])) for name, count in found.items()},
        "automatic": {name: count["automatic"] for name, count in found.items()},
    }


def costs_row(name: str, detox: SampDetox, plan: Plan) -> dict[str, Any]:
    """What the search costs beside purifying, on images of a kind, a tenth of which carry a date stamp."""
    images = load_kind(name, plan.options["traffic"], plan.seed, data=plan.data).images
    return measure_costs(FLOODS["date stamp"], images, comparer(detox), carriers=len(images) // 10)


def flood_row(name: str, victim: Victim, looked: Any, detox: SampDetox, plan: Plan) -> dict[str, Any]:
    """What is taken out of honest images where twenty images carry something natural."""
    traffic, evaluation = looked(CROPPED)
    ask, ways = partial(answers, victim.model), (purifier(detox), comparer(detox), behind(detox))
    return measure_flood(FLOODS[name], traffic, evaluation, *ways, ask, fill_by(detox))


def render(document: Document) -> str:
    """Markdown: the victims, then the clean draws, then the floods."""
    rows, tables = document["rows"], []
    own = [(row["victim"], each) for row in rows if "victim" in row for each in row["rows"]]
    if own:
        head = ["victim", "triggered", "way", "CA", "PA", "ASR", "found", "matched", "clean matched", "correlation"]
        tables.append(markdown(head, [_line(name, each) for name, each in own]))
    for row in (row for row in rows if "claims" in row):
        lines = [
            [name, str(share["n"]), str(round(share["value"] * share["n"])), str(row["automatic"][name])]
            for name, share in row["claims"].items()
        ]
        tables.append(
            markdown(["clean images", "draws", "a trigger claimed", "that would be taken out unasked"], lines)
        )
    floods = [row for row in rows if "flood" in row]
    if floods:
        names = ("claimed", "area", "energy", "automatic", "carriers matched", "others matched", "before", "after")
        lines = [[row["flood"], *(_cell(row[name]) for name in names)] for row in floods]
        tables.append(markdown(["flood", *names], lines))
    costs = [row for row in rows if "costs" in row]
    if costs:
        names = ("images", "purifying", "search, nothing shared", "search, found", "matching")
        lines = [[row["costs"], *("-" if row[name] is None else f"{row[name]:.3g}" for name in names)] for row in costs]
        tables.append(markdown(["images of", "how many", "purifying, ms an image", *names[2:]], lines))
        tables.append("Search and matching as shares of the time that purifying the same images once takes.")
    text = "Shares in % with 95 % intervals (Wilson); PA and ASR of triggered images, all of other images than the "
    return "\n\n".join([*tables, f"{text}traffic's."])


def _line(name: str, row: Mapping[str, Any]) -> list[str]:
    told = [_percent(row[share]) for share in ("CA", "PA", "ASR")]
    found = ["yes" if row["found"] else "no", *(_cell(row[part]["value"]) for part in ("matched", "clean_matched"))]
    found.append("-" if row["correlation"] is None else f"{row['correlation']:.2f}")
    return [name, f"{row['triggered']} of {row['traffic']}", row["defense"], *told, *found]


def _percent(share: Mapping[str, float]) -> str:
    return f"{100 * share['value']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def _cell(value: Any) -> str:
    return "-" if value is None else ("yes" if value else "no") if isinstance(value, bool) else f"{value:.3f}"


SHARED_TRIGGER = Study(
    title="Triggers recovered from many images",
    cells=cells,
    render=render,
    n=200,
    dtype=torch.float32,
    options=OPTIONS,
    data=lambda plan: TITLES.get(plan.options["images"], ""),
)
