"""An attacker who knows preset "restore": a universal 5x5 patch that its search does not see.

    python examples/adaptive_patch.py --out docs/results/adaptive-patch

The weights are public, and the whole decision of stage 2 (network, local logits, ``local_suspicion``, and the logit of
a dense trigger) is differentiable: the gradient goes through it exactly, and no approximation such as BPDA (Athalye et
al. 2018) is needed. The fill and the thresholding are not differentiated: below the thresholds nothing is filled.

The patch has one place, one pixel off the lower right corner, and is optimised on GTSRB training images without those
held out. In each image it must differ from the pixels under it by --contrast on average (a penalty), so that a patch
equal to the background is no answer. One small classifier then learns it as a trigger, beside a white patch at the
same place: the difference between the two rows is what knowing stage 2 costs the defense. Test images are cropped to
the sign.
Writes OUT.json, OUT.md, and OUT.png: the patch, enlarged.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from _gtsrb import Victim, command_line, hardware, load_gtsrb
from _patches import WHITE, Trigger, at, network, square, target_of, train
from PIL import Image
from restore_table import build, mean, measure, training_views
from torch import Generator, Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import to_pil_image

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.calibration import Calibration
from sampdetox_transforms.method.search import local_suspicion
from sampdetox_transforms.networks.precision import has_fast_bf16
from sampdetox_transforms.networks.restorer import Specialists
from sampdetox_transforms.networks.restorer_files import load_restorer

SIDE, PLACE = 5, 26  # rows and columns 26 to 30 of 0 to 31
RATE, PENALTY = 0.1, 30.0
SETTINGS = ("no defense", "restore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--n", type=int, default=300, help="test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=32, help="training images a step")
    parser.add_argument("--contrast", type=float, default=0.25, help="least mean difference from the pixels under it")
    parser.add_argument("--epochs", type=int, default=2, help="of the classifier")
    parser.add_argument("--out", type=Path, required=True, help="path without a suffix for .json, .md and .png")
    args = parser.parse_args()

    views, labels, held_out = training_views()
    images, labels = views[1][~held_out], labels[~held_out]
    restorer, calibration = load_restorer()
    generator = Generator().manual_seed(args.seed)
    bf16 = has_fast_bf16(torch.device("cpu"))
    # the cache would keep the classifier's first weights, since the context outlives a step
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        patch = optimise(images, restorer, calibration, args.steps, args.batch, args.contrast, generator)
        patches = {"white 5x5": square(WHITE, SIDE), "optimised 5x5": patch}
        model = network()
        train(model, images, labels, {name: at(PLACE, PLACE, p) for name, p in patches.items()}, args.epochs)
    model.eval()

    images, labels = load_gtsrb("test", args.n, args.seed)
    rows, memory = [], {setting: {} for setting in SETTINGS}
    defenses = {setting: build(setting, args, None) for setting in SETTINGS}
    for i, (name, p) in enumerate(patches.items()):
        victim = Victim(name, model, fixed(at(PLACE, PLACE, p)), target_of(i))
        found = {s: measure(defenses[s], victim, images, labels, None, memory[s]) for s in SETTINGS}
        rows.append({"trigger": name, **seen(images, p, restorer), **found})
        print(rows[-1], file=sys.stderr, flush=True)
    result = {
        "command": command_line(),
        "n": args.n,
        "seed": args.seed,
        "hardware": hardware(),
        "thresholds": calibration.thresholds,
        "patch": (patch * 255).round().int().tolist(),
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out.with_suffix(".json"), lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    write_atomically(args.out.with_suffix(".md"), lambda path: path.write_text(table(result)))
    to_pil_image(patch).resize((16 * SIDE, 16 * SIDE), Image.Resampling.NEAREST).save(args.out.with_suffix(".png"))
    print(table(result))


def optimise(
    images: Tensor,
    restorer: Specialists,
    calibration: Calibration,
    steps: int,
    batch: int,
    least: float,
    generator: Generator,
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
        if step % 25 == 0 or step + 1 == steps:
            print(f"step {step}: suspected {float(unseen.detach()):.3f}", file=sys.stderr, flush=True)
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


def fixed(trigger: Trigger) -> Callable[[Tensor], Tensor]:
    return lambda images: trigger(images, Generator())


def table(result: dict) -> str:
    """Markdown: a row for each trigger."""
    lines = ["| trigger | contrast | flagged: clean / triggered "]
    lines += [f"| {name}: CA / PA / ASR " for name in ("no defense", "`restore`")]
    lines.append("| PA if its region were filled |\n" + "|---" * 6 + "|\n")
    for row in result["rows"]:
        flagged = " / ".join(f"{share:.3f}" for share in row["restore"]["flagged"])
        cells = [" / ".join(f"{row[setting][key]:.3f}" for key in ("CA", "PA", "ASR")) for setting in SETTINGS]
        first, last = f"{row['trigger']} | {row['contrast']:.2f}", f"{row['restore']['ceiling']:.3f}"
        lines.append(f"| {' | '.join([first, flagged, *cells, last])} |\n")
    lines.append(
        f"\n`{result['command']}`: GTSRB test, {result['n']} images, seed {result['seed']}; {result['hardware']}.\n"
    )
    return "".join(lines)


if __name__ == "__main__":
    main()
