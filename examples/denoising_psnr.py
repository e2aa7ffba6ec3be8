"""Denoising PSNR of denoisers, one network call each, beside non-local means that is told the noise level.

    python examples/denoising_psnr.py --weights bundled "$SAMPDETOX_DATA/models/denoiser-lownoise-32"

Sigma is the noise std beside images in [-1, 1]; PSNR is the mean over the images, in dB, after clamping to the range.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from _gtsrb import command_line, data_folder, hardware
from PIL import Image
from skimage.restoration import denoise_nl_means
from torch import Tensor
from torchvision.transforms.v2 import functional

from sampdetox_transforms import load_denoiser
from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.metrics import denoise_once, psnr
from sampdetox_transforms.training.data import list_images

SIGMAS = (0.05, 0.1, 0.2, 0.4)
SETS = ("gtsrb32/test", "cifar10-lossless/test")


def load(folder: Path, n: int, seed: int) -> Tensor:
    paths = list_images([folder])
    chosen = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    images = [functional.pil_to_tensor(Image.open(paths[i]).convert("RGB")) for i in chosen]
    return torch.stack(images).float() / 127.5 - 1


def non_local_means(x0: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Buades et al. 2005 with scikit-image, on [0, 1], patches of 5x5 within 7 pixels, h = .6 sigma (fast mode off)."""
    noisy = ((x0 + sigma * torch.randn(x0.shape, generator=generator)) / 2 + 0.5).double().numpy()
    std = sigma / 2
    options = {
        "patch_size": 5,
        "patch_distance": 7,
        "h": 0.6 * std,
        "sigma": std,
        "fast_mode": False,
        "channel_axis": 0,
    }
    restored = torch.stack([torch.from_numpy(denoise_nl_means(image, **options)) for image in noisy])
    return (restored.to(x0) * 2 - 1).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", nargs="+", default=["bundled"])
    parser.add_argument("--n", type=int, default=509)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="path without a suffix for the .json and .md files")
    args = parser.parse_args()
    methods = {Path(name).name: load_denoiser(name) for name in args.weights}
    rows = []
    for name in SETS:
        x0 = load(data_folder() / name, args.n, args.seed)
        for method in (*methods, "noisy input", "non-local means"):
            values = []
            for sigma in SIGMAS:
                generator = torch.Generator().manual_seed(args.seed)
                if method == "non-local means":
                    restored = non_local_means(x0, sigma, generator)
                elif method == "noisy input":
                    restored = (x0 + sigma * torch.randn(x0.shape, generator=generator)).clamp(-1, 1)
                else:
                    parts = [denoise_once(methods[method], part, sigma, generator) for part in x0.split(128)]
                    restored = torch.cat(parts)
                values.append(round(float(psnr(x0, restored).mean()), 2))
            rows.append({"data": name, "method": method, "n": len(x0), "psnr": values})
            print(rows[-1], file=sys.stderr)
    command = command_line()
    result = {"command": command, "seed": args.seed, "sigmas": SIGMAS, "hardware": hardware(), "rows": rows}
    lines = ["| images | denoiser | " + " | ".join(f"sigma {sigma:g}" for sigma in SIGMAS) + " |\n"]
    lines.append("|---" * (len(SIGMAS) + 2) + "|\n")
    for row in rows:
        cells = " | ".join(f"{value:.2f}" for value in row["psnr"])
        lines.append(f"| {row['data']} ({row['n']}) | {row['method']} | {cells} |\n")
    lines.append(f"\n`{command}`: PSNR in dB, seed {args.seed}; {result['hardware']}.\n")
    if args.out:
        write_atomically(
            args.out.with_suffix(".json"), lambda path: path.write_text(json.dumps(result, indent=1) + "\n")
        )
        write_atomically(args.out.with_suffix(".md"), lambda path: path.write_text("".join(lines)))
    print("".join(lines))


if __name__ == "__main__":
    main()
