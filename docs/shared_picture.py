"""The picture of docs/shared_trigger.md: triggers recovered from 200 unlabelled images, 40 of them triggered.

    python docs/shared_picture.py VICTIM...     # folders of `sampdetox victim`; draws docs/shared_triggers.png

Each row: what the attacker's trigger changes, what was recovered, its opacity, an image before and after.
"""

import sys
from pathlib import Path

import torch

from sampdetox_transforms import SampDetox, recover_trigger
from sampdetox_transforms.lab.data import data_path, drawn
from sampdetox_transforms.lab.drawing.shared import draw_shared_triggers
from sampdetox_transforms.lab.victims.poisoned import image_folder
from sampdetox_transforms.lab.victims.victim import load_victim, materialise

OUT = Path(__file__).parent / "shared_triggers.png"
TRAFFIC, TRIGGERED = 200, 40


def main(folders: list[str]) -> None:
    detox, rows = SampDetox("bundled", seed=0, dtype=torch.float32), {}
    dataset = image_folder(data_path("gtsrb32/test"), 32)
    chosen = drawn(len(dataset), TRAFFIC, 0).tolist()
    images, labels = materialise(torch.utils.data.Subset(dataset, chosen))
    for folder in folders:
        victim = load_victim(Path(folder))
        assert victim.attack is not None
        some = (labels != victim.target_label).nonzero()[:TRIGGERED, 0]
        with torch.no_grad():
            triggered = (victim.attack(images[some]) * 255).round() / 255
            found = recover_trigger(images.index_put((some,), triggered), detox)
        print(f"{victim.name}: {found}")
        if found is not None:
            rows[victim.name] = found, triggered, images[some]
    draw_shared_triggers(rows, OUT)


if __name__ == "__main__":
    main(sys.argv[1:])
