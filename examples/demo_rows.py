"""Rows for drawn signs and the embedded classifier: what anyone can recompute without any data.

python examples/demo_rows.py docs/results/demo-signs.json
"""

import sys
from pathlib import Path

from sampdetox_transforms import PRESETS, load_denoiser
from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.demo.classifier import demo_victims
from sampdetox_transforms.lab.demo.signs import CLASSES, draw_signs
from sampdetox_transforms.lab.evaluation.engine import evaluate
from sampdetox_transforms.lab.evaluation.experiments import Tools
from sampdetox_transforms.lab.evaluation.render import footnote, render
from sampdetox_transforms.lab.evaluation.report import Report
from sampdetox_transforms.lab.evaluation.rows import NO_DEFENSE
from sampdetox_transforms.lab.victims.poisoned import Images

N, SEED = 64, 5


def rows(names: tuple[str, ...] | None = None, out: str | None = None) -> Report:
    """CA, PA and ASR of the embedded classifier on 64 drawn signs, without and with SampDetox."""
    victims = [victim for victim in demo_victims() if names is None or victim.name in names]
    dataset = Images(*draw_signs(N, SEED), list(CLASSES))
    columns = [NO_DEFENSE, Tools(denoiser=load_denoiser("bundled")).sampdetox("sampdetox", PRESETS["ddim"])]
    about = {"command": "python examples/demo_rows.py docs/results/demo-signs.json", "data": "drawn signs"}
    return evaluate(victims, columns, dataset, seed=SEED, out=out, about=about)


if __name__ == "__main__":
    report = rows(out=sys.argv[1])
    text = f"{render(report.rows)}\n\n{footnote(report.settings, report.environments)}\n"
    write_atomically(Path(sys.argv[1]).with_suffix(".md"), lambda path: path.write_text(text))
    print(text)
