"""The picture of docs/shared_trigger.md: triggers recovered from 200 crops of photographs, of which 40 carry each.

    python docs/shared_trigger_picture.py docs/shared_trigger.png

The photographs are scikit-image's coffee, cat and rocket, which are free to use; no other data are needed.
"""

import sys

import torch
from skimage import data
from torch.nn import functional

from sampdetox_transforms import SampDetox, recover_trigger
from sampdetox_transforms.lab.attacks.badnets import badnets
from sampdetox_transforms.lab.attacks.blended import blended
from sampdetox_transforms.lab.attacks.pictures import cartoon, sunrise
from sampdetox_transforms.lab.attacks.sig import sig
from sampdetox_transforms.lab.drawing.shared import draw_shared_triggers

SIZE, NUMBER, CARRIERS = 32, 200, 40


def crops(n: int, seed: int) -> torch.Tensor:
    """Crops of 40 to 200 pixels, brought to 32, in whole 255ths."""
    generator = torch.Generator().manual_seed(seed)
    photographs = [
        torch.from_numpy(load()).movedim(-1, 0).float() / 255 for load in (data.coffee, data.cat, data.rocket)
    ]
    result = []
    for i in range(n):
        photograph = photographs[i % len(photographs)]
        side = int(torch.randint(40, 200, (), generator=generator))
        y, x = (int(torch.randint(length - side, (), generator=generator)) for length in photograph.shape[1:])
        crop = photograph[None, :, y : y + side, x : x + side]
        result.append(functional.interpolate(crop, size=(SIZE, SIZE), mode="bilinear", antialias=True)[0])
    return (torch.stack(result).clamp(0, 1) * 255).round() / 255


def main() -> None:
    noise = 14 / 255 * torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    attacks = {
        "white square": badnets,
        "blended picture": lambda x: blended(x, cartoon(SIZE, SIZE), alpha=0.2),
        "blended sunrise": lambda x: blended(x, sunrise(SIZE, SIZE), alpha=0.2),
        "wave": sig,
        "noise": lambda x: (x + noise).clamp(0, 1),
    }
    torch.set_num_threads(2)
    detox, clean, rows = SampDetox("bundled", seed=0, dtype=torch.float32), crops(NUMBER, 0), {}
    for name, attack in attacks.items():
        images = clean.clone()
        images[:CARRIERS] = (attack(clean[:CARRIERS]) * 255).round() / 255
        trigger = recover_trigger(images, detox)
        print(name, trigger, flush=True)
        if trigger is not None:
            rows[name] = trigger, images[1:3], clean[1:3]
    draw_shared_triggers(rows, sys.argv[1], shown=2)


if __name__ == "__main__":
    main()
