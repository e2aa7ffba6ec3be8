"""Preset "restore" beside others, on public classifiers, on patches of our own, and on victims of the paper's attacks.

    python examples/restore_table.py --patch-victim runs/patches.safetensors --out docs/results/restore
    python examples/restore_table.py --data cifar10 --patch-victim runs/patches-cifar10.safetensors --out runs/cifar10
    python examples/restore_table.py --ablation --patch-victim runs/patches.safetensors --out runs/ablation
    python examples/restore_table.py --victims runs/victims/* --out docs/results/restore-attacks

For each trigger CA, PA and ASR; CA is that of the same images without the trigger. "ceiling" is PA where the true
region, grown by one pixel, is filled by the same network. GTSRB is cropped to the sign, but whole for --victims.
Thresholds: those stored with the weights, or calibrated on up to 800 held-out training images of the same view.

The ablation takes one part of the preset out at a time. "no search": stage 1 alone. "no dense answer": nothing is taken
for a dense trigger, and masks of any size are filled. "noise instead of fill": located pixels go through the paper's
local stage from t2.

A row that OUT.json holds for the same images, seed and networks is kept. After a change of the code: --overwrite.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from _gtsrb import CLASSES, Victim, command_line, data_folder, hardware, load_gtsrb, load_victims
from _patches import patch_victims
from torch import Tensor, nn
from train_restorer import HELD_OUT, load_folder, load_gtsrb_views

from sampdetox_transforms import SampDetox, load_denoiser
from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.metrics import paired_difference
from sampdetox_transforms.lab.victims.poisoned import image_folder
from sampdetox_transforms.method.answer import Answer
from sampdetox_transforms.method.calibration import Calibration
from sampdetox_transforms.method.noise import SeededNoise
from sampdetox_transforms.method.restore import SEARCH, fill, purify_and_restore
from sampdetox_transforms.method.sampdetox import Purified, local_stage
from sampdetox_transforms.method.samplers import grid
from sampdetox_transforms.method.search import dilate
from sampdetox_transforms.transforms.presets import PRESETS, Preset

TEST = {"gtsrb": "gtsrb32/test", "cifar10": "cifar10-lossless/test"}
NAMES = {"gtsrb": "GTSRB test", "cifar10": "CIFAR-10 test, lossless"}
# to the small patch classifier; CIFAR-10's copy for training is JPEG throughout, so that no trigger gives itself away
TRAINING: dict[str, dict[str, Any]] = {"gtsrb": {}, "cifar10": {"epochs": 6, "flips": True}}


def noise_located(x0: Tensor, denoiser, schedule, *, restorer, t2: float, stride: float, step, **rest: Any) -> Purified:
    """``purify_and_restore`` where located pixels are noised to t2 and denoised, not filled."""
    levels = grid(t2, stride)

    def answer(x: Tensor, mask: Tensor | None = None) -> Answer:
        if mask is None:
            return restorer(x)
        image = local_stage(x, t2 * mask.double(), denoiser, schedule, levels, step, SeededNoise(x, 0))
        return Answer(image, mask.to(x), torch.zeros(len(x)))  # of a fill nothing but the image is used

    search: Any = answer
    done = purify_and_restore(x0, denoiser, schedule, restorer=search, t2=t2, stride=stride, step=step, **rest)
    # calls besides the first search and the diffusions before and after: to fill, to look again (SEARCH), to fill, ...
    level = done.timestep_map.amax(dim=(1, 2, 3))
    looked = done.network_calls - (len(grid(rest["t1"], stride)) - 1 + SEARCH) - (level / stride).ceil().long()
    fills = (looked + SEARCH) // (1 + SEARCH)
    return replace(done, network_calls=done.network_calls + fills * (len(levels) - 2))


@dataclass(frozen=True, kw_only=True)
class Variant(Preset):
    """A preset with other arguments of ``purify_and_restore``, or another function in its place."""

    run: Any = purify_and_restore
    changed: dict[str, Any] = field(default_factory=dict)

    def algorithm(self) -> partial:
        return partial(self.run, **{**super().algorithm().keywords, **self.changed})


def never(calibration: Calibration, *kinds: str) -> Calibration:
    """The same where no image is suspected enough of these kinds of triggers; the lower values stay."""

    def out_of_reach(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(v + 1e9 * (i > 0.95 * (len(values) - 1)) for i, v in enumerate(values))

    return replace(calibration, **{kind: out_of_reach(getattr(calibration, kind)) for kind in kinds})


KEYWORDS = purify_and_restore.__kwdefaults__ or {}
RESTORE = Variant(**asdict(PRESETS["restore"]))
VARIANTS = {
    "restore, no search": RESTORE,
    "restore, no dense answer": replace(RESTORE, changed={"largest": 1.0}),
    "restore, one look": replace(RESTORE, changed={"margins": (0,)}),
    "restore, margin of 1 pixel": replace(RESTORE, changed={"margins": (1, 1)}),
    "restore, no hysteresis": replace(RESTORE, changed={"low": KEYWORDS["seed"]}),
    "restore, noise instead of fill": replace(RESTORE, run=noise_located),
    "restore, no estimate": replace(RESTORE, changed={"estimate": False}),
}
NEVER = {"restore, no search": ("local", "dense"), "restore, no dense answer": ("dense",)}
SETTINGS = ("no defense", "ddim", "restore", "restore, calibrated")
ABLATION = ("no defense", "restore", *VARIANTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="gtsrb", choices=TEST)
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--n", type=int, default=500, help="images a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=(*SETTINGS, *VARIANTS))
    parser.add_argument("--ablation", dest="settings", action="store_const", const=ABLATION, help="all for this table")
    parser.add_argument("--patch-victim", type=Path, help="file of the classifier with many patches; made if absent")
    parser.add_argument("--victims", type=Path, nargs="+", help="folders that `sampdetox victim` wrote")
    parser.add_argument("--out", type=Path, required=True, help="path without a suffix for the .json and .md files")
    parser.add_argument("--overwrite", action="store_true", help="measure rows anew that OUT.json holds")
    args = parser.parse_args()

    if args.victims:
        entries = folder_victims(args.victims, data_folder() / TEST[args.data], args.n, args.seed)
    else:
        images, truth = test_images(args.data, args.n, args.seed)
        victims = load_victims(args.data)
        if args.patch_victim:
            options = TRAINING[args.data]
            victims += patch_victims(
                args.patch_victim, partial(training_images, args.data), classes=CLASSES[args.data], **options
            )
        entries = [(v, images, truth, None) for v in victims]
    result: dict[str, Any] = {"command": command_line(), "data": NAMES[args.data], "n": len(entries[0][1])}
    result |= {"seed": args.seed, "hardware": hardware()}
    path, rows = args.out.with_suffix(".json"), []
    known = [] if args.overwrite else known_rows(path, result)

    def save(rows: list[dict]) -> None:
        text = json.dumps({**result, "rows": rows}, indent=1) + "\n"
        write_atomically(path, lambda part: part.write_text(text))

    for setting in args.settings:
        clean = held_out_images(args.data, whole=bool(args.victims)) if setting == "restore, calibrated" else None
        detox = build(setting, args, clean, NAMES[args.data])
        memory: dict = {}
        for victim, x, y, triggered in entries:
            key = {"setting": setting, "victim": victim.name, "networks": digest(victim, detox)}
            row = next((row for row in known if key.items() <= row.items()), None)
            rows.append({**key, **measure(detox, victim, x, y, triggered, memory)} if row is None else row)
            if row is None:
                save(rows + known)
                print(rows[-1], file=sys.stderr, flush=True)
    save(rows)
    text = table({**result, "rows": rows})
    write_atomically(args.out.with_suffix(".md"), lambda part: part.write_text(text))
    print(text)


def known_rows(path: Path, result: dict) -> list[dict]:
    """Rows of a file that was measured on the same images with the same seed."""
    old = json.loads(path.read_text()) if path.exists() else {}
    return old.get("rows", []) if all(old.get(key) == result[key] for key in ("data", "n", "seed")) else []


def digest(victim: Victim, detox: SampDetox | None) -> str:
    """Of all that was learned and that a row depends on: victim, denoiser, restorer and thresholds."""
    networks = [victim.model] + ([] if detox is None else [detox.denoiser, detox.restorer])
    states = [value for network in networks if network is not None for value in network.state_dict().values()]
    sha = hashlib.sha256(repr(None if detox is None else detox.calibration).encode())
    for value in states:
        sha.update(value.float().contiguous().numpy())
    return sha.hexdigest()[:16]


def test_images(data: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """``n`` test images in [0, 1], drawn with the seed, and their labels."""
    if data == "gtsrb":
        return load_gtsrb("test", n, seed)
    images, labels = labelled(TEST[data])
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n]
    return images[chosen].float() / 255, labels[chosen]


def training_images(data: str) -> tuple[Tensor, Tensor]:
    """What a small classifier learns from: uint8 images, without those held out, and labels."""
    if data == "cifar10":
        return labelled("cifar10-jpeg/train")
    views, labels, held_out = training_views()
    return views[1][~held_out], labels[~held_out]


def held_out_images(data: str, *, whole: bool) -> Tensor:
    """uint8 training images that no network of this package has seen; GTSRB whole or cropped."""
    if data == "cifar10":
        return labelled("cifar10-lossless/train")[0][HELD_OUT - 1 :: HELD_OUT]
    views, _, held_out = training_views()
    return views[0 if whole else 1][held_out]


def labelled(folder: str) -> tuple[Tensor, Tensor]:
    """All images of an image folder, uint8, and their labels."""
    path = data_folder() / folder
    return load_folder(path), torch.tensor(image_folder(path).targets)


@cache
def training_views() -> tuple[list[Tensor], Tensor, Tensor]:
    """GTSRB's training images, their labels, and which are held out."""
    views, held_out = load_gtsrb_views()
    lines = (data_folder() / "gtsrb32" / "train_roi.csv").read_text().splitlines()[1:]
    return views, torch.tensor([int(line.split(",")[1]) for line in lines]), held_out


def folder_victims(folders: list[Path], test: Path, n: int, seed: int) -> list[tuple[Victim, Tensor, Tensor, Tensor]]:
    """Victims of ``sampdetox victim``, whole test images, and the same with their trigger."""
    from sampdetox_transforms.lab.evaluation.measure import CleanAndTriggered
    from sampdetox_transforms.lab.victims.victim import load_victim

    dataset = image_folder(test, 32)
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:n]
    found = []
    for folder in folders:
        victim = load_victim(folder)
        data = CleanAndTriggered.of(victim, dataset, chosen, "cpu")
        if data.triggered is not None and isinstance(victim.target_label, int):
            own = Victim(folder.name, cast(nn.Module, victim.model), lambda x: x, victim.target_label)
            found.append((own, data.clean, data.labels, data.triggered))
    return found


def build(setting: str, args: argparse.Namespace, clean: Tensor | None, data: str = "") -> SampDetox | None:
    """The defense of a setting; ``clean`` are the images of ``data`` to calibrate "restore, calibrated" on."""
    if setting == "no defense":
        return None
    preset = VARIANTS.get(setting, setting.split(",")[0])
    detox = SampDetox(load_denoiser(args.weights), preset=preset, seed=args.seed)
    if detox.calibration is not None:
        detox.calibration = never(detox.calibration, *NEVER.get(setting, ()))
    if clean is not None:
        some = torch.randperm(len(clean), generator=torch.Generator().manual_seed(3))[:800]
        detox.calibrate(clean[some], data=data.replace("test", "train, held out"))
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
    images = f"{result['data']}, {result['n']} images, seed {result['seed']}"
    lines.append(f"\n`{result['command']}`: {images}; {result['hardware']}.\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
