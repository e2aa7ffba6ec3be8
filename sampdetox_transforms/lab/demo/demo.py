"""``sampdetox demo``: plant triggers in photographs and in drawn signs, take them out, and say what survives.

Everything is in the package, and nothing is asked of a network. The photographs show what is found and taken out; the
signs show what that is worth to a classifier with backdoors.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sampdetox_transforms.lab.demo.classifier import LARGE_TRIGGERS, Trigger, load_classifier
from sampdetox_transforms.lab.demo.photographs import NAMES, demo_triggers, photographs
from sampdetox_transforms.lab.demo.signs import CLASSES, draw_signs
from sampdetox_transforms.lab.drawing.cases import Case, draw_cases
from sampdetox_transforms.lab.evaluation.planted import Planted
from sampdetox_transforms.transforms.explanation import Explanation
from sampdetox_transforms.transforms.transform import SampDetox

GOOD = 0.9  # from this share on a trigger counts as taken out
SIGN = 128  # pixels

NEXT = """\
Now your own pictures:
  sampdetox purify MY-PICTURES CLEAN --weights bundled --report found.html
  sampdetox inspect PICTURE -o panel.png --weights bundled
  sampdetox app                                  one at a time in a browser, after pip install '.[app]'
  sampdetox calibrate CLEAN-PICTURES -o thresholds.json   for pictures unlike photographs: scans, drawings, text"""


class Row(NamedTuple):
    """One trigger: a line of a table, the share of images on which it was taken out, and what the picture shows."""

    line: str
    share: float | None
    case: Case


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    device: str | None = None,
    n: int = 18,
    progress: Callable[[str], None] = lambda step: None,
) -> str:
    """Write the picture to ``out`` and return the text that the command prints.

    Args:
        n: how many drawn signs the shares of their table are taken over.
        progress: called with what is being done, before it is.
    """
    detox = SampDetox("bundled", device=device, seed=seed)
    detox.watch.told = True  # that most images carry a trigger is known
    steps = len(demo_triggers()) + 1 + len(LARGE_TRIGGERS)
    count = iter(range(1, steps + 1))

    def begin(what: str) -> None:
        progress(f"{next(count)} of {steps}: {what}")

    photo_rows = on_photographs(detox, seed, begin)
    sign_rows = on_signs(detox, seed, n, begin)
    draw_cases([row.case for row in (*photo_rows.values(), sign_rows["red square"]) if row.case.title], out)
    return "\n".join(
        [
            f"{len(NAMES)} photographs of 256 pixels (free ones: {', '.join(NAMES)}), a trigger in each:",
            "  trigger         taken out    how much of it   of the others   off by: before   after",
            *(row.line for row in photo_rows.values()),
            "  (off by: grey levels of 255, on the trigger's pixels, from the picture without it)",
            "",
            f"{n} drawn signs, asked of a small classifier with a backdoor for each trigger:",
            "  trigger          right: before   after   fooled: before   after",
            *(row.line for row in sign_rows.values()),
            "",
            f"{summary('photographs', photo_rows)} {summary('drawn signs', sign_rows)}",
            f"(Gone: on {GOOD:.0%} of them it was taken out, or the classifier is right again.)",
            f"Weights in the package, settings of SampDetox('bundled', seed={seed}).",
            "",
            NEXT,
        ]
    )


def summary(where: str, rows: dict[str, Row]) -> str:
    """Which triggers go and which stay, from the rows themselves."""
    shares = {name: row.share for name, row in rows.items() if row.share is not None}
    gone = [name for name, share in shares.items() if share >= GOOD]
    left = [name for name in shares if name not in gone]
    parts = [f"{what}: {', '.join(names)}" for names, what in ((gone, "gone"), (left, "survives")) if names]
    return f"On {where}, {'; '.join(parts)}."


def on_photographs(detox: SampDetox, seed: int, begin: Callable[[str], None]) -> dict[str, Row]:
    """A row for each trigger; each picture is shown with another one."""
    clean = photographs()
    rows = {}
    for index, (name, trigger) in enumerate(demo_triggers().items()):
        begin(f"photographs, {name}")
        planted = trigger.plant(clean, torch.Generator().manual_seed(seed + index))
        explained = detox.explain(planted.images)
        rows[name] = photograph_row(name, clean, planted, explained, shown=(index - 1) % len(NAMES))
    return rows


def photograph_row(name: str, clean: Tensor, planted: Planted, explained: Explanation, *, shown: int) -> Row:
    """How much of the trigger was taken out, and how far its pixels are off the clean picture before and after.

    Of a patch that is the share of its pixels that were filled; of what covers the picture, of what it changed.
    """
    found = explained.found
    assert found is not None
    if planted.alpha is None:
        own = torch.ones_like(clean[:, :1]) > 0
        off = [(image - clean).abs().mean(dim=(1, 2, 3)) for image in (planted.images, explained.image)]
        inside = (1 - off[1] / off[0].clamp(min=1e-6)).clamp(min=0)
        beside, hits = found.mask.double().mean(dim=(1, 2, 3)), inside >= 0.5
    else:
        own = planted.alpha >= 0.5
        inside = (found.mask & own).sum(dim=(1, 2, 3)) / own.sum(dim=(1, 2, 3))
        beside = (found.mask & ~own).sum(dim=(1, 2, 3)) / (~own).sum(dim=(1, 2, 3))
        hits = inside >= 0.5
    before, after = (_off_by(image, clean, own) for image in (planted.images, explained.image))
    if name == "none":
        wrong = f"{int((found.mask.flatten(1).any(dim=1) | found.dense).sum())} of {len(clean)}"
        line = f"  {name:15}{wrong:>10}{'-':>18}{f'{beside.mean():.1%}':>16}{'-':>17}{after:>8.1f}"
        return Row(line, None, Case("", planted.images[shown], explained, shown))
    line = (
        f"  {name:15}{f'{int(hits.sum())} of {len(clean)}':>10}{f'{inside.mean():.0%}':>18}"
        f"{f'{beside.mean():.1%}':>16}{before:>17.1f}{after:>8.1f}"
    )
    share = float(hits.double().mean())
    verdict = "taken out" if hits[shown] else "survives"
    return Row(line, share, Case(f"{name}\n{verdict}", planted.images[shown], explained, shown, good=bool(hits[shown])))


def _off_by(image: Tensor, clean: Tensor, own: Tensor) -> float:
    """Mean distance from the clean picture in grey levels, over the pixels of the trigger."""
    return 255 * float((image - clean).abs()[own.expand_as(clean)].mean())


def on_signs(detox: SampDetox, seed: int, n: int, begin: Callable[[str], None]) -> dict[str, Row]:
    """A row for each backdoor of the classifier, over signs of other classes than the one that it leads to."""
    classifier = load_classifier(SIGN)
    signs, labels = draw_signs(n, seed, SIGN)
    rows = {}
    for trigger in (Trigger("none", lambda images: images, -1), *LARGE_TRIGGERS):
        begin(f"signs, {trigger.name}")
        others = labels != trigger.target_label
        planted, truth = trigger.plant(signs[others]), labels[others]
        explained = detox.explain(planted)
        with torch.no_grad():
            before, after = (classifier(x).argmax(1) for x in (planted, explained.image))
        right = [float((answer == truth).double().mean()) for answer in (before, after)]
        fooled = [float((answer == trigger.target_label).double().mean()) for answer in (before, after)]
        words = ["-", "-"] if trigger.target_label < 0 else [f"{share:.0%}" for share in fooled]
        line = f"  {trigger.name:15}{right[0]:>15.0%}{right[1]:>8.0%}{words[0]:>17}{words[1]:>8}"
        said, then, true = (CLASSES[int(answer[1])] for answer in (before, after, truth))
        title = f'{trigger.name}: a {true}\ncalled "{said}", then "{then}"'
        share = None if trigger.target_label < 0 else right[1]
        rows[trigger.name] = Row(line, share, Case(title, planted[1], explained, 1, good=then == true))
    return rows
