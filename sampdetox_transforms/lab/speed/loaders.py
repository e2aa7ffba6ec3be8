"""Images a second of a transform inside a DataLoader's workers, beside DetoxLoader behind the same loader.

    python -m sampdetox_transforms.lab.speed.loaders --weights bundled --workers 1 2

One epoch over drawn signs, after one that is not counted; on CUDA the transform in the workers stays on the processor.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from sampdetox_transforms import DetoxLoader, SampDetox
from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.demo.signs import draw_signs
from sampdetox_transforms.lab.environment import describe


class Signs(Dataset):
    """The same few drawn signs again and again, with a transform."""

    def __init__(self, n: int, transform=None):
        self.images, self.labels = draw_signs(min(n, 64), seed=0)
        self.n, self.transform = n, transform

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        image, label = self.images[i % len(self.images)], int(self.labels[i % len(self.labels)])
        return (image if self.transform is None else self.transform(image)), label


def images_per_second(loader, n: int) -> float:
    """Over one epoch, after one for warm-up."""
    for epoch in range(2):
        started = time.perf_counter()
        count = sum(len(labels) for _, labels in loader)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        assert count == n, epoch
    return n / (time.perf_counter() - started)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="path without a suffix for the .json and .md files")
    args = parser.parse_args(argv)
    in_worker, behind = SampDetox(args.weights, device="cpu"), SampDetox(args.weights, device=args.device)
    rows = []
    for workers in args.workers:
        options = {"batch_size": args.batch_size, "num_workers": workers, "persistent_workers": workers > 0}
        inside = DataLoader(Signs(args.n, in_worker), **options)
        after = DetoxLoader(DataLoader(Signs(args.n), **options), behind)
        rows.append({"workers": workers, "transform": images_per_second(inside, args.n),
                     "DetoxLoader": images_per_second(after, args.n)})  # fmt: skip
    shown = [f"--weights {Path(args.weights).name}", f"--workers {' '.join(map(str, args.workers))}",
             f"--batch-size {args.batch_size}", f"--n {args.n}"]  # fmt: skip
    about = {"command": f"python -m sampdetox_transforms.lab.speed.loaders {' '.join(shown)}", "device": args.device}
    environment = describe(args.device)
    lines = ["| workers | transform in the workers, images a second | DetoxLoader, images a second |", "|---|---|---|"]
    lines += [f"| {row['workers']} | {row['transform']:.4g} | {row['DetoxLoader']:.4g} |" for row in rows]
    lines += ["", f"`{about['command']}`: {args.device}, drawn signs of 32x32; {environment['hardware']}, torch "
              f"{environment['torch']}, sampdetox-transforms {environment['sampdetox-transforms']} "
              f"({environment['commit']})."]  # fmt: skip
    print("\n".join(lines))
    if args.out:
        document = json.dumps({"about": about, "environment": environment, "rows": rows}, indent=1) + "\n"
        write_atomically(args.out.with_suffix(".json"), lambda path: path.write_text(document))
        write_atomically(args.out.with_suffix(".md"), lambda path: path.write_text("\n".join(lines) + "\n"))


if __name__ == "__main__":
    main()
