"""Experiment ``settings``: Algorithm 1 with other maps, schedules and samplers, and how well each map finds a trigger.

CA, PA and ASR on the two public classifiers of GTSRB, cropped to the sign. Settings that walk every level (DDPM) are
measured on ``n_ddpm`` images.
"""

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import torch

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.data import load_gtsrb
from sampdetox_transforms.lab.evaluation.behind import answers, planted, rounded, treat, value
from sampdetox_transforms.lab.evaluation.study import NO_DEFENSE, Cell, Document, Plan, Study, markdown
from sampdetox_transforms.lab.metrics import backdoor_shares
from sampdetox_transforms.lab.victims.public import load_public_victims
from sampdetox_transforms.method.algorithm1 import Algorithm1
from sampdetox_transforms.transforms.presets import PRESETS, Preset

SSIM = Algorithm1(map="ssim", data_range=1)

PRESET_OF: dict[str, Preset | None] = {
    NO_DEFENSE: None,
    "stage 1 only, t1=20, DDIM": Algorithm1(t2=0),
    "stage 1 only, t1=120, DDIM": Algorithm1(t1=120, t2=0),
    "DDIM 20/120, SSIM data_range 255, Gaussian": replace(SSIM, window="gaussian", data_range=255),
    "DDIM 20/120, SSIM data_range 255, uniform": replace(SSIM, data_range=255),
    "DDIM 20/120, SSIM data_range 1, Gaussian": replace(SSIM, window="gaussian"),
    "DDIM 20/120, blurred squared error": Algorithm1(map="squared_error"),
    "`paper`": PRESETS["paper"],
    "`paper-linear`": PRESETS["paper-linear"],
    "`authors-code`": PRESETS["authors-code"],
}

DDPM = tuple(name for name, preset in PRESET_OF.items() if preset is not None and preset.stride == 1)

DDIM = tuple(name for name in PRESET_OF if name not in DDPM)

MAPS = {
    "SSIM, data_range 1, uniform 7": SSIM,
    "SSIM, data_range 1, Gaussian 1.5": replace(SSIM, window="gaussian"),
    "SSIM, data_range 255, uniform 7": replace(SSIM, data_range=255),
    "SSIM, data_range 255, Gaussian 1.5": replace(SSIM, window="gaussian", data_range=255),
    "blurred squared error": Algorithm1(map="squared_error"),
}


def cells(plan: Plan) -> Iterable[Cell]:
    """A row for each setting, then for each map that stage 1 leaves."""
    check_choice("split", plan.options["split"], ("test", "train"))
    images, labels = load_gtsrb(plan.options["split"], plan.n, plan.seed, data=plan.data)
    victims = load_public_victims(data=plan.data)
    detox = cache(lambda name: None if PRESET_OF[name] is None else plan.detox(PRESET_OF[name] or ""))

    def row(name: str) -> dict[str, Any]:
        n = min(plan.n, plan.options["n_ddpm"]) if name in DDPM else plan.n
        clean, found, triggered = treat(detox(name), images[:n]), {}, []
        for victim in victims:
            data = planted(victim, images[:n], labels[:n])
            assert data.triggered is not None
            treated = treat(detox(name), data.triggered)
            triggered.append(treated)
            after = answers(victim.model, treated.images)
            shares = backdoor_shares(
                answers(victim.model, clean.images), labels[:n], after, data.targets, data.attacker_labels
            )
            found[victim.name] = {what: rounded(share) for what, share in shares.items()}
        every, calls = [clean, *triggered], torch.cat([part.calls for part in (clean, *triggered)])
        ms = sum(part.ms * len(part.images) for part in every) / len(calls)
        preset = PRESET_OF[name]
        about = {"preset": None if preset is None else asdict(preset), "n": n}
        return {**about, **found, "ms_per_image": round(ms, 2), "network_calls": round(float(calls.mean()), 2)}

    def map_row(name: str) -> dict[str, Any]:
        alone = plan.detox(replace(MAPS[name], t2=0))
        result = {}
        for victim in victims:
            clean = images[labels != victim.target_label]
            assert victim.attack is not None
            triggered = victim.attack(clean)
            score = alone.explain(triggered).difference_map
            assert score is not None  # Algorithm 1 has a map
            result[victim.name] = auc(score, (triggered != clean).any(dim=1, keepdim=True))
        return result

    for name in plan.settings:
        yield Cell({"setting": name}, partial(row, name))
    if any(name in DDIM for name in plan.settings):
        for name in MAPS:
            yield Cell({"map": name}, partial(map_row, name))


def auc(score: torch.Tensor, inside: torch.Tensor) -> float:
    """How well a map ranks the pixels inside above the others: the mean area under the curve over the images."""
    score, inside = score.flatten(1), inside.flatten(1)
    rank = score.argsort(dim=1).argsort(dim=1).double() + 1
    positive, total = inside.sum(dim=1), inside.shape[1]
    above = (rank * inside).sum(dim=1) - positive * (positive + 1) / 2
    usable = (positive > 0) & (positive < total)
    return round(float((above / (positive * (total - positive)))[usable].mean()), 3)


def render(document: Document) -> str:
    """The settings, then the maps."""
    rows = [row for row in document["rows"] if "setting" in row]
    known = {*("setting", "preset", "n", "ms_per_image", "network_calls", "environment")}
    names = [name for name in rows[0] if name not in known]
    lines = []
    for row in rows:
        shares = [" / ".join(f"{value(row[name][what]):.3f}" for what in ("CA", "PA", "ASR")) for name in names]
        ddim = " (`ddim`)" if row["preset"] == asdict(PRESETS["ddim"]) else ""
        cost = [f"{row['network_calls']:g}", f"{row['ms_per_image'] or '-'}", str(row["n"])]
        lines.append([f"{row['setting']}{ddim}", *shares, *cost])
    head = ["setting", *(f"{name}: CA / PA / ASR" for name in names), "calls", "ms an image", "n"]
    tables = [markdown(head, lines)]
    maps = [row for row in document["rows"] if "map" in row]
    if maps:
        head = ["map after stage 1 (t1=20)", *(f"AUC, {name}" for name in names)]
        tables.append(markdown(head, [[row["map"], *(f"{row[name]:.3f}" for name in names)] for row in maps]))
    return "\n\n".join(tables)


SETTINGS = Study(
    title="Algorithm 1 with other maps, schedules and samplers, on public classifiers",
    cells=cells,
    render=render,
    settings=tuple(PRESET_OF),
    allowed=tuple(PRESET_OF),
    options={"split": "test", "n_ddpm": 100},
    data=lambda plan: f"GTSRB {plan.options['split']}",
)
