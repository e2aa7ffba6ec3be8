"""Experiment ``dense``: the default's answers to dense triggers, one left out at a time, and fitted to each victim.

Victims are those of folders, on whole test images, or else the public ones. "before" is the default without any of
these parts. "fitted" chooses by hard labels on ``fit_n`` images that neither the networks nor the classifier have seen,
as its user has them: those of the folder ``fit``; or test images that are not among those measured; for public
classifiers held-out training images. ``budget`` of the classifier's answers may change.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.data import data_path, drawn
from sampdetox_transforms.lab.evaluation.behind import Treated, answers, treat, value, victim_row
from sampdetox_transforms.lab.evaluation.restore import (
    OPTIONS,
    TEST,
    Entry,
    describe,
    digest,
    digest_of,
    held_out_images,
    read_entries,
)
from sampdetox_transforms.lab.evaluation.study import NO_DEFENSE, Cell, Document, Plan, Study, markdown
from sampdetox_transforms.lab.victims.poisoned import image_folder
from sampdetox_transforms.lab.victims.victim import materialise
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.transforms.presets import PRESETS
from sampdetox_transforms.transforms.transform import SampDetox
from sampdetox_transforms.transforms.wrapper import DetoxWrapper

FITTED = "restore, fitted"

DEFAULT = PRESETS["restore"]
assert isinstance(DEFAULT, Restore)

PARTS: Mapping[str, Restore] = {
    "restore, before": replace(DEFAULT, colour_gain=0, waves=0, t2_light=None, t1_doubt=None, dense_gain=1, jitter=0),
    "restore": DEFAULT,
    "restore, no colour": replace(DEFAULT, colour_gain=0),
    "restore, no waves": replace(DEFAULT, waves=0),
    "restore, no jitter": replace(DEFAULT, jitter=0),
    "restore, one level": replace(DEFAULT, t2_light=None),
    "restore, no doubt": replace(DEFAULT, t1_doubt=None),
    "restore, resampled .6, sharpened 3": replace(DEFAULT, resample=0.6, sharpness=3.0),
    FITTED: DEFAULT,
}

SETTINGS = (NO_DEFENSE, "restore, before", "restore", FITTED)


def cells(plan: Plan) -> Iterable[Cell]:
    """A row for each setting and victim. Its key holds what was learned and set: after a change it is measured anew."""
    check_choice("images", plan.options["images"], tuple(TEST))
    entries, ask, to_fit = read_entries(plan), cache(answers), cache(partial(images_to_fit, plan))
    for setting in plan.settings:
        detox = None if setting == NO_DEFENSE else plan.detox(PARTS[setting])
        clean = cache(partial(treat, detox))
        said = "" if detox is None else f"{digest_of(detox)}{sorted(vars(detox.settings).items())}"
        for entry in entries:
            text = f"{said}{digest(entry.victim.model)}"  # pyright: ignore[reportArgumentType]
            key = {"setting": setting, "victim": entry.victim.name}
            key["networks"] = hashlib.sha256(text.encode()).hexdigest()[:16]

            def measure(setting=setting, detox=detox, entry=entry, clean=clean) -> dict[str, Any]:
                if setting == FITTED and detox is not None:
                    return fitted_row(detox, entry, to_fit(), float(plan.options["budget"]))
                return victim_row(detox, entry.victim, entry.data, clean(entry.data.clean), ask=ask)

            yield Cell(key, measure)


def fitted_row(detox: SampDetox, entry: Entry, images: Float[Tensor, "n 3 h w"], budget: float) -> dict[str, Any]:
    """A row behind what was fitted to this victim, and what that was."""
    wrapper, begin = DetoxWrapper(entry.victim.model, detox), time.perf_counter()
    found = wrapper.fit(images, budget)
    seconds = time.perf_counter() - begin
    clean: Treated = treat(wrapper.detox, entry.data.clean)
    row = victim_row(wrapper.detox, entry.victim, entry.data, clean)
    about = {"dose": asdict(found.dose), "kept": found.kept, "images": found.images, "fits": found.fits}
    return {**row, "fitted": {**about, "seconds": round(seconds, 1), "steps": found.steps().split("\n")}}


def images_to_fit(plan: Plan) -> Float[Tensor, "n 3 h w"]:
    """Clean images, without their labels."""
    n, folder, name = int(plan.options["fit_n"]), plan.options["fit"], plan.options["images"]
    if folder is not None:
        images = materialise(image_folder(Path(folder), 32))[0]
    elif plan.options["victims"]:
        dataset = image_folder(data_path(TEST[name], plan.data), 32)
        measured = set(drawn(len(dataset), plan.n, plan.seed).tolist())
        others = [i for i in range(len(dataset)) if i not in measured]
        chosen = [others[i] for i in drawn(len(others), n, plan.seed + 5).tolist()]
        return torch.stack([dataset[i][0] for i in chosen])
    else:
        images = held_out_images(name, plan.data, whole=False).float() / 255
    return images[drawn(len(images), n, plan.seed + 5)]


def render(document: Document) -> str:
    """A row for each setting and victim, means under them, and what was fitted."""
    head = ["setting", "victim", "CA", "CA - no defense", "PA", "ASR", "flagged: clean / triggered", "calls", "ms"]
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["setting"] == setting]
        for row in rows:
            flagged = " / ".join(f"{v:.3f}" for v in row.get("flagged", [])) or "-"
            calls = " / ".join(f"{v:.2f}" for v in row["network calls"])
            shares = [shown(row[name]) for name in ("CA", "CA difference", "PA", "ASR")]
            lines.append([setting, row["victim"], *shares, flagged, calls, f"{row['ms']:g}"])
        ca, difference, pa, asr = (
            f"{100 * sum(value(row[name]) for row in rows) / len(rows):.1f}"
            for name in ("CA", "CA difference", "PA", "ASR")
        )
        lines.append([f"**{setting}**", "**mean**", ca, difference, pa, asr, "", "", ""])
    fits = [
        [
            row["victim"],
            *map(str, row["fitted"]["dose"].values()),
            shown_kept(row["fitted"]),
            str(row["fitted"]["seconds"]),
        ]
        for row in document["rows"]
        if "fitted" in row
    ]
    names = [
        "victim",
        "false-alarm rate",
        "t1",
        "colour gain",
        "colour",
        "jitter",
        "resampled, sharpened",
        "kept",
        "seconds",
    ]
    tables = [markdown(head, lines), *([f"What was fitted:\n\n{markdown(names, fits)}"] if fits else [])]
    return "\n\n".join([*tables, "Shares in %, with 95 % intervals: Wilson's, of differences Newcombe's for pairs."])


def shown_kept(fitted: Mapping[str, Any]) -> str:
    """In %, of the images that were asked about."""
    return f"{100 * fitted['kept']:.1f} of {fitted['images']}"


def shown(share: Mapping[str, float]) -> str:
    """In %, with its interval."""
    return f"{100 * share['value']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


DENSE = Study(
    title="Dense triggers: the default before and after, part by part, and fitted to the classifier",
    cells=cells,
    render=render,
    settings=SETTINGS,
    allowed=(NO_DEFENSE, *PARTS),
    options={**OPTIONS, "fit": None, "fit_n": 400, "budget": 0.01},
    data=describe,
)
