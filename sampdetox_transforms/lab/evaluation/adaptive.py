"""Experiment ``adaptive-patch``: an attacker who knows preset "restore", with a 5x5 patch that its search does not see.

The weights are public, and the whole decision of stage 2 (network, local logits, ``local_suspicion``, and the logit of
a dense trigger) is differentiable: the gradient goes through it exactly, and no approximation such as BPDA (Athalye et
al. 2018) is needed. The fill and the thresholding are not differentiated: below the thresholds nothing is filled.

The patch has one place, one pixel off the lower right corner, and is optimised on GTSRB training images without those
held out. In each image it must differ from the pixels under it by ``contrast`` on average (a penalty), so that a patch
equal to the background is no answer. One small classifier then learns it as a trigger, beside a white patch at the
same place: the difference between the two rows is what knowing stage 2 costs the defense. Test images are cropped to
the sign. OUT.png is the patch, enlarged.
"""

from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import to_pil_image

from sampdetox_transforms.lab.data import gtsrb_training, load_gtsrb
from sampdetox_transforms.lab.evaluation.behind import mean, planted, treat, value, victim_row
from sampdetox_transforms.lab.evaluation.study import (
    NO_DEFENSE,
    Cell,
    Document,
    Plan,
    Progress,
    Study,
    beside,
    markdown,
    silent,
)
from sampdetox_transforms.lab.victims.patches import WHITE, at, fixed, network, square, target_of, train
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.method.calibration import Calibration
from sampdetox_transforms.method.search import local_suspicion
from sampdetox_transforms.networks.precision import has_fast_bf16
from sampdetox_transforms.networks.restorer import Specialists

SIDE, PLACE = 5, 26  # rows and columns 26 to 30 of 0 to 31

RATE, PENALTY = 0.1, 30.0

COLUMNS = (NO_DEFENSE, "restore")

PLAIN, OPTIMISED = "white 5x5", "optimised 5x5"


def cells(plan: Plan) -> Iterable[Cell]:
    """A row for each of the two patches. Both are made once, when the first is measured."""
    defended = plan.detox("restore")
    restorer = defended.restorer and defended.restorer.small
    calibration = defended.calibration and defended.calibration.small
    assert isinstance(restorer, Specialists) and calibration is not None
    options = plan.options

    @cache
    def prepared() -> tuple[dict[str, Tensor], torch.nn.Module]:
        images, labels = gtsrb_training(whole=False, held_out=False, data=plan.data)
        generator = Generator().manual_seed(plan.seed)
        bf16 = has_fast_bf16(torch.device("cpu"))
        # the cache would keep the classifier's first weights, since the context outlives a step
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            patch = optimise(
                images,
                restorer,
                calibration,
                options["steps"],
                options["batch"],
                options["contrast"],
                generator,
                plan.progress,
            )
            patches, model = {PLAIN: square(WHITE, SIDE), OPTIMISED: patch}, network()
            train(model, images, labels, {name: at(PLACE, PLACE, p) for name, p in patches.items()}, options["epochs"])
        return patches, model.eval()

    tests = cache(lambda: load_gtsrb("test", plan.n, plan.seed, data=plan.data))
    clean = cache(lambda setting: treat(defended if setting == "restore" else None, tests()[0]))

    def row(index: int, name: str) -> dict[str, Any]:
        patches, model = prepared()
        images, labels = tests()
        victim = Victim(name, model, fixed(at(PLACE, PLACE, patches[name])), target_of(index), "all2one", 43, 32)
        data = planted(victim, images, labels)
        found = {
            NO_DEFENSE: victim_row(None, victim, data, clean(NO_DEFENSE)),
            "restore": victim_row(defended, victim, data, clean("restore"), ceiling=True),
        }
        about = {"thresholds": calibration.thresholds, "patch": (patches[name] * 255).round().int().tolist()}
        return {**seen(images, patches[name], restorer), **found, **about}

    for i, name in enumerate((PLAIN, OPTIMISED)):
        yield Cell({"trigger": name}, partial(row, i, name))


def optimise(
    images: Tensor,
    restorer: Specialists,
    calibration: Calibration,
    steps: int,
    batch: int,
    least: float,
    generator: Generator,
    progress: Progress = silent,
) -> Tensor:
    """The patch (3, 5, 5), in whole 255ths, after so many steps of Adam on random batches of the uint8 images."""
    raw = torch.randn(3, SIDE, SIDE, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=RATE)
    for step in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=generator)
        x, patch = images[chosen].float() / 255, raw.sigmoid()
        unseen = suspected(x, patch, restorer, calibration).mean()
        visible = functional.relu(least - contrast(x, patch)).mean()
        optimizer.zero_grad()
        (unseen + PENALTY * visible).backward()
        optimizer.step()
        progress(f"patch, suspected {float(unseen.detach()):.3f}", step + 1, steps)
    return (raw.detach().sigmoid() * 255).round() / 255


def suspected(x: Tensor, patch: Tensor, restorer: Specialists, calibration: Calibration) -> Tensor:
    """Softplus of what each image's two logits, of a local and a dense trigger, lie above their thresholds."""
    local, dense = calibration.thresholds
    answer = restorer(at(PLACE, PLACE, patch)(x, Generator()) * 2 - 1)
    above_local, above_dense = local_suspicion(answer.local) - local, answer.dense - dense
    return functional.softplus(above_local) + functional.softplus(above_dense)


def contrast(x: Tensor, patch: Tensor) -> Tensor:
    """Mean absolute difference of each image's pixels from the patch over them, in [0, 1]."""
    under = x[..., PLACE : PLACE + SIDE, PLACE : PLACE + SIDE]
    return (under - patch).abs().mean(dim=(1, 2, 3))


@torch.no_grad()
def seen(images: Tensor, patch: Tensor, restorer: Specialists) -> dict[str, float]:
    """Mean contrast, and the mean of each logit with the patch on the images."""
    answer = restorer(at(PLACE, PLACE, patch)(images, Generator()) * 2 - 1)
    logits = {"local": mean(local_suspicion(answer.local)), "dense": mean(answer.dense)}
    return {"contrast": mean(contrast(images, patch)), **logits}


def render(document: Document) -> str:
    """A row for each trigger."""
    head = ["trigger", "contrast", "flagged: clean / triggered"]
    head += [f"{name}: CA / PA / ASR" for name in ("no defense", "`restore`")] + ["PA if its region were filled"]
    lines = []
    for row in document["rows"]:
        flagged = " / ".join(f"{share:.3f}" for share in row["restore"]["flagged"])
        shares = [" / ".join(f"{value(row[name][key]):.3f}" for key in ("CA", "PA", "ASR")) for name in COLUMNS]
        ceiling = f"{row['restore']['ceiling']:.3f}"
        lines.append([row["trigger"], f"{row['contrast']:.2f}", flagged, *shares, ceiling])
    return markdown(head, lines)


def draw(document: Document, out: Path) -> None:
    """The optimised patch, enlarged."""
    pixels = torch.tensor(document["rows"][-1]["patch"], dtype=torch.uint8)
    to_pil_image(pixels).resize((16 * SIDE, 16 * SIDE), Image.Resampling.NEAREST).save(beside(out, ".png"))


ADAPTIVE_PATCH = Study(
    title="An attacker who knows preset restore",
    cells=cells,
    render=render,
    n=300,
    options={"steps": 150, "batch": 32, "contrast": 0.25, "epochs": 2},
    data=lambda plan: "GTSRB test",
    finish=draw,
)
