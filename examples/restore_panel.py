"""Draw what preset "restore" does on drawn signs: input, stage 1, suspicion, filled pixels, result.

    python examples/restore_panel.py docs/restore.png

The rows are a clean sign, two visible triggers and two that lie all over the image. Drawn signs are flatter and more
colourful than the photographs that the network was trained on; the thresholds are those for photographs.
"""

import math
import sys

import torch
from torch import Tensor

from sampdetox_transforms import SampDetox
from sampdetox_transforms.lab.attacks import blended, sig
from sampdetox_transforms.lab.attacks.pictures import cartoon
from sampdetox_transforms.lab.demo.classifier import TRIGGERS
from sampdetox_transforms.lab.demo.signs import draw_signs
from sampdetox_transforms.lab.drawing.panel import draw_panel, explanation_row


def triggered(signs: Tensor) -> dict[str, Tensor]:
    """Title of the row -> image with the trigger."""
    pixels, square = TRIGGERS[1], TRIGGERS[2]
    return {
        "no trigger": signs[0],
        "white square": square.plant(signs[1]),
        "nine pixels": pixels.plant(signs[2]),
        "sinusoid (SIG)": sig(signs[3], delta=40 / 255, frequency=6),
        "blended 10 %": blended(signs[4], picture=cartoon(32, 32), alpha=0.1),
    }


def main() -> None:
    out = sys.argv[1] if len(sys.argv) > 1 else "restore.png"
    signs, _ = draw_signs(6, seed=4)
    detox, rows = SampDetox("bundled", preset="restore", seed=0, dtype=torch.float32), []
    for name, image in triggered(signs).items():
        explained = detox.explain(image)
        rate = float(explained.false_alarm_rate)
        verdict = "treated" if rate < detox.calibration.false_alarm_rate else "not suspected"
        rows.append((f"{name}\n{verdict}, {math.ceil(1000 * rate) / 10:g} %", explanation_row(image, explained)))
    draw_panel(rows, out, heading='preset "restore"; in per cent: clean images that look at least as suspicious')


if __name__ == "__main__":
    main()
