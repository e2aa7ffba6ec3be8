"""Bring the official GTSRB and CIFAR-10 downloads into the form that the measuring scripts and tests read.

    python -m sampdetox_transforms.lab.prepare_data gtsrb DOWNLOAD OUT
    python -m sampdetox_transforms.lab.prepare_data cifar10 DOWNLOAD OUT

DOWNLOAD is the folder that holds Final_Training/ and Final_Test/, or cifar-10-batches-py/.

GTSRB becomes OUT/gtsrb32/{train,test}/<class>/*.webp, whole images at 32x32 (Lanczos, lossless WebP), and
{train,test}_roi.csv with the label and the sign's box in pixels of the 32x32 image. CIFAR-10 becomes
OUT/cifar10-lossless/{train,test}/<class>/*.webp.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import CIFAR10
from tqdm import tqdm

SIZE = 32


def read_gtsrb(download: Path, split: str) -> list[dict[str, str]]:
    """Rows of the official CSV files, each with the path of its picture under ``path``."""
    folders = sorted((download / "Final_Training" / "Images").glob("*")) if split == "train" else []
    files = [next(folder.glob("GT-*.csv")) for folder in folders if folder.is_dir()]
    if split == "test":
        files = [
            next(path for path in (download, download / "Final_Test" / "Images") if _truth(path)) / "GT-final_test.csv"
        ]
    rows = []
    for file in files:
        folder = file.parent if split == "train" else download / "Final_Test" / "Images"
        with file.open() as opened:
            rows += [{**row, "path": str(folder / row["Filename"])} for row in csv.DictReader(opened, delimiter=";")]
    return rows


def _truth(folder: Path) -> bool:
    return (folder / "GT-final_test.csv").exists()


def prepare_gtsrb(download: Path, out: Path) -> None:
    """Write ``out/gtsrb32`` with its two CSV files."""
    root = out / "gtsrb32"
    for split in ("train", "test"):
        lines = ["path,label,x1,y1,x2,y2"]
        for row in tqdm(read_gtsrb(download, split), desc=f"gtsrb {split}"):
            label = int(row["ClassId"])
            path = Path(split) / f"{label:05d}" / f"{Path(row['Filename']).stem}.webp"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            with Image.open(row["path"]) as image:
                box = [
                    round(int(row[f"Roi.{axis}{i}"]) * SIZE / length, 3)
                    for i in (1, 2)
                    for axis, length in (("X", image.width), ("Y", image.height))
                ]
                image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(root / path, lossless=True)
            lines.append(",".join([path.as_posix(), str(label), *map(str, box)]))
        (root / f"{split}_roi.csv").write_text("\n".join(lines) + "\n")


def prepare_cifar10(download: Path, out: Path) -> None:
    """Write ``out/cifar10-lossless``."""
    for split in ("train", "test"):
        data: Any = CIFAR10(download, train=split == "train")
        for index, (image, label) in enumerate(tqdm(data, desc=f"cifar10 {split}")):
            folder = out / "cifar10-lossless" / split / data.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index:05d}.webp", lossless=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("gtsrb", "cifar10"))
    parser.add_argument("download", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    (prepare_gtsrb if args.kind == "gtsrb" else prepare_cifar10)(args.download, args.out)


if __name__ == "__main__":
    main()
