"""Experiment ``adaptive-smooth``: an attacker who knows the default, with a smooth pattern optimised through it.

The whole default is differentiated, as its decisions fall: no approximation such as BPDA (Athalye et al. 2018) is
needed. The pattern is added to every image: ``side`` x ``side`` values of each channel, enlarged, so that nothing in
it is fine, and none of them above ``strength``. It begins with what the victim's own trigger changes on average, and
is optimised on held-out training images until the victim, behind the default, answers the attacker's class.
"""

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional

from sampdetox_transforms.lab.evaluation.behind import mean, planted, treat, value, victim_row
from sampdetox_transforms.lab.evaluation.restore import OPTIONS, Entry, describe, held_out_images, read_entries
from sampdetox_transforms.lab.evaluation.study import (
    NO_DEFENSE,
    Cell,
    Document,
    Plan,
    Progress,
    Study,
    markdown,
    silent,
)
from sampdetox_transforms.lab.victims.victim import Victim

RATE = 0.1

OWN, OPTIMISED = "its own", "optimised"


def cells(plan: Plan) -> Iterable[Cell]:
    """Two rows for each victim: its own trigger, and the optimised pattern."""
    detox, options = plan.detox("restore"), plan.options
    clean = {name: cache(partial(treat, defense)) for name, defense in ((NO_DEFENSE, None), ("restore", detox))}

    def pattern_for(victim: Victim) -> Float[Tensor, "3 h w"]:
        images = held_out_images(options["images"], plan.data, whole=bool(options["victims"])).float() / 255
        sizes = {name: int(options[name]) for name in ("steps", "batch", "side")}
        generator = Generator().manual_seed(plan.seed)
        return optimise(images, victim, detox, float(options["strength"]), generator, **sizes, progress=plan.progress)

    def row(entry: Entry, trigger: str) -> dict[str, Any]:
        victim, data = entry.victim, entry.data
        if trigger == OPTIMISED:
            pattern = pattern_for(victim)
            victim = Victim(
                victim.name, victim.model, partial(added, pattern), victim.target_label, victim.mode, victim.num_classes
            )
            data = planted(victim, data.clean, data.labels)
        assert data.triggered is not None
        change = (data.triggered - data.clean[data.labels != victim.target_label]).abs().mean()
        found = {
            name: victim_row(defense, victim, data, clean[name](data.clean))
            for name, defense in ((NO_DEFENSE, None), ("restore", detox))
        }
        return {"change": mean(change * 255), **found}

    for entry in read_entries(plan):
        for trigger in (OWN, OPTIMISED):
            yield Cell({"victim": entry.victim.name, "trigger": trigger}, partial(row, entry, trigger))


def added(
    pattern: Float[Tensor, "3 h w"], images: Float[Tensor, "n 3 h w"], generator: Generator | None = None
) -> Float[Tensor, "n 3 h w"]:
    """Images in [0, 1] with the pattern on them, in 8 bits as from a file."""
    return ((images + pattern).clamp(0, 1) * 255).round() / 255


def optimise(
    images: Float[Tensor, "n 3 h w"],
    victim: Victim,
    defense: Callable[[Tensor], Tensor],
    strength: float,
    generator: Generator,
    *,
    steps: int,
    batch: int,
    side: int,
    progress: Progress = silent,
) -> Float[Tensor, "3 h w"]:
    """The pattern after so many steps of Adam on random batches."""
    assert victim.attack is not None and victim.target_label is not None
    some = images[torch.randperm(len(images), generator=generator)[:64]]
    own = (victim.attack(some) - some).mean(dim=0, keepdim=True)
    small = functional.interpolate(own, size=(side, side), mode="area") / strength
    raw = small.clamp(-0.95, 0.95).atanh().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=RATE)
    for step in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=generator)
        seen = (images[chosen] + enlarged(raw, strength, images)).clamp(0, 1)
        target = torch.full((batch,), victim.target_label)
        loss = functional.cross_entropy(victim.model(defense(seen)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress(f"pattern, loss {float(loss.detach()):.3f}", step + 1, steps)
    return enlarged(raw.detach(), strength, images)[0]


def enlarged(
    raw: Float[Tensor, "1 3 s s"], strength: float, like: Float[Tensor, "n 3 h w"]
) -> Float[Tensor, "1 3 h w"]:
    """The pattern at the images' size, within the strength."""
    pattern = functional.interpolate(raw.tanh() * strength, size=list(like.shape[-2:]), mode="bicubic")
    return pattern.clamp(-strength, strength)


def render(document: Document) -> str:
    """A row for each trigger."""
    head = ["victim", "trigger", "mean change, grey levels", "flagged: clean / triggered"]
    head += [f"{name}: CA / PA / ASR" for name in ("no defense", "`restore`")]
    lines = []
    for row in document["rows"]:
        flagged = " / ".join(f"{share:.3f}" for share in row["restore"]["flagged"])
        shares = [
            " / ".join(f"{value(row[name][key]):.3f}" for key in ("CA", "PA", "ASR"))
            for name in (NO_DEFENSE, "restore")
        ]
        lines.append([row["victim"], row["trigger"], f"{row['change']:.1f}", flagged, *shares])
    return markdown(head, lines)


ADAPTIVE_SMOOTH = Study(
    title="An attacker who knows the default, with a smooth pattern",
    cells=cells,
    render=render,
    n=100,
    options={**OPTIONS, "steps": 30, "batch": 16, "side": 8, "strength": 0.1},
    data=describe,
)
