"""``sampdetox calibrate``: thresholds of the search for a user's own kind of images."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.purify.files import MAX_PIXELS
from sampdetox_transforms.cli.purify.run import batches, load_pictures
from sampdetox_transforms.cli.purify.tree import Failure, Job, find_pictures
from sampdetox_transforms.cli.shared import (
    bar_off,
    check_at_least,
    check_json,
    listen,
    make_detox,
    printable,
    say,
    say_json,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sampdetox_transforms.method.calibration import Calibration, Calibrations


NOTES = """\
Pictures with a shorter side up to 48 pixels set the thresholds of small pictures, others those of large ones.
Take images of the kind that will be purified, of which you know that they are clean, at the size at which they will be:
thresholds that come from other images find less, or take more clean images for triggered ones. Use the file with
'sampdetox purify --calibration FILE', or SampDetox(calibration=FILE).
"""


def calibrate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Clean pictures, searched at any depth.")],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="JSON", help="File for the thresholds; replaced if it exists."),
    ],
    false_alarm_rate: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Share of clean pictures that may be taken for triggered ones, above 0 and below 1; 2 divided by it "
            "is the least number of pictures.",
        ),
    ] = 0.05,
    weights: flags.BundledWeights = "bundled",
    restorer: flags.Restorer = None,
    dtype: flags.DtypeFlag = flags.Dtype.AUTO,
    device: flags.Device = None,
    max_pixels: flags.MaxPixels = MAX_PIXELS,
    as_json: flags.Json = False,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Measure clean pictures, and write the thresholds from which on a picture is taken for a triggered one."""
    listen(verbose, quiet)
    check_at_least(1, max_pixels=max_pixels)
    pictures, failures = clean_pictures(folder)
    check_json(out, "Call it thresholds.json, say.")
    check_enough(len(pictures), false_alarm_rate, folder)
    detox = make_detox(weights=weights, restorer=restorer, dtype=dtype, device=device)
    data, stored = "/".join(folder.resolve().parts[-2:]), detox.calibration
    try:
        batched = read_batches(pictures, failures, max_pixels, quiet)
        found = detox.calibrate(batched, false_alarm_rate=false_alarm_rate, data=data)
    finally:
        for failure in failures:
            print(f"sampdetox: failed: {printable(failure)}", file=sys.stderr)
    write(out, found)
    tell(found, measured_now(found, stored), out, data, failures, as_json=as_json, quiet=quiet)
    return 1 if failures else 0


def measured_now(found: "Calibrations", stored: "Calibrations | None") -> dict[str, "Calibration"]:
    """The parts that this run set: those of a size without pictures are the stored ones."""
    return {
        name: part for name, part in vars(found).items() if part is not None and part != getattr(stored, name, None)
    }


def tell(
    found: "Calibrations",
    measured: dict[str, "Calibration"],
    out: Path,
    data: str,
    failures: Sequence[Failure],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print how many pictures were measured, and the thresholds of each size."""
    count = sum(part.images for part in measured.values())
    if as_json:
        about: dict[str, Any] = {"out": out, "images": count, "data": data, "false_alarm_rate": found.false_alarm_rate}
        thresholds = {
            name: {"images": part.images, "local": part.thresholds[0], "dense": dense_threshold(part)}
            for name, part in measured.items()
        }
        failed = [{"picture": str(failure.source), "reason": failure.reason} for failure in failures]
        say_json({**about, "thresholds": thresholds, "failed": failed})
        return
    failed = f", failed {len(failures)}" if failures else ""
    say(f"measured {count} clean pictures{failed}; thresholds in {out}", quiet=quiet)
    for name, part in measured.items():
        dense = dense_threshold(part)
        all_over = "dense ones are not looked for" if dense is None else f"dense ones from {dense:.3f} on"
        told = f"local triggers from a logit of {part.thresholds[0]:.3f} on, {all_over}"
        say(f"{part.images} {name} pictures: {told}", quiet=quiet)


def dense_threshold(part: "Calibration") -> float | None:
    """The logit of a dense trigger; None where none is looked for."""
    return part.thresholds[1] if part.dense else None


def clean_pictures(folder: Path) -> tuple[list[Path], list[Failure]]:
    """All pictures of a folder, and folders in it that cannot be read; OSError where there is no such folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"FOLDER must be a folder of clean pictures, got {folder}. Check the path.")
    names, failures, _ = find_pictures(folder)
    return [folder / name for name in names], failures


def check_enough(count: int, false_alarm_rate: float, folder: Path) -> None:
    """Raise ValueError now for a rate out of range, or for fewer pictures than it can be measured on at any size.

    Small ones need more, which is known once their sizes are.
    """
    from sampdetox_transforms.method.calibration import ONLY_LOCAL, check_rate, images_needed

    check_rate(false_alarm_rate)
    needed = images_needed(false_alarm_rate, ONLY_LOCAL)
    if count < needed:
        raise ValueError(
            f"FOLDER must hold {needed} clean pictures or more for a false-alarm rate of {false_alarm_rate:g}, got "
            f"{count} in {folder}. Give more pictures, or a higher --false-alarm-rate."
        )


def read_batches(pictures: Sequence[Path], failures: list[Failure], max_pixels: int, quiet: bool) -> "Iterator[Tensor]":
    """Batches of pictures of one shape, with a bar; those that cannot be read are added to ``failures``."""
    import torch
    from tqdm import tqdm

    jobs = [Job(path, path) for path in pictures]
    with tqdm(total=len(jobs), unit="picture", file=sys.stderr, disable=bar_off(quiet)) as bar:
        for batch in batches(load_pictures(jobs, failures, max_pixels), None):
            yield torch.stack([picture.pixels for _, picture in batch])
            bar.update(len(batch))


def write(out: Path, calibrations: "Calibrations") -> None:
    """Write the thresholds, whole or not at all."""
    from sampdetox_transforms.networks.restorer_files import save_calibrations

    out.parent.mkdir(parents=True, exist_ok=True)
    save_calibrations(out, calibrations)
