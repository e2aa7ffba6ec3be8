"""The picture of docs/shared_trigger.md: triggers recovered from 48 crops of photographs, of which 16 carry each.

    python docs/shared_trigger_picture.py docs/shared_trigger.png

The photographs are scikit-image's coffee, cat and rocket, which are free to use; no other data are needed.
"""

import sys

import torch
from skimage import data
from torch.nn import functional

from sampdetox_transforms import SampDetox
from sampdetox_transforms.lab.attacks.badnets import badnets
from sampdetox_transforms.lab.attacks.blended import blended
from sampdetox_transforms.lab.attacks.pictures import cartoon
from sampdetox_transforms.lab.attacks.sig import sig
from sampdetox_transforms.lab.drawing.shared import draw_shared_triggers
from sampdetox_transforms.method.shared_trigger import recover_shared
from sampdetox_transforms.transforms.shared_images import fill_by
from sampdetox_transforms.transforms.shared_recovery import from_recovered

SIZE, NUMBER, CARRIERS = 32, 48, 16


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
    attacks = {
        "white square": badnets,
        "blended picture": lambda x: blended(x, cartoon(SIZE, SIZE), alpha=0.2),
        "wave": sig,
    }
    detox, clean, rows = SampDetox("bundled", seed=0, dtype=torch.float32), crops(NUMBER, 0), {}
    with torch.no_grad():
        purified = detox(clean)
        for name, attack in attacks.items():
            carrying = (attack(clean[:CARRIERS]) * 255).round() / 255
            images = torch.cat([carrying, clean[CARRIERS:]])
            found = recover_shared(images, torch.cat([detox(carrying), purified[CARRIERS:]]), most=1)
            print(name, "found" if found else "not found", flush=True)
            if found:
                rows[name] = from_recovered(found[0], 0.01, fill_by(detox)), carrying[1:3], clean[1:3]
                draw_shared_triggers(rows, sys.argv[1], shown=2)


if __name__ == "__main__":
    main()
