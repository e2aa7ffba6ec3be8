"""The command ``sampdetox``: parse, call the library, print.

Exit status: 0, or 1 where some pictures failed and all others were done, 2 for an error, 130 when interrupted.
Errors are one line on stderr. Heavy modules are imported by the commands that need them, so that help is quick.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampdetox_transforms._common import one_line
from sampdetox_transforms.cli.purify.files import Picture, read_picture
from sampdetox_transforms.cli.purify.ranks import Rank, current_rank, device_of_rank, finish, shard
from sampdetox_transforms.cli.purify.report import Row, check_place, collect, in_order, render_csv, render_html
from sampdetox_transforms.cli.purify.run import BATCH_MOST, BATCH_PIXELS, purify_pictures
from sampdetox_transforms.cli.purify.tree import plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sampdetox_transforms.networks.catalogue import DetoxWeights
    from sampdetox_transforms.networks.hub import HubRepo
    from sampdetox_transforms.transforms.explanation import Explanation
    from sampdetox_transforms.transforms.transform import SampDetox


DTYPES = ("auto", "float32", "bfloat16")

PURIFY_NOTES = """\
A folder is searched at any depth for pictures, by the ending of their names;
other files, and names that begin with a dot, are left out. OUT mirrors it:
a/b.jpg becomes a/b.png. Pictures that would get one name, a/b.jpg and a/b.png,
keep theirs whole: a/b.jpg.png and a/b.png.png.

A result appears whole or not at all, and one that exists is skipped, whatever
settings made it: after a kill, the same command goes on where it stopped.
--overwrite makes all anew. Pictures that fail are named at the end, and the exit
status is 1 then.

--report lists what was found in the pictures that this run purified, and those
that failed; what was skipped is counted only. The .html file shows pictures of
the most suspicious ones, and needs no other file; the .csv file has plain numbers
in the order of the folder. It is written at the end: a run that is stopped writes
none. Where a report exists already, a run with nothing left to do keeps it, and
any other ends before it begins, unless --overwrite makes results and report anew.

Results are PNG, turned upright, without EXIF data. Transparency and the colour
profile are kept, and grey pictures of 16 bits stay so. Not purified, but named
at the end: 16-bit colour, 32-bit and floating-point pictures, and pictures of
several frames (GIF, TIFF, APNG; of a phone's MPO file the first is taken).

Several processes share the pictures where a launcher sets RANK and WORLD_SIZE:
  torchrun --nproc-per-node 4 -m sampdetox_transforms purify IN OUT
On CUDA each takes a card of its own; on processors, set OMP_NUM_THREADS. Each
writes a report of its own part: report.rank0.html, report.rank1.html, ...
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on ``argv`` (None: the program's own arguments) and return the exit status.

    As usual with argparse, ``--help``, ``--version`` and a misspelt command raise SystemExit.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.run is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("sampdetox: interrupted; what is finished is kept", file=sys.stderr)
        return 130
    except _expected_errors() as error:
        print(f"sampdetox: error: {one_line(error)}", file=sys.stderr)
        return 2


def _expected_errors() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError  # a full disk while weights are saved; no OSError

    return ValueError, TypeError, OSError, RuntimeError, SafetensorError


# Parsers


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run``, which takes the parsed arguments and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="sampdetox",
        description="Take backdoor triggers out of images before a classifier sees them (SampDetox, NeurIPS 2024).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version and exit")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, add, text in (
        ("demo", add_demo, "plant triggers in small pictures, take them out, draw a panel; needs no network"),
        ("purify", add_purify, "purify a picture, or a folder tree of pictures"),
        ("inspect", add_inspect, "purify one picture and draw what was done to it"),
        ("weights", add_weights, "list, fetch or verify weights"),
        ("train", add_train, "train a denoiser on folders of images"),
        ("victim", add_victim, "train a classifier with a backdoor, to measure defenses on"),
        ("evaluate", add_evaluate, "measure defenses on classifiers with a backdoor"),
        ("benchmark", add_benchmark, "measure how fast purification is, and what takes the time"),
    ):
        add(
            commands.add_parser(
                name,
                help=text,
                description=f"{text[0].upper()}{text[1:]}.",
                allow_abbrev=False,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser


class ShowVersion(argparse.Action):
    """Print the version, which is looked up only when it is asked for."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        from sampdetox_transforms import __version__

        print(f"sampdetox {__version__}")
        parser.exit()


def number(text: str) -> float:
    """A whole number as int, others as float."""
    value = float(text)
    return int(value) if value.is_integer() else value


def widths(text: str) -> tuple[int, ...]:
    """64,64,128 -> (64, 64, 128)."""
    return tuple(int(part) for part in text.split(","))


def target_label(text: str) -> int | None:
    """A class index, or none."""
    return None if text == "none" else int(text)


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE -> (NAME, VALUE), the value as a number or a truth value where it is one."""
    name, found, value = text.partition("=")
    if not found:
        raise ValueError(f"a setting must be NAME=VALUE, got {text!r}. Write size=5, say.")
    if value in ("true", "false"):
        return name, value == "true"
    try:
        return name, number(value)
    except ValueError:
        return name, value


# Flags that are fields of TrainingConfig: name, type, default, what it is. The defaults are tested to be the library's.
TRAIN_FLAGS: tuple[tuple[str, Callable[[str], Any], Any, str], ...] = (
    ("size", int, 32, "height and width of the training crops in pixels"),
    ("max_level", int, 160, "train the noise levels 1 to this one, at most 1000"),
    ("schedule", str, "linear", "noise schedule: linear, scaled_linear or cosine"),
    ("channels", int, 3, "3 for colour, 1 for grey"),
    ("block_out_channels", widths, (64, 64, 128), "width of each block of the network, multiples of 8"),
    ("layers_per_block", int, 1, "ResNet blocks at each size, 1 or more"),
    ("steps", int, 10_000, "optimiser steps in all, 1 or more"),
    ("batch_size", int, 32, "images a step, 1 or more"),
    ("learning_rate", float, 6e-4, "learning rate between warm-up and cool-down, above 0"),
    ("warmup", int, 200, "steps until the learning rate is reached, 0 or more"),
    ("cooldown", float, 0.3, "share of the steps over which it falls to 0, in [0, 1]"),
    ("ema", float, 0.999, "decay of the averaged weights, which are what is saved, in [0, 1); 0 turns it off"),
    ("zoom", float, 0.35, "smallest share of an image's area that a crop takes, in (0, 1]; 1 takes whole images"),
    ("seed", int, 0, "any whole number"),
    ("workers", int, 1, "processes that read images, 0 or more"),
    ("save_every", int, 500, "steps between two saves, 1 or more"),
)

# Flags that are fields of VictimConfig, in the same way. None stands for "the attack's own".
VICTIM_FLAGS: tuple[tuple[str, Callable[[str], Any], Any, str], ...] = (
    ("attack", str, "badnets", "attack to poison with; 'none' for a clean classifier; a wrong name lists all"),
    ("poison_rate", float, None, "share of the images that are poisoned, in (0, 1]; for clean-label attacks of the "
     "target class"),
    ("mode", str, None, "all2one, all2all or clean-label"),
    ("robust_noise", float, 0.0, "share of noise in half of the images, in [0, 1): the paper's adaptive attacks"),
    ("classifier", str, "preact-resnet18-narrow", "preact-resnet18, preact-resnet18-narrow, resnet34 or vgg19"),
    ("size", int, 32, "height and width that images are resized to, in pixels"),
    ("epochs", int, 3, "times that each image is seen, 1 or more"),
    ("batch_size", int, 64, "images a step, 1 or more"),
    ("learning_rate", float, 3e-3, "highest learning rate, above 0"),
    ("weight_decay", float, 0.05, "weight decay, 0 or more"),
    ("crop", int, 1, "padding of the random crops in pixels, 0 for none; large ones cut corner triggers off"),
    ("seed", int, 0, "any whole number"),
    ("surrogate", str, None, "folder of a victim with attack 'none' on the same data, for triggers optimised on one"),
    ("picture", str, None, "image file, for the attacks that take one; for low-frequency a ready pattern, .npy"),
)  # fmt: skip


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that ``make_detox`` reads."""
    add = parser.add_argument
    add("--weights", metavar="WEIGHTS", help="a name ('sampdetox weights list'), a folder, or user/repo[@revision] on "
        "the Hub (default: the library's, downloaded once; 'bundled' needs no network)")  # fmt: skip
    add("--preset", help="restore, ddim, paper, paper-linear or authors-code (default: restore); the flags below "
        "change it")  # fmt: skip
    add("--t1", type=number, metavar="LEVEL", help="noise level of the global stage, 0 or more, at most what the "
        "weights know (default: the preset's; restore 12, others 20)")  # fmt: skip
    add("--t2", type=number, metavar="LEVEL", help="highest noise level of the local stage, as --t1 (default: the "
        "preset's, 120)")  # fmt: skip
    add("--sampler", help="ddim or ddpm (default: the preset's, ddim)")
    add("--stride", type=number, metavar="LEVELS", help="levels between two network calls, above 0; 1 for the paper's "
        "ddpm (default: the preset's, 20)")  # fmt: skip
    add("--seed", type=int, help="any whole number: a picture's result is then the same at any time, in any batch "
        "(default: fresh noise each time)")  # fmt: skip
    add("--dtype", choices=DTYPES, default="auto", help="what the networks compute in; auto is bfloat16 where the "
        "processor or card has it, else float32 (default: %(default)s)")  # fmt: skip
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The flag that ``choose_device`` reads."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")


def add_purify(parser: argparse.ArgumentParser) -> None:
    """``sampdetox purify``."""
    parser.epilog = PURIFY_NOTES
    parser.add_argument("input", metavar="IN", type=Path, help="a picture, or a folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder outside of IN; for a picture also a .png file")
    add_method_flags(parser)
    parser.add_argument("--batch-size", type=int, metavar="N", help="pictures of equal size at once, 1 or more "
        f"(default: as many as have {BATCH_PIXELS // 1024} * 1024 pixels, at most {BATCH_MOST})")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="make results that exist anew, and the "
        "report (default: keep them)")  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="FILE", help="list what was found where, one row a picture: a "
        ".html file with small pictures, or a .csv file, outside of IN (default: none)")  # fmt: skip
    parser.set_defaults(run=run_purify)


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """``sampdetox inspect``."""
    parser.add_argument("image", metavar="IMAGE", type=Path, help="a picture")
    parser.add_argument("-o", "--out", type=Path, metavar="PANEL", help="the drawing, .png, .pdf or .svg, or a folder "
        "for it; replaced if it exists (default: NAME-panel.png in the current folder)")  # fmt: skip
    add_method_flags(parser)
    parser.set_defaults(run=run_inspect)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """``sampdetox weights list|fetch|verify``."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="print the named weights", allow_abbrev=False)
    listing.set_defaults(run=run_weights_list)
    fetching = commands.add_parser("fetch", help="download weights and print their folder", allow_abbrev=False)
    fetching.add_argument("weights", metavar="NAME_OR_REPO", help="a name, or user/repo[@revision] on the Hub; they go "
        "into the Hub's cache (HF_HOME moves it), HF_TOKEN is honoured")  # fmt: skip
    fetching.set_defaults(run=run_weights_fetch)
    verifying = commands.add_parser("verify", help="load weights that are here, check their hash", allow_abbrev=False)
    verifying.add_argument("weights", metavar="NAME_OR_FOLDER", help="a name, a folder, or a repository in the cache")
    verifying.set_defaults(run=run_weights_verify)


def add_train(parser: argparse.ArgumentParser) -> None:
    """``sampdetox train``."""
    parser.epilog = "A run that was killed goes on from its last save when the same command is started again."
    parser.add_argument("data", metavar="DATA", nargs="+", help="folders of images, searched at any depth")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the weights, outside of DATA")
    add_flags(parser, TRAIN_FLAGS)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="compute in bfloat16 (default: where the "
        "processor or card has it)")  # fmt: skip
    parser.add_argument("--half", action="store_true", help="store the weights in float16, half the size (default: no)")
    parser.add_argument("--init", metavar="WEIGHTS", help="start from these weights, of the same shape: a folder or a "
        "name (default: random weights)")  # fmt: skip
    add_device(parser)
    parser.set_defaults(run=run_train)


def add_flags(parser: argparse.ArgumentParser, flags: Sequence[tuple[str, Callable[[str], Any], Any, str]]) -> None:
    """Flags from a table of (field, type, default, text)."""
    for name, kind, default, text in flags:
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        shown = "as usual for it" if default is None else shown
        flag, metavar = "--" + name.replace("_", "-"), {str: "NAME", float: "X", widths: "N,N,..."}.get(kind, "N")
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=f"{text} (default: {shown})")


def add_victim(parser: argparse.ArgumentParser) -> None:
    """``sampdetox victim``."""
    parser.epilog = "A run that was killed goes on from its last epoch when the same command is started again."
    parser.add_argument("data", metavar="DATA", help="image folder to train on, a subfolder for each class")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the victim, outside of DATA")
    parser.add_argument("--target-label", type=target_label, default=0, metavar="N", help="the attacker's class, an "
        "index into the sorted subfolders, or 'none' for mode all2all (default: 0)")  # fmt: skip
    add_flags(parser, VICTIM_FLAGS)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="the attack's own settings, such as "
        "size=5 pattern=checker; a wrong name lists all")  # fmt: skip
    parser.add_argument("--flip", action="store_true", help="mirror half of the images; wrong for signs (default: no)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="compute in bfloat16 (default: where the "
        "processor or card has it)")  # fmt: skip
    parser.add_argument("--test", metavar="FOLDER", help="measure CA, PA and ASR on this image folder in the end")
    add_device(parser)
    parser.set_defaults(run=run_victim)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """``sampdetox evaluate``."""
    parser.epilog = "An interrupted run goes on at the first missing row when the same command is started again."
    parser.add_argument("victims", metavar="VICTIM", nargs="+", type=Path, help="folders that 'sampdetox victim' wrote")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="image folder of test images")
    parser.add_argument("-o", "--out", type=Path, metavar="JSON", help="file for the results; the table goes beside it "
        "as .md, the drawing of a figure as .png (default: print only)")  # fmt: skip
    parser.add_argument("--experiment", default="comparison", metavar="NAME", help="comparison, ablation, levels, "
        "transformations, samplers, strides, precision, adaptive, semantic or robustness "
        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--defense", nargs="+", metavar="NAME", help="only these of its defenses (default: all)")
    parser.add_argument("--weights", default="bundled", metavar="WEIGHTS", help="denoiser: a name, a folder, or "
        "user/repo[@revision] on the Hub (default: %(default)s)")  # fmt: skip
    parser.add_argument("--full-range", metavar="WEIGHTS", help="denoiser that knows all noise levels, for zip, "
        "sancdifi and high levels, which are left out without one")  # fmt: skip
    parser.add_argument("--n", type=int, default=560, metavar="N", help="test images, 1 or more (default: %(default)s)")
    parser.add_argument("--n-slow", type=int, default=20, metavar="N", help="test images for defenses of more than 20 "
        "network calls an image (default: %(default)s)")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="any whole number (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="what the denoisers compute in; auto: bfloat16 "
        "where the processor or card has it, else float32 (default: %(default)s)")  # fmt: skip
    parser.add_argument("--backdoorbench", action="store_true", help="VICTIM is a record that BackdoorBench made; it "
        "is a pickle, which can run code: only from people you trust")  # fmt: skip
    add_device(parser)
    parser.set_defaults(run=run_evaluate)


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """``sampdetox benchmark``."""
    parser.epilog = "Run it on a machine that does nothing else: all numbers are medians of wall-clock times."
    parser.add_argument("--weights", default="bundled", metavar="WEIGHTS", help="denoiser: a name, a folder, or "
        "user/repo[@revision] on the Hub (default: %(default)s)")  # fmt: skip
    parser.add_argument("--preset", default="restore", help="settings to measure, as for purify (default: %(default)s)")
    parser.add_argument("--batch-sizes", type=widths, default=(1, 8, 64), metavar="N,N,...", help="images at once, "
        "each 1 or more (default: 1,8,64)")  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, metavar="JSON", help="file for the numbers; the table goes beside it "
        "as .md, the drawing as .png (default: print only)")  # fmt: skip
    parser.add_argument("--data", metavar="FOLDER", help="image folder to take images from (default: drawn signs)")
    parser.add_argument("--size", type=int, default=32, metavar="N", help="height and width that images are resized "
        "to, in pixels (default: %(default)s)")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each measurement, 1 or more "
        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--classifier", default="preact-resnet18", metavar="NAME", help="classifier to compare with, "
        "at batch size 64 (default: %(default)s)")  # fmt: skip
    parser.add_argument("--naive-images", type=int, default=1, metavar="N", help="images for the authors' loop; 0 "
        "leaves it out (default: %(default)s)")  # fmt: skip
    parser.add_argument("--naive-every", type=int, default=10, metavar="N", help="walk every Nth of its 240 levels and "
        "extrapolate, 1 or more; 1 walks all (default: %(default)s)")  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="what denoiser and classifier compute in "
        "(default: %(default)s)")  # fmt: skip
    add_device(parser)
    parser.set_defaults(run=run_benchmark)


def add_demo(parser: argparse.ArgumentParser) -> None:
    """``sampdetox demo``."""
    parser.add_argument("-o", "--out", type=Path, metavar="PANEL", default=Path("sampdetox-demo.png"),
        help="the drawing (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="any whole number (default: %(default)s)")
    add_device(parser)
    parser.set_defaults(run=run_demo_command)


# Commands


def run_purify(args: argparse.Namespace) -> int:
    """Purify a picture or a tree; see PURIFY_NOTES."""
    rank = current_rank(os.environ)
    jobs, failures, left_out = plan(args.input, args.out)
    report = None if args.report is None else report_of_rank(args.report, rank)
    if report is not None:
        check_place(report, args.input, jobs)
        check_writable(report.parent)
    jobs = shard(jobs, rank)
    if rank.index > 0:
        failures, left_out = [], 0  # rank 0 names what is the matter with the tree
    todo = [job for job in jobs if args.overwrite or not job.target.is_file()]
    keep = report is not None and report.exists() and not args.overwrite
    if keep and todo:
        raise ValueError(
            f"--report must be a file that does not exist yet, got {report}. Give another name; --overwrite replaces "
            "it, and makes all results anew."
        )
    done, rows, about = 0, [], []
    try:
        if todo:
            check_writable(todo[0].target.parent)
            if rank.world > 1:
                args.device = device_of_rank(choose_device(args.device), rank)
            detox = make_detox(args)
            note = None
            if report is not None:
                about = about_detox(detox)
                note = collect(rows, detox.calibration, pictures=report.suffix.lower() != ".csv")
            done = purify_pictures(todo, detox, args.batch_size, failures, show=rank.index == 0, note=note)
    finally:
        for failure in failures:
            print(f"sampdetox: failed: {failure}", file=sys.stderr)
    skipped = len(jobs) - len(todo)
    if report is not None and not keep:
        write_report(report, in_order(rows, failures, todo), about, skipped)
    parts = [f"purified {done}"]
    if skipped:
        parts.append(f"skipped {skipped} that exist already (--overwrite makes them anew)")
    if failures:
        parts.append(f"failed {len(failures)}")
    if left_out:
        parts.append(f"left out {left_out} other files")
    who = f"rank {rank.index} of {rank.world}: " if rank.world > 1 else ""
    listed = "" if report is None else f"; report {'of before kept' if keep else 'in'} {report}"
    print(f"{who}{', '.join(parts)}; results in {args.out}{listed}", flush=True)
    status = 1 if failures else 0
    finish(rank, status, os.environ)
    return status


def run_inspect(args: argparse.Namespace) -> int:
    """Purify one picture, draw the panel, print the numbers."""
    picture = read_picture(args.image)
    name = f"{args.image.stem}-panel.png"
    out = Path(name) if args.out is None else args.out / name if args.out.is_dir() else args.out
    if out.resolve() == args.image.resolve():
        raise ValueError(f"the panel must not replace the picture, got {out} for both. Give another name to -o.")
    check_writable(out.parent)
    from sampdetox_transforms.lab.drawing.panel import draw_panel, explanation_row
    from sampdetox_transforms.lab.drawing.plots import check_format

    check_format(out)
    detox = make_detox(args)
    explained = detox.explain(picture.pixels)
    heading = f"{args.image.name}: weights {detox.denoiser.source}, t1 = {detox.settings.t1}, t2 = {detox.settings.t2}"
    draw_panel([explanation_row(picture.pixels, explained, t2=detox.settings.t2)], out, heading=heading)
    facts = {"picture": describe(picture, args.image), **report(detox, picture.pixels, explained), "panel": str(out)}
    print_facts(facts)
    return 0


def run_weights_list(args: argparse.Namespace) -> int:
    """Print the named weights as a table."""
    from sampdetox_transforms.networks.catalogue import DetoxWeights

    rows: list[tuple[str, ...]] = [("name", "repository", "revision", "licence", "MB", "here", "description")]
    for member in DetoxWeights:
        meta = member.meta
        name = member.name.lower() + (" (default)" if member is DetoxWeights.DEFAULT else "")
        origin = (meta.repo, meta.revision[:12], meta.licence) if meta.repo else ("-", "-", meta.licence)
        rows.append((name, *origin, f"{meta.size_mb:g}", where_is(member), meta.description))
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip())
    return 0


def run_weights_fetch(args: argparse.Namespace) -> int:
    """Download weights into the Hub's cache, check a pinned hash, and print the folder."""
    from sampdetox_transforms.networks.catalogue import parse_weights

    weights = parse_weights(args.weights)
    if isinstance(weights, Path):
        raise ValueError(f"fetch takes a name or user/repo[@revision], got the folder {weights}. It is here already.")
    folder = folder_of(weights)
    check_hash(weights, folder)
    print(folder)
    return 0


def run_weights_verify(args: argparse.Namespace) -> int:
    """Load weights that are on this machine, check the pinned hashes, and print what they are."""
    from sampdetox_transforms.networks.catalogue import DetoxWeights, parse_weights, read_named
    from sampdetox_transforms.networks.checkpoints import read_checkpoint

    weights = parse_weights(args.weights)
    folder = folder_of(weights, local=True)
    digest, pinned = check_hash(weights, folder)
    denoiser = read_named(weights, folder) if isinstance(weights, DetoxWeights) else read_checkpoint(folder)
    sigma = float(denoiser.schedule.sigma(denoiser.max_level))
    levels = f"1 to {denoiser.max_level} of the {denoiser.schedule.name} schedule"
    print_facts(
        {
            "folder": str(folder),
            "sha256": f"{digest} ({'as pinned' if pinned else 'nothing is pinned for these weights'})",
            "levels": f"{levels}, sigma up to {sigma:.3g} ({sigma * 127.5:.1f} grey levels)",
            "channels": str(denoiser.channels),
        }
    )
    return 0


def run_train(args: argparse.Namespace) -> int:
    """Train or resume, then draw the loss curve."""
    from tqdm import tqdm

    from sampdetox_transforms.training.config import TrainingConfig
    from sampdetox_transforms.training.denoiser import train

    fields = {name: getattr(args, name) for name in (*(flag[0] for flag in TRAIN_FLAGS), "bf16", "half")}
    config = TrainingConfig(data=tuple(args.data), **fields)
    check_training_folder(args.out, args.data)
    device = choose_device(args.device)
    with tqdm(total=config.steps, unit="step", file=sys.stderr, disable=None) as bar:
        train(config, args.out, device=device, init=args.init, progress=training_progress(bar))

    import numpy as np

    from sampdetox_transforms.lab.drawing.plots import draw_loss_curve

    losses = np.loadtxt(args.out / "loss.csv", delimiter=",", skiprows=1, ndmin=2)[:, 1]
    draw_loss_curve(losses.tolist(), args.out / "loss.png")
    print(f"trained {len(losses)} steps, mean loss of the last {len(losses[-100:])}: {losses[-100:].mean():.4g}")
    print(f"weights and loss.png are in {args.out}; use them with:")
    print(f"  sampdetox purify IN OUT --weights {shlex.quote(str(args.out.resolve()))}")
    return 0


def run_victim(args: argparse.Namespace) -> int:
    """Train or resume a victim, then measure it where test images are given."""
    from tqdm import tqdm

    from sampdetox_transforms.lab.victims.config import ABOUT, VictimConfig
    from sampdetox_transforms.lab.victims.poisoned import image_folder
    from sampdetox_transforms.lab.victims.training import train_victim
    from sampdetox_transforms.lab.victims.victim import load_victim, measure

    fields = {name: getattr(args, name) for name in (*(flag[0] for flag in VICTIM_FLAGS), "flip", "bf16")}
    settings = dict(setting(text) for text in args.set)
    config = VictimConfig(data=args.data, target_label=args.target_label, settings=settings, **fields)
    if args.out.resolve().is_relative_to(Path(args.data).resolve()):
        raise ValueError(f"OUT must be outside of DATA, got {args.out} in {args.data}. It would be a class of its own.")
    test = None if args.test is None else image_folder(args.test, config.size)
    check_writable(args.out)
    device = choose_device(args.device)
    with tqdm(unit="step", file=sys.stderr, disable=None) as bar:
        if (args.out / ABOUT).exists() and test is not None:
            victim = load_victim(args.out, device=device)  # trained before: measure only
        else:
            victim = train_victim(config, args.out, device=device, progress=staged_progress(bar))
    print(f"the victim is in {args.out}; measure defenses on it with:")
    print(f"  sampdetox evaluate {shlex.quote(str(args.out))} --data TEST_FOLDER")
    if test is not None:
        shares = measure(victim, test, device)
        print_facts({k: f"{s.value:.4f} [{s.low:.4f}, {s.high:.4f}] of {s.n}" for k, s in shares.items()})
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    """Run an experiment on victims, print its table, write JSON, Markdown and, for a figure, a drawing."""
    import torch
    from tqdm import tqdm

    from sampdetox_transforms._common import check_choice
    from sampdetox_transforms.lab.evaluation.experiments import EXPERIMENTS, ROBUSTNESS
    from sampdetox_transforms.lab.victims.poisoned import image_folder
    from sampdetox_transforms.networks.precision import fastest_dtype

    check_choice("experiment", args.experiment, (*EXPERIMENTS, ROBUSTNESS))
    for name in ("n", "n_slow", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(args, name)}. Leave it out.")
    if args.out is not None:
        if args.out.suffix != ".json":
            raise ValueError(f"--out must end in .json, got {args.out}. The table goes beside it as .md.")
        check_writable(args.out.parent)
    device = choose_device(args.device)
    if args.dtype == "auto":  # by its name, since results are stored with it
        args.dtype = str(fastest_dtype(torch.device(device))).removeprefix("torch.")
    victims = read_victims(args, device)
    sizes = {victim.size for victim in victims}
    if len(sizes) > 1:
        raise ValueError(f"victims must take images of one size, got {sorted(map(str, sizes))}. Evaluate them apart.")
    dataset = image_folder(args.data, sizes.pop())
    run = run_robustness if args.experiment == ROBUSTNESS else run_table
    with tqdm(unit="image", file=sys.stderr, disable=None) as bar:
        text = run(args, victims, dataset, device, row_progress(bar))
    print(text)
    if args.out is not None:
        from sampdetox_transforms._common import write_atomically

        write_atomically(args.out.with_suffix(".md"), lambda path: path.write_text(text + "\n"))
    return 0


def run_table(args: argparse.Namespace, victims: list, dataset, device: str, progress: Callable) -> str:
    """Measure rows of CA, PA and ASR; return the table."""
    import torch

    from sampdetox_transforms._common import check_choice
    from sampdetox_transforms.lab.drawing.plots import draw_bars
    from sampdetox_transforms.lab.evaluation.engine import evaluate
    from sampdetox_transforms.lab.evaluation.experiments import Tools, get_experiment
    from sampdetox_transforms.lab.evaluation.render import render_experiment
    from sampdetox_transforms.networks.catalogue import load_denoiser
    from sampdetox_transforms.networks.denoiser import Denoiser

    dtype = getattr(torch, args.dtype)

    def load(weights: str) -> Denoiser:
        return load_denoiser(weights).to(device).set_precision(dtype)

    tools = Tools(
        denoiser=load(args.weights),
        full_range=None if args.full_range is None else load(args.full_range),
        seed=args.seed,
        dtype=dtype,
        device=device,
        n_slow=args.n_slow,
    )
    columns = get_experiment(args.experiment).columns(tools)
    if args.defense is not None:
        for name in args.defense:
            check_choice("--defense", name, tuple(column.name for column in columns))
        columns = [column for column in columns if column.name in args.defense]
    report = evaluate(
        victims,
        columns,
        dataset,
        n=min(args.n, len(dataset)),
        seed=args.seed,
        batch_size=args.batch_size,
        device=device,
        out=args.out,
        about={**about_run(args), "weights": Path(args.weights).name, "dtype": args.dtype},
        progress=progress,
    )
    if args.out is not None and args.experiment == "comparison":  # the paper's Figure 5
        times: dict[str, list[float]] = {}
        for row in report.rows:
            times.setdefault(row.defense, []).append(row.ms_per_image)
        means = {name: sum(values) / len(values) for name, values in times.items() if name != "none"}
        if means:
            draw_bars(means, args.out.with_suffix(".png"), "ms an image, without the classifier")
    return render_experiment(args.experiment, report)


def run_robustness(args: argparse.Namespace, victims: list, dataset, device: str, progress: Callable) -> str:
    """Measure visibility and robustness, the paper's Figure 2; return the table."""
    import json
    from dataclasses import asdict

    from sampdetox_transforms._common import write_atomically
    from sampdetox_transforms.lab.drawing.plots import draw_scatter
    from sampdetox_transforms.lab.environment import describe
    from sampdetox_transforms.lab.evaluation.engine import evaluate_robustness
    from sampdetox_transforms.lab.evaluation.render import footnote, render_robustness

    n = min(args.n, len(dataset))
    rows = evaluate_robustness(victims, dataset, n=n, seed=args.seed, device=device, progress=progress)
    settings = {**about_run(args), "n": n, "seed": args.seed, "test_images": len(dataset)}
    environments = [describe(device)]
    if args.out is not None:
        document = {"settings": settings, "environments": environments, "rows": [asdict(row) for row in rows]}
        write_atomically(args.out, lambda path: path.write_text(json.dumps(document) + "\n"))
        groups = {row.victim: (row.visibility, row.robustness) for row in rows}
        draw_scatter(groups, args.out.with_suffix(".png"), ("visibility v", "robustness eta_r"))
    return render_robustness(rows) + "\n\n" + footnote(settings, environments)


def about_run(args: argparse.Namespace) -> dict[str, str]:
    """What is stored with results: the command, with folders by their last names, the experiment and the data."""
    data = "/".join(Path(args.data).parts[-2:])
    shown = ["evaluate", *(folder.name for folder in args.victims), "--data", data, "--experiment", args.experiment]
    shown += ["--defense", *args.defense] if args.defense else []
    shown += ["--weights", Path(args.weights).name]
    shown += ["--full-range", Path(args.full_range).name] if args.full_range else []
    shown += ["--n", str(args.n), "--n-slow", str(args.n_slow), "--seed", str(args.seed), "--dtype", args.dtype]
    return {"command": shlex.join(["sampdetox", *shown]), "experiment": args.experiment, "data": data}


def run_benchmark(args: argparse.Namespace) -> int:
    """Measure, print the table, write JSON, Markdown and a drawing."""
    if args.size < 1:
        raise ValueError(f"--size must be 1 or more, got {args.size}. Leave it out for 32.")
    if args.out is not None:
        if args.out.suffix != ".json":
            raise ValueError(f"--out must end in .json, got {args.out}. The table goes beside it as .md.")
        check_writable(args.out.parent)
    import json

    from sampdetox_transforms._common import write_atomically
    from sampdetox_transforms.lab.drawing.plots import draw_speed
    from sampdetox_transforms.lab.speed.benchmark import benchmark
    from sampdetox_transforms.lab.speed.table import about, render
    from sampdetox_transforms.transforms.presets import get_preset
    from sampdetox_transforms.transforms.transform import SampDetox

    preset, device, dtype = get_preset(args.preset), choose_device(args.device), read_dtype(args.dtype)
    images = benchmark_images(args.data, args.size, max(1, *args.batch_sizes))
    result = benchmark(
        SampDetox(args.weights, preset=preset, device=device, dtype=dtype),
        images.to(device),
        batch_sizes=args.batch_sizes,
        repeats=args.repeats,
        naive_images=args.naive_images,
        naive_every=args.naive_every,
        classifier=args.classifier,
        progress=lambda step: print(f"measuring: {step}", file=sys.stderr),
    )
    text = render(result)
    print(text)
    if args.out is not None:
        command = {"command": about_benchmark(args), "preset": args.preset, "data": data_name(args.data)}
        document = {"about": command, **about(result)}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, lambda path: path.write_text(json.dumps(document, indent=1) + "\n"))
        caption = f"`{command['command']}`"
        write_atomically(args.out.with_suffix(".md"), lambda path: path.write_text(f"{text}\n\n{caption}\n"))
        rates = dict(sorted((batch.batch_size, batch.images_per_second) for batch in result.batches))
        about_it = result.settings["weights"], args.preset, result.settings["dtype"], result.environment["hardware"]
        heading = ", ".join(about_it)
        draw_speed(rates, result.shares, args.out.with_suffix(".png"), heading)
    return 0


def benchmark_images(data: str | None, size: int, n: int) -> "Tensor":
    """At most ``n`` images in [0, 1], (n, 3, size, size): drawn signs, or images of a folder, drawn with seed 0."""
    import torch

    if data is None:
        from torchvision.transforms.v2 import functional

        from sampdetox_transforms.lab.demo.signs import draw_signs

        return functional.resize(draw_signs(min(n, 64), seed=0)[0], [size, size]).clamp(0, 1)
    from sampdetox_transforms.lab.victims.poisoned import image_folder

    dataset = image_folder(data, size)
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:n]
    return torch.stack([dataset[i][0] for i in chosen.tolist()])


def data_name(data: str | None) -> str:
    """What images were used, by the last names of their folder."""
    return "drawn signs" if data is None else "/".join(Path(data).parts[-2:])


def about_benchmark(args: argparse.Namespace) -> str:
    """The command, with folders by their last names, as it is stored with the numbers."""
    shown = ["benchmark", "--weights", Path(args.weights).name, "--preset", args.preset]
    shown += ["--batch-sizes", ",".join(map(str, args.batch_sizes))]
    shown += ["--data", data_name(args.data)] if args.data else []
    shown += ["--size", str(args.size), "--repeats", str(args.repeats), "--classifier", args.classifier]
    shown += ["--naive-images", str(args.naive_images), "--naive-every", str(args.naive_every), "--dtype", args.dtype]
    return shlex.join(["sampdetox", *shown])


def run_demo_command(args: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    check_writable(args.out.parent)
    from sampdetox_transforms.lab.demo.demo import run_demo
    from sampdetox_transforms.lab.drawing.plots import check_format

    check_format(args.out)
    device = choose_device(args.device)
    print(run_demo(args.out, seed=args.seed, device=device, progress=lambda step: print(step, file=sys.stderr)))
    print(f"panel: {args.out}")
    return 0


# What the commands share


def choose_device(device: str | None) -> str:
    """The device that was asked for, or CUDA where there is one; ValueError where it is not there."""
    import torch

    from sampdetox_transforms.transforms.images import check_device

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    return device


def read_dtype(name: str) -> "torch.dtype | None":
    """One of ``DTYPES``; None is the fastest one."""
    import torch

    return None if name == "auto" else getattr(torch, name)


def make_detox(args: argparse.Namespace) -> "SampDetox":
    """``SampDetox`` with the settings of ``add_method_flags``; flags change what the preset sets."""
    from sampdetox_transforms.transforms.transform import SampDetox

    given = {name: getattr(args, name) for name in ("t1", "t2", "sampler", "stride")}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.preset is not None:
        settings["preset"] = args.preset
    if args.weights is not None:
        settings["weights"] = args.weights
    settings["batch_size"] = getattr(args, "batch_size", None)
    return SampDetox(**settings, device=choose_device(args.device), dtype=read_dtype(args.dtype), seed=args.seed)


def check_writable(folder: Path) -> None:
    """Raise OSError now where files in ``folder``, which need not exist yet, could not be written. Makes nothing."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"results must go where files can be written, got {folder}: {reason}. Give another.") from error


def report_of_rank(report: Path, rank: Rank) -> Path:
    """The report of this process: the file itself, or with several processes report.rank0.html and so on."""
    return report if rank.world == 1 else report.with_name(f"{report.stem}.rank{rank.index}{report.suffix}")


def write_report(report: Path, rows: Sequence[Row], about: Sequence[str], skipped: int) -> None:
    """Write the report, whole or not at all; OSError says that the pictures themselves are done."""
    from sampdetox_transforms._common import write_atomically

    csv = report.suffix.lower() == ".csv"
    text = render_csv(rows) if csv else render_html(rows, about=about, skipped=skipped)
    content = text.encode(errors="backslashreplace")  # file names need not be UTF-8
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(report, lambda path: path.write_bytes(content))
    except OSError as error:
        raise OSError(f"the pictures are done, but not the report {report}: {error.strerror or error}") from error


def check_training_folder(out: Path, data: Sequence[str]) -> None:
    """Raise OSError where ``out`` cannot be written, ValueError where it is inside the data or a finished run's."""
    from sampdetox_transforms.training.denoiser import is_finished

    for folder in data:
        if out.resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(f"OUT must be outside of DATA, got {out} in {folder}. Its loss.png would be trained on.")
    if is_finished(out):
        raise ValueError(f"OUT must not hold finished weights, got {out}. Give another; --init goes on from these.")
    check_writable(out)


def training_progress(bar) -> Callable[[int, float], None]:
    """A progress function for ``train`` that moves a tqdm bar and shows a running mean of the loss."""
    mean = None

    def progress(step: int, loss: float) -> None:
        nonlocal mean
        if mean is None:  # a resumed run starts the bar where it starts itself
            mean, bar.initial, bar.n = loss, step - 1, step - 1
        mean += 0.02 * (loss - mean)
        bar.set_postfix_str(f"loss {mean:.4f}", refresh=False)
        bar.update()

    return progress


def staged_progress(bar) -> Callable[[str, int, int, float], None]:
    """A progress function for ``train_victim``: one bar after the other for the trigger and the epochs."""
    now = None

    def progress(what: str, done: int, total: int, loss: float) -> None:
        nonlocal now
        if what != now:
            now = what
            bar.reset(total)
            bar.set_description(what)
        bar.n = done
        if loss == loss:
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        bar.update(0)

    return progress


def row_progress(bar) -> Callable[[str, str, int, int], None]:
    """A progress function for ``evaluate``: one bar, begun anew for each row."""
    now = None

    def progress(victim: str, defense: str, done: int, total: int) -> None:
        nonlocal now
        if (victim, defense) != now:
            now = victim, defense
            bar.reset(total)
            bar.set_description(f"{victim}, {defense}")
        bar.n = done
        bar.update(0)

    return progress


def read_victims(args: argparse.Namespace, device: str) -> list:
    """The victims of ``sampdetox evaluate``: ours, or records of BackdoorBench where these were allowed."""
    if args.backdoorbench:
        from sampdetox_transforms.lab.victims.backdoorbench import load_record

        return [load_record(folder, allow_pickle=True).victim(folder.name) for folder in args.victims]
    from sampdetox_transforms.lab.victims.victim import load_victim

    return [load_victim(folder, device=device) for folder in args.victims]


def print_facts(facts: dict[str, str]) -> None:
    """Print one ``name  value`` a line, the values aligned."""
    size = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.ljust(size)}  {value}")


def describe(picture: Picture, path: Path) -> str:
    """Name, size and kind of a picture."""
    channels, height, width = picture.pixels.shape
    kind = "colour" if channels == 3 else "grey"
    bits = 16 if picture.pixels.is_floating_point() else 8
    return f"{path}, {width}x{height}, {kind}, {bits} bits{', alpha kept aside' if picture.alpha else ''}"


def report(detox: "SampDetox", pixels: "Tensor", explained: "Explanation") -> dict[str, str]:
    """What the purification was and did, in numbers; sigmas are noise std beside images in [-1, 1]."""
    s, levels = detox.settings, explained.timestep_map
    unit = 1 if pixels.is_floating_point() else 255
    change = (explained.image.double() - pixels.double()).abs().mean().item() * 255 / unit

    def share(limit: float) -> str:
        return f"{(levels > limit).double().mean().item() * 100:.1f} % of the pixels"

    searched = {}
    if explained.mask is not None and explained.false_alarm_rate is not None and detox.calibration is not None:
        rate = float(explained.false_alarm_rate)
        treated = "treated" if rate < detox.calibration.false_alarm_rate else "left as stage 1 made it"
        searched = {
            "suspicion": f"{rate:.2%} of clean pictures look at least as suspicious: {treated}",
            "filled": f"{explained.mask.double().mean().item() * 100:.1f} % of the pixels",
        }
    return {
        **settings_of(detox),
        **searched,
        "sigma1": f"{explained.sigma1:.4f} ({explained.sigma1 * 127.5:.1f} grey levels of 255), whole picture",
        "sigma2": f"{explained.sigma2:.4f} ({explained.sigma2 * 127.5:.1f} grey levels of 255), where the level is t2",
        "network calls": str(int(explained.network_calls)),
        "level > 0": share(0),
        f"level > {s.t2 / 2:g}": share(s.t2 / 2),
        "mean change": f"{change:.2f} grey levels of 255",
    }


def settings_of(detox: "SampDetox") -> dict[str, str]:
    """The weights and the settings in words."""
    s = detox.settings
    return {
        "weights": f"{detox.denoiser.source}, levels 1 to {detox.denoiser.max_level}",
        "settings": f"t1={s.t1}, t2={s.t2}, {s.sampler}, stride {s.stride}, map {s.map}, {detox.schedule.name} levels",
    }


def about_detox(detox: "SampDetox") -> list[str]:
    """How pictures are purified, as lines for a report."""
    from sampdetox_transforms import __version__

    lines = [f"{name.capitalize()}: {value}." for name, value in settings_of(detox).items()]
    if detox.calibration is not None:
        rate = detox.calibration.false_alarm_rate
        lines.append(f"Pictures are treated as triggered where the false-alarm rate is below {rate:.2%}.")
    seed = "fresh noise" if detox.seed is None else f"seed {detox.seed}"
    return [*lines, f"sampdetox {__version__}, {seed}."]


def folder_of(weights: "DetoxWeights | HubRepo | Path", *, local: bool = False) -> Path:
    """The folder of what ``parse_weights`` returned, downloaded unless ``local``: then DownloadError if not here."""
    from sampdetox_transforms.networks.catalogue import BUNDLED_FOLDER, DetoxWeights
    from sampdetox_transforms.networks.hub import HubRepo, fetch

    if isinstance(weights, Path):
        return weights
    if isinstance(weights, DetoxWeights):
        if not weights.meta.repo:
            return BUNDLED_FOLDER
        weights = HubRepo(weights.meta.repo, weights.meta.revision)
    return fetch(weights, local_files_only=local)


def where_is(weights: "DetoxWeights") -> str:
    """Whether named weights are on this machine, in a word or two."""
    from sampdetox_transforms.networks.hub import DownloadError

    if not weights.meta.repo:
        return "in package"
    try:
        folder_of(weights, local=True)
    except DownloadError:
        return "not yet"
    return "cached"


def check_hash(weights: "DetoxWeights | HubRepo | Path", folder: Path) -> tuple[str, bool]:
    """The sha256 of the weights file, and whether one is pinned; WeightsFileError where they differ."""
    import hashlib

    from sampdetox_transforms.networks.catalogue import DetoxWeights
    from sampdetox_transforms.networks.checkpoints import PICKLED, SAFETENSORS, WeightsFileError, verify_sha256

    places = [base / name for base in (folder, folder / "unet") for name in (SAFETENSORS, PICKLED)]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise WeightsFileError(f"a checkpoint folder must hold {SAFETENSORS}, got none in {folder}. Fetch it anew.")
    pinned = weights.meta.sha256.get(path.name, "") if isinstance(weights, DetoxWeights) else ""
    if pinned:
        verify_sha256(path, pinned)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), bool(pinned)
