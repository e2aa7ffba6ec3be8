"""Experiment ``drawn-signs``: drawn signs and the embedded classifier, which anyone can recompute without any data."""

from collections.abc import Iterable
from functools import cache, partial
from typing import Any

from sampdetox_transforms.lab.demo.classifier import calibrate_on_signs, demo_victims
from sampdetox_transforms.lab.evaluation.behind import answers, planted, treat, value, victim_row
from sampdetox_transforms.lab.evaluation.kinds import DRAWN, load_kind
from sampdetox_transforms.lab.evaluation.study import NO_DEFENSE, Cell, Document, Plan, Study, markdown
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.transforms.transform import SampDetox

CALIBRATED = "restore, calibrated"  # on other drawn signs: the stored thresholds are those of photographs

SETTINGS = (NO_DEFENSE, "ddim", "restore", CALIBRATED)


def cells(plan: Plan) -> Iterable[Cell]:
    """A row for each setting and trigger of the classifier."""
    signs, ask = load_kind(DRAWN, plan.n, plan.seed), cache(answers)
    defense = cache(lambda setting: build(setting, plan))
    clean = cache(lambda setting: treat(defense(setting), signs.images))

    def row(setting: str, victim: Victim) -> dict[str, Any]:
        data = planted(victim, signs.images, signs.labels)
        return victim_row(defense(setting), victim, data, clean(setting), ask=ask)

    for setting in plan.settings:
        for victim in demo_victims():
            yield Cell({"setting": setting, "trigger": victim.name}, partial(row, setting, victim))


def build(setting: str, plan: Plan) -> SampDetox | None:
    """The defense of a setting."""
    if setting == NO_DEFENSE:
        return None
    detox = plan.detox(setting.split(",")[0])
    if setting == CALIBRATED:
        calibrate_on_signs(detox, plan.seed)
    return detox


def render(document: Document) -> str:
    """A row for each setting and trigger."""
    head = ["setting", "trigger", "CA", "PA", "ASR", "flagged: clean / triggered", "calls: clean / triggered"]
    lines = []
    for row in document["rows"]:
        shares = [f"{value(row[name]):.3f}" for name in ("CA", "PA", "ASR")]
        flagged = " / ".join(f"{share:.3f}" for share in row.get("flagged", [])) or "-"
        calls = " / ".join(f"{number:.2f}" for number in row["network calls"])
        lines.append([row["setting"], row["trigger"], *shares, flagged, calls])
    return markdown(head, lines)


DRAWN_SIGNS = Study(
    title="Drawn signs and the embedded classifier",
    cells=cells,
    render=render,
    n=64,
    settings=SETTINGS,
    allowed=SETTINGS,
    data=lambda plan: "drawn signs",
)
