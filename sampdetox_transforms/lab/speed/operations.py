"""Which operations take the time of one purified batch: torch's profiler, the ten largest.

python -m sampdetox_transforms.lab.speed.operations --preset ddim --out docs/results/profile-ddim
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from sampdetox_transforms import SampDetox
from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.demo.signs import draw_signs
from sampdetox_transforms.lab.environment import describe


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--preset", default="restore")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="path without a suffix for the .md file")
    args = parser.parse_args(argv)
    detox = SampDetox(args.weights, preset=args.preset, device=args.device, batch_size=args.batch_size)
    images = draw_signs(args.batch_size, seed=0)[0].to(args.device)
    detox(images)
    cuda = [ProfilerActivity.CUDA] if args.device.startswith("cuda") else []
    with profile(activities=[ProfilerActivity.CPU, *cuda]) as profiler:
        detox(images)
    events = profiler.key_averages()
    name = "self_device_time_total" if cuda else "self_cpu_time_total"
    total = sum(getattr(event, name) for event in events)
    largest = sorted(events, key=lambda event: -getattr(event, name))[:10]
    lines = ["| operation | calls | ms | share |", "|---|---|---|---|"]
    for event in largest:
        spent = getattr(event, name)
        lines.append(f"| `{event.key}` | {event.count} | {spent / 1000:.1f} | {spent / total:.1%} |")
    environment, dtype = describe(torch.device(args.device)), str(detox.denoiser.dtype).removeprefix("torch.")
    text = "\n".join(lines) + (
        f"\n\n`python -m sampdetox_transforms.lab.speed.operations --preset {args.preset}`: "
        f"batch of {args.batch_size} at 32x32, {dtype}; "
        f"{environment['hardware']}, torch {environment['torch']}.\n"
    )
    print(text)
    if args.out:
        write_atomically(args.out.with_suffix(".md"), lambda path: path.write_text(text))


if __name__ == "__main__":
    main()
