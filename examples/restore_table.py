"""Preset "restore" beside others, on public classifiers, on patches of our own, and on victims of the paper's attacks.

    python examples/restore_table.py --patch-victim runs/patches.safetensors --out docs/results/restore
    python examples/restore_table.py --victims runs/victims/* --out docs/results/restore-attacks

For each trigger CA, PA and ASR; CA is that of the same images without the trigger. "ceiling" is PA where the true
region, grown by one pixel, is filled by the same network. Images are cropped to the sign, those of --victims are whole.
Thresholds: those stored with the weights, or calibrated on 800 held-out training images of the same view.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from _gtsrb import Victim, command_line, data_folder, hardware, load_gtsrb, load_victims
from _patches import patch_victims
from torch import Tensor
from train_restorer import load_gtsrb_views

from sampdetox_transforms import SampDetox, load_denoiser
from sampdetox_transforms.checkpoints import write_atomically
from sampdetox_transforms.localisation import dilate
from sampdetox_transforms.metrics import paired_difference
from sampdetox_transforms.restoration import fill

SETTINGS = ("no defense", "ddim", "restore", "restore, calibrated")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--n", type=int, default=500, help="images a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--patch-victim", type=Path, help="file of the classifier with many patches; made if absent")
    parser.add_argument("--victims", type=Path, nargs="+", help="folders that `sampdetox victim` wrote")
    parser.add_argument("--out", type=Path, required=True, help="path without a suffix for the .json and .md files")
    args = parser.parse_args()

    views, labels, held_out = None, None, None
    if "restore, calibrated" in args.settings or (args.patch_victim and not args.patch_victim.exists()):
        views, labels, held_out = training_views()
    if args.victims:
        groups = [folder_victims(args.victims, args.n, args.seed)]
    else:
        images, truth = load_gtsrb("test", args.n, args.seed)
        victims = load_victims()
        if args.patch_victim:
            victims += patch_victims(args.patch_victim, lambda: (views[1][~held_out], labels[~held_out]))
        groups = [[(v, images, truth, None) for v in victims]]
    rows = []
    for setting in args.settings:
        detox = build(setting, args, None if views is None else views[0 if args.victims else 1][held_out])
        memory: dict = {}
        for victim, x, y, triggered in (entry for group in groups for entry in group):
            rows.append({"setting": setting, **measure(detox, victim, x, y, triggered, memory)})
            print(rows[-1], file=sys.stderr, flush=True)
    result = {"command": command_line(), "n": args.n, "seed": args.seed, "hardware": hardware(), "rows": rows}
    write_atomically(args.out.with_suffix(".json"), lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    write_atomically(args.out.with_suffix(".md"), lambda path: path.write_text(table(result)))
    print(table(result))


def training_views() -> tuple[list[Tensor], Tensor, Tensor]:
    """Training images, their labels, and which are held out."""
    views, held_out = load_gtsrb_views()
    lines = (data_folder() / "gtsrb32" / "train_roi.csv").read_text().splitlines()[1:]
    return views, torch.tensor([int(line.split(",")[1]) for line in lines]), held_out


def folder_victims(folders: list[Path], n: int, seed: int) -> list[tuple[Victim, Tensor, Tensor, Tensor]]:
    """Victims of ``sampdetox victim``, whole test images, and the same with their trigger."""
    from sampdetox_transforms.evaluation import CleanAndTriggered
    from sampdetox_transforms.victims import image_folder, load_victim

    dataset = image_folder(data_folder() / "gtsrb32" / "test", 32)
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:n]
    found = []
    for folder in folders:
        victim = load_victim(folder)
        data = CleanAndTriggered.of(victim, dataset, chosen, "cpu")
        if data.triggered is not None and isinstance(victim.target_label, int):
            own = Victim(folder.name, victim.model, lambda x: x, victim.target_label)
            found.append((own, data.clean, data.labels, data.triggered))
    return found


def build(setting: str, args: argparse.Namespace, clean: Tensor | None) -> SampDetox | None:
    if setting == "no defense":
        return None
    detox = SampDetox(load_denoiser(args.weights), preset=setting.split(",")[0], seed=args.seed)
    if setting == "restore, calibrated":
        some = torch.randperm(len(clean), generator=torch.Generator().manual_seed(3))[:800]
        detox.calibrate(clean[some], data="GTSRB train, held out")
    return detox


@torch.no_grad()
def measure(detox, victim: Victim, images: Tensor, labels: Tensor, triggered: Tensor | None, memory: dict) -> dict:
    """One row of the table; clean images are purified once for all victims that share them."""
    other = labels != victim.target_label
    y = labels[other]
    x = victim.trigger(images[other]) if triggered is None else triggered
    if id(images) not in memory:
        memory[id(images)] = purified(detox, images)
    clean, clean_share, clean_calls = memory[id(images)]
    result, share, calls = purified(detox, x)
    right, before = classes(victim, clean) == labels, classes(victim, images) == labels
    answer = classes(victim, result)
    row = {
        "victim": victim.name,
        "CA": mean(right),
        "CA difference": asdict(paired_difference(right, before)),
        "CA of the others": mean(right[other]),
        "PA": mean(answer == y),
        "ASR": mean(answer == victim.target_label),
        "network calls": [mean(clean_calls), mean(calls)],
        "n": len(y),
    }
    if detox is not None and detox.restorer is not None:
        rate = detox.calibration.false_alarm_rate
        row |= {"flagged": [mean(clean_share < rate), mean(share < rate)]}
        region = (x - images[other]).abs().amax(dim=1, keepdim=True) > 2 / 255
        row["covered"] = mean(region)
        best = torch.cat(
            [
                (fill(a * 2 - 1, dilate(m, 1), detox.restorer) + 1) / 2
                for a, m in zip(x.split(64), region.split(64), strict=True)
            ]
        )
        row["ceiling"] = mean(classes(victim, best) == y)
    return row


def purified(detox: SampDetox | None, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result, the false-alarm rate at which each image is flagged, and network calls."""
    if detox is None:
        return images, torch.ones(len(images)), torch.zeros(len(images))
    explained = detox.explain(images)
    share = torch.ones(len(images)) if explained.false_alarm_rate is None else explained.false_alarm_rate
    return explained.image, share, explained.network_calls


def classes(victim: Victim, images: Tensor) -> Tensor:
    return torch.cat([victim.model(part).argmax(dim=1) for part in images.split(128)])


def mean(values: Tensor) -> float:
    return round(float(values.double().mean()), 4)


def table(result: dict) -> str:
    """Markdown: a row for each setting and victim, means under them."""
    lines = ["| setting | trigger | CA | CA - no defense | PA | ceiling | ASR | flagged: clean / triggered | calls |\n"]
    lines.append("|---" * 9 + "|\n")
    for setting in dict.fromkeys(row["setting"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["setting"] == setting]
        for row in rows:
            d = row["CA difference"]
            flagged = " / ".join(f"{v:.3f}" for v in row.get("flagged", [])) or "-"
            ceiling = f"{row['ceiling']:.3f}" if row.get("covered", 1) < 0.5 else "-"
            lines.append(
                f"| {setting} | {row['victim']} | {row['CA']:.3f} | {d['value']:+.3f} [{d['low']:+.3f}, "
                f"{d['high']:+.3f}] | {row['PA']:.3f} | {ceiling} | {row['ASR']:.3f} | {flagged} | "
                f"{row['network calls'][0]:.2f} / {row['network calls'][1]:.2f} |\n"
            )
        means = {key: sum(row[key] for row in rows) / len(rows) for key in ("CA", "PA", "ASR")}
        lines.append(
            f"| **{setting}** | **mean** | {means['CA']:.3f} | | {means['PA']:.3f} | | {means['ASR']:.3f} | | |\n"
        )
    lines.append(
        f"\n`{result['command']}`: GTSRB test, {result['n']} images, seed {result['seed']}; {result['hardware']}.\n"
    )
    return "".join(lines)


if __name__ == "__main__":
    main()
