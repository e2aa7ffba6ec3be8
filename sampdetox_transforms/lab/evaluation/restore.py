"""Experiments ``restore`` and ``restore-ablation``: classifiers of others, thirteen patches, or victims of folders.

For each trigger CA, PA and ASR; CA is that of the same images without the trigger. "ceiling" is PA where the true
region, grown by one pixel, is filled by the same networks. GTSRB is cropped to the sign, but whole for victims of
folders. Thresholds: those stored with the weights, or calibrated on up to 800 held-out training images of that view.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.data import CLASSES, HELD_OUT, data_path, drawn, gtsrb_training, load_folder, load_gtsrb
from sampdetox_transforms.lab.evaluation.behind import answers, planted, treat, value, victim_row
from sampdetox_transforms.lab.evaluation.measure import CleanAndTriggered
from sampdetox_transforms.lab.evaluation.study import NO_DEFENSE, Cell, Document, Plan, Study, markdown
from sampdetox_transforms.lab.evaluation.variants import NEVER, VARIANTS, never
from sampdetox_transforms.lab.victims.patches import patch_victims
from sampdetox_transforms.lab.victims.poisoned import image_folder
from sampdetox_transforms.lab.victims.public import load_public_victims
from sampdetox_transforms.lab.victims.victim import Victim, load_victim
from sampdetox_transforms.transforms.transform import SampDetox

TEST = {"gtsrb": "gtsrb32/test", "cifar10": "cifar10-lossless/test"}

TITLES = {"gtsrb": "GTSRB test", "cifar10": "CIFAR-10 test, lossless"}

# To the small patch classifier. CIFAR-10's copy for training is JPEG throughout, so that no trigger gives itself away.
TRAINING: dict[str, dict[str, Any]] = {"gtsrb": {}, "cifar10": {"epochs": 6, "flips": True}}

CALIBRATED = "restore, calibrated"

SETTINGS = (NO_DEFENSE, "ddim", "restore", CALIBRATED)

ABLATION = (NO_DEFENSE, "restore", *VARIANTS)

OPTIONS = {"images": "gtsrb", "patch_victim": None, "victims": ()}


@dataclass(frozen=True)
class Entry:
    """A victim and its test images."""

    victim: Victim
    data: CleanAndTriggered


def cells(plan: Plan) -> Iterable[Cell]:
    """A row for each setting and victim. Its key holds what was learned: after a change it is measured anew."""
    check_choice("images", plan.options["images"], tuple(TEST))
    entries, of_victim, ask = read_entries(plan), cache(lambda model: digest(model)), cache(answers)
    for setting in plan.settings:
        detox = build(setting, plan)
        clean = cache(lambda images, detox=detox: treat(detox, images))
        networks = digest_of(detox)  # once a setting, not once a row
        for entry in entries:
            key = {"setting": setting, "victim": entry.victim.name}
            key["networks"] = hashlib.sha256(f"{networks}{of_victim(entry.victim.model)}".encode()).hexdigest()[:16]

            def measure(detox=detox, entry=entry, clean=clean) -> dict[str, Any]:
                return victim_row(detox, entry.victim, entry.data, clean(entry.data.clean), ceiling=True, ask=ask)

            yield Cell(key, measure)


def read_entries(plan: Plan) -> list[Entry]:
    """The victims of folders, or the public ones and, where a file for it is named, those of thirteen patches."""
    images, folders = plan.options["images"], plan.options["victims"]
    if folders:
        return folder_entries([Path(folder) for folder in folders], plan)
    x, y = images_for_testing(images, plan.n, plan.seed, plan.data)
    victims = load_public_victims(images, data=plan.data)
    if plan.options["patch_victim"] is not None:
        victims += patch_victims(
            Path(plan.options["patch_victim"]),
            lambda: images_for_training(images, plan.data),
            classes=CLASSES[images],
            data=plan.data,
            **TRAINING[images],
        )
    return [Entry(victim, planted(victim, x, y)) for victim in victims]


def folder_entries(folders: list[Path], plan: Plan) -> list[Entry]:
    """Victims of ``sampdetox victim`` with one target class, and whole test images."""
    dataset = image_folder(data_path(TEST[plan.options["images"]], plan.data), 32)
    chosen, found = drawn(len(dataset), plan.n, plan.seed), []
    for folder in folders:
        victim = load_victim(folder)
        data = CleanAndTriggered.of(victim, dataset, chosen, "cpu")
        if data.triggered is not None and isinstance(victim.target_label, int):
            found.append(Entry(victim, data))
    return found


def build(setting: str, plan: Plan) -> SampDetox | None:
    """The defense of a setting."""
    if setting == NO_DEFENSE:
        return None
    preset = VARIANTS.get(setting, setting.split(",")[0])
    detox = plan.detox(preset)
    if detox.calibration is not None:
        detox.calibration = never(detox.calibration, *NEVER.get(setting, ()))
    if setting == CALIBRATED:
        images = plan.options["images"]
        clean = held_out_images(images, plan.data, whole=bool(plan.options["victims"]))
        some = clean[torch.randperm(len(clean), generator=torch.Generator().manual_seed(3))[:800]]
        detox.calibrate(some, data=TITLES[images].replace("test", "train, held out"))
    return detox


def images_for_testing(
    images: str, n: int, seed: int, data: Path | None
) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """``n`` test images in [0, 1], drawn with the seed, and their labels."""
    if images == "gtsrb":
        return load_gtsrb("test", n, seed, data=data)
    x, labels = load_folder(TEST[images], data=data)
    chosen = drawn(len(x), n, seed)
    return x[chosen].float() / 255, labels[chosen]


def images_for_training(images: str, data: Path | None) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """What a small classifier learns from, without the images held out, and labels."""
    if images == "cifar10":
        return load_folder("cifar10-jpeg/train", data=data)
    return gtsrb_training(whole=False, held_out=False, data=data)


def held_out_images(images: str, data: Path | None, *, whole: bool) -> UInt8[Tensor, "n c h w"]:
    """Training images that are held out; GTSRB whole or cropped."""
    if images == "cifar10":
        return load_folder("cifar10-lossless/train", data=data)[0][HELD_OUT - 1 :: HELD_OUT]
    return gtsrb_training(whole=whole, held_out=True, data=data)[0]


def digest_of(detox: SampDetox | None) -> str:
    """Of all that was learned in a defense: denoiser, search networks and thresholds."""
    if detox is None:
        return ""
    networks = [network for network in (detox.denoiser, detox.restorer) if network is not None]
    return digest(*networks, said=repr(detox.calibration))


def digest(*networks: nn.Module, said: str = "") -> str:
    sha = hashlib.sha256(said.encode())
    for network in networks:
        for tensor in network.state_dict().values():
            sha.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def render(document: Document) -> str:
    """A row for each setting and victim, means under them."""
    head = [
        "setting",
        "trigger",
        "CA",
        "CA - no defense",
        "PA",
        "ceiling",
        "ASR",
        "flagged: clean / triggered",
        "calls",
    ]
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["setting"] == setting]
        for row in rows:
            d = row["CA difference"]
            ca, pa, asr = (f"{value(row[name]):.3f}" for name in ("CA", "PA", "ASR"))
            flagged = " / ".join(f"{v:.3f}" for v in row.get("flagged", [])) or "-"
            ceiling = f"{row['ceiling']:.3f}" if row.get("covered", 1) < 0.5 else "-"
            difference = f"{d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
            calls = " / ".join(f"{v:.2f}" for v in row["network calls"])
            lines.append([setting, row["victim"], ca, difference, pa, ceiling, asr, flagged, calls])
        means = {name: sum(value(row[name]) for row in rows) / len(rows) for name in ("CA", "PA", "ASR")}
        ca, pa, asr = (f"{number:.3f}" for number in means.values())
        lines.append([f"**{setting}**", "**mean**", ca, "", pa, "", asr, "", ""])
    return markdown(head, lines)


def describe(plan: Plan) -> str:
    return TITLES[plan.options["images"]]


RESTORE = Study(
    title="Preset restore beside others, on public classifiers and patches",
    cells=cells,
    render=render,
    settings=SETTINGS,
    allowed=(*SETTINGS, *VARIANTS),
    options=OPTIONS,
    data=describe,
)

RESTORE_ABLATION = Study(
    title="Preset restore with one part taken out at a time",
    cells=cells,
    render=render,
    n=40,
    settings=ABLATION,
    allowed=(*SETTINGS, *VARIANTS),
    options=OPTIONS,
    data=describe,
)
