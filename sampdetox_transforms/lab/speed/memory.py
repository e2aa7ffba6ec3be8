"""Peak memory of one photograph and of many small images: it grows with the batch, not with what is handed in.

    python -m sampdetox_transforms.lab.speed.memory --out docs/results/memory

The peak is the resident size of the whole process, interpreter and libraries included (Linux), on CUDA what torch
allocated. ``idle`` is the process with the weights loaded.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sampdetox_transforms import SampDetox
from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.environment import describe
from sampdetox_transforms.lab.speed.images import benchmark_images
from sampdetox_transforms.lab.speed.measure import peak_memory_mb


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--preset", default="restore")
    parser.add_argument("--side", type=int, default=1024, help="of the photograph, in pixels")
    parser.add_argument("--data", help="image folder for the small images (default: smooth random ones)")
    parser.add_argument("--many", type=int, default=10_000, help="number of 32x32 images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="path without a suffix for the .json and .md files")
    args = parser.parse_args(argv)
    detox = SampDetox(args.weights, preset=args.preset, device=args.device)
    device = torch.device(args.device)
    torch.manual_seed(0)
    inputs = {
        "idle": None,
        f"1 of {args.side}x{args.side}": (1, args.side),
        "64 of 32x32": (64, 32),
        f"{args.many} of 32x32": (args.many, 32),
    }
    rows = []
    for name, shape in inputs.items():
        images = None if shape is None else some_images(args.data, *shape).to(device)
        started = time.perf_counter()
        peak = peak_memory_mb(lambda images=images: None if images is None else detox(images), device)
        rows.append({"input": name, "peak_memory_mb": peak, "seconds": time.perf_counter() - started})
    about = {"weights": args.weights, "preset": args.preset, "dtype": str(detox.denoiser.dtype).removeprefix("torch.")}
    lines = ["| input | peak memory, MB | seconds |", "|---|---|---|"]
    lines += [f"| {r['input']} | {r['peak_memory_mb'] or 0:.0f} | {r['seconds']:.1f} |" for r in rows]
    environment = describe(device)
    data = f" --data {'/'.join(Path(args.data).parts[-2:])}" if args.data else ""
    command = f"python -m sampdetox_transforms.lab.speed.memory --preset {args.preset}{data}"
    footnote = (
        f"{', '.join(f'{k} {v}' for k, v in about.items())}; {environment['hardware']}, torch {environment['torch']}."
    )
    text = "\n".join(lines) + f"\n\n`{command}`: {footnote}\n"
    print(text)
    if args.out:
        result = {**about, "environment": environment, "rows": rows}
        write_atomically(
            args.out.with_suffix(".json"), lambda path: path.write_text(json.dumps(result, indent=1) + "\n")
        )
        write_atomically(args.out.with_suffix(".md"), lambda path: path.write_text(text))


def some_images(data: str | None, n: int, side: int) -> torch.Tensor:
    """Images of a folder, again and again, or smooth ones; a photograph is always a smooth one."""
    if data is None or n == 1:
        return smooth_images(n, side)
    images = benchmark_images(data, side, min(n, 640))
    return images[torch.arange(n) % len(images)]


def smooth_images(n: int, side: int) -> torch.Tensor:
    """Random smooth images, (n, 3, side, side) in [0, 1]."""
    coarse = torch.rand(n, 3, 8, 8)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


if __name__ == "__main__":
    main()
