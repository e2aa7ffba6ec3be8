"""``sampdetox recover``: the trigger that many pictures of a folder share, as a file and as a picture."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.calibrate import read_batches
from sampdetox_transforms.cli.purify.files import MAX_PIXELS
from sampdetox_transforms.cli.purify.tree import Failure, find_pictures
from sampdetox_transforms.cli.shared import (
    check_at_least,
    check_writable,
    listen,
    make_detox,
    printable,
    say,
    say_json,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sampdetox_transforms.transforms.shared_trigger import SharedTrigger

NOTES = """\
An attacker uses a trigger more than once. What is taken out of each picture is compared with what is taken out of the
others; neither labels nor a classifier are needed, but 8 different pictures or more of one size, of which 5 or more
carry the trigger. A few hundred are better.

The picture beside the file, trigger.png for trigger.safetensors, shows pattern and opacity, and up to five pictures
before and after. Look at it: what pictures share honestly, a logo or a date, is found as well. Take a trigger out
with 'sampdetox purify IN OUT --trigger FILE', or SampDetox(trigger=FILE).

Several triggers, and those of each size of picture, go to trigger-2.safetensors and so on, the one in most pictures
first. Where nothing is found, nothing is written, and the exit status is 0.
"""

SHOWN = 5  # pictures before and after

ENDING = ".safetensors"


def recover(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures, searched at any depth.")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="FILE", help="File for the trigger, .safetensors, outside of FOLDER; replaced if it "
            "exists.",
        ),
    ],
    false_alarm_rate: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="How often a trigger may be found where pictures share nothing, and the share of pictures without "
            "it that may be taken to carry it; 0.001 or more, below 1.",
        ),
    ] = 0.01,
    weights: flags.BundledWeights = "bundled",
    restorer: flags.Restorer = None,
    calibration: flags.Calibration = None,
    seed: flags.Seed = 0,
    dtype: flags.DtypeFlag = flags.Dtype.AUTO,
    device: flags.Device = None,
    max_pixels: flags.MaxPixels = MAX_PIXELS,
    as_json: flags.Json = False,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:  # fmt: skip
    """Recover the trigger that many pictures share."""
    listen(verbose, quiet)
    check_at_least(1, max_pixels=max_pixels)
    pictures, failures = pictures_of(folder)
    check_place(out, folder)
    from sampdetox_transforms.transforms.shared_recovery import check_rate, recover_triggers

    check_rate(false_alarm_rate)
    settings: dict[str, Any] = {"weights": weights, "restorer": restorer, "calibration": calibration}
    detox = make_detox(**settings, seed=seed, dtype=dtype, device=device)
    traffic = Traffic(pictures, failures, max_pixels, quiet)
    try:
        triggers = recover_triggers(traffic, detox, false_alarm_rate=false_alarm_rate)
        triggers.sort(key=lambda trigger: -trigger.images)
        files = [out if i == 0 else out.with_stem(f"{out.stem}-{i + 1}") for i in range(len(triggers))]
        if triggers:
            examples = carriers(triggers, traffic)
            write(triggers, examples, files)
    finally:
        for failure in failures:
            print(f"sampdetox: failed: {printable(failure)}", file=sys.stderr)
    read = len(pictures) - sum(failure.source in set(pictures) for failure in failures)
    if as_json:
        failed = [{"picture": str(failure.source), "reason": failure.reason} for failure in failures]
        found = [about(trigger, file) for trigger, file in zip(triggers, files, strict=True)]
        say_json({"pictures": read, "triggers": found, "failed": failed})
    elif triggers:
        for trigger, file in zip(triggers, files, strict=True):
            say(f"found {in_words(trigger)}, in {trigger.images} of {read} pictures; file {file}", quiet=quiet)
    else:
        say(f"found no trigger that pictures share, in {read} pictures; nothing is written", quiet=quiet)
    return 1 if failures else 0


class Traffic:
    """Batches of the pictures of one shape, read anew each time that they are gone through."""

    def __init__(self, pictures: Sequence[Path], failures: list[Failure], max_pixels: int, quiet: bool):
        self.pictures, self.failures = list(pictures), failures
        self.max_pixels, self.quiet = max_pixels, quiet

    def __iter__(self) -> "Iterator[Tensor]":
        failed: list[Failure] = []
        yield from read_batches(self.pictures, failed, self.max_pixels, self.quiet)
        self.failures += failed
        gone = {failure.source for failure in failed}
        self.pictures = [path for path in self.pictures if path not in gone]  # named once, and read no more


def pictures_of(folder: Path) -> tuple[list[Path], list[Failure]]:
    """All pictures of a folder, and folders in it that cannot be read.

    Raises:
        OSError: no such folder.
        ValueError: fewer than 8 pictures, or fewer than 8 of one size.
    """
    from sampdetox_transforms.transforms.shared_images import LEAST_IMAGES

    if not folder.is_dir():
        raise FileNotFoundError(f"FOLDER must be a folder of pictures, got {folder}. Check the path.")
    names, failures, _ = find_pictures(folder)
    if len(names) < LEAST_IMAGES:
        raise ValueError(
            f"FOLDER must hold {LEAST_IMAGES} pictures or more, got {len(names)} in {folder}. Collect more."
        )
    paths = [folder / name for name in names]
    most = most_of_one_size(paths)
    if most < LEAST_IMAGES:
        raise ValueError(
            f"FOLDER must hold {LEAST_IMAGES} pictures or more of one size, got {most} at most in {folder}. Collect "
            "more, or scale or crop them to one size."
        )
    return paths, failures


def most_of_one_size(paths: Sequence[Path]) -> int:
    """How many pictures have the commonest size, upright or turned; those that cannot be read count as of any size."""
    from PIL import Image

    sizes: Counter[tuple[int, ...]] = Counter()
    unknown = 0
    for path in paths:
        try:
            with Image.open(path) as picture:
                sizes[tuple(sorted(picture.size))] += 1
        except Exception:  # said when it is read whole
            unknown += 1
    return max(sizes.values(), default=0) + unknown


def check_place(out: Path, folder: Path) -> None:
    """Raise ValueError or OSError now for a file that cannot be written, or whose picture would be read as one."""
    if out.suffix != ENDING:
        raise ValueError(f"--out must end in {ENDING}, got {out}. Its picture goes beside it as .png.")
    if out.is_dir():
        raise ValueError(f"--out must be a file, got the folder {out}. Name a file in it.")
    if folder.resolve() in out.resolve().parents:
        raise ValueError(f"--out must be outside of FOLDER, got {out} for FOLDER {folder}. Give a file beside FOLDER.")
    check_writable(out.parent)


def carriers(triggers: "Sequence[SharedTrigger]", traffic: Traffic) -> "list[Tensor]":
    """For each trigger up to ``SHOWN`` pictures that carry it, (n, c, h, w) in [0, 1]."""
    import torch

    from sampdetox_transforms.transforms.shared_images import batches_of

    found: list[list[Tensor]] = [[] for _ in triggers]
    for batch in batches_of(traffic):
        for own, trigger in zip(found, triggers, strict=True):
            if len(own) < SHOWN and batch.shape[1:] == trigger.pattern.shape:
                own += list(batch[trigger.matches(batch)][: SHOWN - len(own)])
    return [
        torch.stack(own) if own else t.pattern.new_zeros(0, *t.pattern.shape)
        for own, t in zip(found, triggers, strict=True)
    ]


def write(triggers: "Sequence[SharedTrigger]", examples: "Sequence[Tensor]", files: Sequence[Path]) -> None:
    """Each trigger and its picture, each file whole or not at all."""
    from sampdetox_transforms.lab.drawing.panel import draw_panel
    from sampdetox_transforms.lab.drawing.shared import shared_trigger_row

    files[0].parent.mkdir(parents=True, exist_ok=True)
    for trigger, images, file in zip(triggers, examples, files, strict=True):
        draw_panel(
            [shared_trigger_row(trigger, images, shown=SHOWN)], file.with_suffix(".png"), heading=in_words(trigger)
        )
        trigger.save(file)


def in_words(trigger: "SharedTrigger") -> str:
    """What was found, without numbers of pictures."""
    channels, height, width = trigger.pattern.shape
    opacity = float(trigger.opacity.mean())
    if trigger.covers:
        kind = f"a patch of {trigger.area:.1%} of the pixels{' that moves' if trigger.moves else ''}"
    else:
        kind = f"a picture blended in at {opacity:.2f}" if opacity > 0.02 else "a pattern that is added"
    large = "" if trigger.is_small else ", too large to be taken out with nobody asked"
    colours = "" if channels == 3 else "grey "
    return f"{kind}, for {colours}pictures of {width}x{height} (p <= {trigger.p_value:.2g}{large})"


def about(trigger: "SharedTrigger", file: Path) -> dict[str, Any]:
    """The same for programs."""
    return {
        "file": file,
        "picture": file.with_suffix(".png"),
        "shape": list(trigger.pattern.shape),
        "found_in": trigger.images,
        "p_value": trigger.p_value,
        "area": trigger.area,
        "opacity": float(trigger.opacity.mean()),
        "energy": trigger.energy,
        "small_enough_to_take_out_unasked": trigger.is_small,
    }
