"""CA, PA and ASR of two public backdoored GTSRB classifiers behind each setting, and how well each map finds a trigger.

    python examples/gtsrb_table.py --weights bundled --out docs/results/gtsrb-bundled

CA is the share of clean images classified rightly; PA and ASR are the shares of triggered images (true label not the
target) given their true label, and the target. Images are cropped to the sign, drawn with --seed. The settings that
walk every level (DDPM) are measured on --n-ddpm images. Writes OUT.json and OUT.md, and prints the latter.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from _gtsrb import command_line, hardware, load_gtsrb, load_victims
from torch import Tensor

from sampdetox_transforms import PRESETS, Preset, SampDetox, load_denoiser
from sampdetox_transforms._common import write_atomically

SSIM = Preset(map="ssim", data_range=1)
SETTINGS: dict[str, Preset | None] = {
    "no defense": None,
    "stage 1 only, t1=20, DDIM": Preset(t2=0),
    "stage 1 only, t1=120, DDIM": Preset(t1=120, t2=0),
    "DDIM 20/120, SSIM data_range 255, Gaussian": replace(SSIM, window="gaussian", data_range=255),
    "DDIM 20/120, SSIM data_range 255, uniform": replace(SSIM, data_range=255),
    "DDIM 20/120, SSIM data_range 1, Gaussian": replace(SSIM, window="gaussian"),
    "DDIM 20/120, blurred squared error": Preset(map="squared_error"),
    "`paper`": PRESETS["paper"],
    "`paper-linear`": PRESETS["paper-linear"],
    "`authors-code`": PRESETS["authors-code"],
}
MAPS = {
    "SSIM, data_range 1, uniform 7": SSIM,
    "SSIM, data_range 1, Gaussian 1.5": replace(SSIM, window="gaussian"),
    "SSIM, data_range 255, uniform 7": replace(SSIM, data_range=255),
    "SSIM, data_range 255, Gaussian 1.5": replace(SSIM, window="gaussian", data_range=255),
    "blurred squared error": Preset(map="squared_error"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--n", type=int, default=500, help="images a cell")
    parser.add_argument("--n-ddpm", type=int, default=100, help="images a cell for the settings that walk every level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", choices=("all", "ddim", "ddpm"), default="all", help="ddpm: those of --n-ddpm")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--render", action="store_true", help="only write OUT.md anew from OUT.json")
    parser.add_argument("--out", type=Path, help="path without a suffix for the .json and .md files")
    args = parser.parse_args()

    if args.render:
        result = json.loads(args.out.with_suffix(".json").read_text())
        write_atomically(args.out.with_suffix(".md"), lambda path: path.write_text(table(result)))
        return
    denoiser = load_denoiser(args.weights).set_precision(getattr(torch, args.dtype))
    images, labels = load_gtsrb(args.split, args.n, args.seed)
    victims = load_victims()
    rows = []
    for name, preset in SETTINGS.items():
        every_level = preset is not None and preset.stride == 1
        if args.settings != "all" and every_level != (args.settings == "ddpm"):
            continue
        n = min(args.n, args.n_ddpm) if every_level else args.n
        row = measure(preset, denoiser, images[:n], labels[:n], victims, args.seed)
        rows.append({"setting": name, "preset": preset and asdict(preset), **row})
        print(f"{name}: {rows[-1]}", file=sys.stderr)
    maps = {} if args.settings == "ddpm" else MAPS
    aucs = {name: map_auc(preset, denoiser, images, labels, victims, args.seed) for name, preset in maps.items()}
    result = {
        "command": command_line(),
        "weights": denoiser.source if args.weights == "bundled" else Path(args.weights).name,
        "split": args.split,
        "seed": args.seed,
        "dtype": args.dtype,
        "victims": [victim.name for victim in victims],
        "hardware": hardware(),
        "rows": rows,
        "map_auc": aucs,
    }
    text = table(result)
    if args.out:
        write_atomically(
            args.out.with_suffix(".json"), lambda path: path.write_text(json.dumps(result, indent=1) + "\n")
        )
        write_atomically(args.out.with_suffix(".md"), lambda path: path.write_text(text))
    print(text)


def measure(preset, denoiser, images: Tensor, labels: Tensor, victims, seed: int) -> dict:
    """One row: CA, PA, ASR for each victim, milliseconds and network calls an image."""
    detox = None if preset is None else SampDetox(denoiser, preset=preset, seed=seed)
    calls, start = [], time.perf_counter()

    def purified(x: Tensor) -> Tensor:
        if detox is None:
            return x
        explained = detox.explain(x)
        calls.append(explained.network_calls.float())
        return explained.image

    clean, row = purified(images), {}
    triggered = {}
    for victim in victims:
        other = labels != victim.target_label
        triggered[victim.name] = (purified(victim.trigger(images[other])), labels[other])
    seconds = time.perf_counter() - start
    n = len(images) + sum(len(x) for x, _ in triggered.values())
    for victim in victims:
        x, y = triggered[victim.name]
        with torch.no_grad():
            answer, clean_answer = victim.model(x).argmax(1), victim.model(clean).argmax(1)
        row[victim.name] = {
            "CA": share(clean_answer == labels),
            "PA": share(answer == y),
            "ASR": share(answer == victim.target_label),
            "n_clean": len(labels),
            "n_triggered": len(y),
        }
    row["ms_per_image"] = round(1000 * seconds / n, 2)
    row["network_calls"] = round(float(torch.cat(calls).mean()), 2) if calls else 0
    return row


def map_auc(preset: Preset, denoiser, images: Tensor, labels: Tensor, victims, seed: int) -> dict:
    """How well the map after stage 1 ranks the trigger's pixels above the others: mean AUC over the images."""
    detox = SampDetox(denoiser, preset=replace(preset, t2=0), seed=seed)
    aucs = {}
    for victim in victims:
        clean = images[labels != victim.target_label]
        triggered = victim.trigger(clean)
        score = detox.explain(triggered).ssim_map.flatten(1)
        inside = (triggered != clean).any(dim=1).flatten(1)
        rank = score.argsort(dim=1).argsort(dim=1).double() + 1
        positive, total = inside.sum(dim=1), inside.shape[1]
        above = (rank * inside).sum(dim=1) - positive * (positive + 1) / 2
        usable = (positive > 0) & (positive < total)
        aucs[victim.name] = round(float((above / (positive * (total - positive)))[usable].mean()), 3)
    return aucs


def share(hits: Tensor) -> float:
    return round(float(hits.double().mean()), 4)


def table(result: dict) -> str:
    """The Markdown tables, with the command and hardware under them."""
    names = result["victims"]
    head = "| setting | " + " | ".join(f"{name}: CA / PA / ASR" for name in names) + " | calls | ms an image | n |\n"
    lines = [head, "|---" * (len(names) + 4) + "|\n"]
    for row in result["rows"]:
        cells = [f"{row[name]['CA']:.3f} / {row[name]['PA']:.3f} / {row[name]['ASR']:.3f}" for name in names]
        n = row[names[0]]["n_clean"]
        preset = " (`ddim`)" if row["preset"] == asdict(PRESETS["ddim"]) else ""
        cost = f"{row['network_calls']:g} | {row['ms_per_image'] or '-'}"
        lines.append(f"| {row['setting']}{preset} | {' | '.join(cells)} | {cost} | {n} |\n")
    if result["map_auc"]:
        lines += ["\n| map after stage 1 (t1=20) | " + " | ".join(f"AUC, {name}" for name in names) + " |\n"]
        lines += ["|---" * (len(names) + 1) + "|\n"]
    for name, auc in result["map_auc"].items():
        lines.append(f"| {name} | {' | '.join(f'{auc[victim]:.3f}' for victim in names)} |\n")
    lines.append(
        f"\n`{result['command']}`: weights `{result['weights']}`, GTSRB {result['split']}, seed {result['seed']}, "
        f"{result['dtype']}; {result['hardware']}.\n"
    )
    return "".join(lines)


if __name__ == "__main__":
    main()
