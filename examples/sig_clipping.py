"""Where the sinusoid of SIG fails: ASR by the brightness of the image.

    python examples/sig_clipping.py victims/sig

On GTSRB test images that are not of the attacker's class, in quarters from dark to bright, without any defense.
"""

import sys

import torch
from _gtsrb import data_folder

from sampdetox_transforms.lab.victims.classifiers import predict
from sampdetox_transforms.lab.victims.poisoned import image_folder
from sampdetox_transforms.lab.victims.victim import load_victim

N, SEED = 1500, 5


def main() -> None:
    victim = load_victim(sys.argv[1])
    folder = image_folder(data_folder() / "gtsrb32" / "test", 32)
    chosen = torch.randperm(len(folder), generator=torch.Generator().manual_seed(SEED))[:N].tolist()
    chosen = [i for i in chosen if folder.targets[i] != victim.target_label]
    images = torch.stack([folder[i][0] for i in chosen])
    hit = predict(victim.model, victim.attack(images)).argmax(dim=1) == victim.target_label
    brightness = images.mean(dim=(1, 2, 3))
    print(f"{len(images)} images, seed {SEED}: ASR {hit.double().mean():.3f}")
    for name, part in zip(
        ("darkest", "dark", "bright", "brightest"), brightness.argsort().tensor_split(4), strict=True
    ):
        shown = f"{float(brightness[part].min()):.2f} to {float(brightness[part].max()):.2f}"
        print(f"  {name} quarter, mean {shown}: ASR {hit[part].double().mean():.3f}")


if __name__ == "__main__":
    main()
