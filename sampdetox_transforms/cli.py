"""The command ``sampdetox``: parse, call the library, print.

Exit status: 0, or 1 where some pictures failed and all others were done, 2 for an error, 130 when interrupted.
Errors are one line on stderr. Heavy modules are imported by the commands that need them, so that help is quick.
"""

import argparse
import errno
import itertools
import os
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

    from sampdetox_transforms.checkpoints import DetoxWeights, HubRepo
    from sampdetox_transforms.transforms import Explanation, SampDetox

# What Pillow may decode: nothing that starts other programs (EPS), and no JPEG 2000, whose 16 bits it cuts to 8.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "AVIF")
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
BATCH_PIXELS, BATCH_MOST = 512 * 512, 64  # by default a batch is as many pictures as have so many pixels in all
THIS_FILE_ONLY = (errno.ENAMETOOLONG, errno.EISDIR)  # writing fails for one picture; all else would fail for every one

PURIFY_NOTES = """\
A folder is searched at any depth for pictures, by the ending of their names;
other files, and names that begin with a dot, are left out. OUT mirrors it:
a/b.jpg becomes a/b.png. Pictures that would get one name, a/b.jpg and a/b.png,
keep theirs whole: a/b.jpg.png and a/b.png.png.

A result appears whole or not at all, and one that exists is skipped, whatever
settings made it: after a kill, the same command goes on where it stopped.
--overwrite makes all anew. Pictures that fail are named at the end, and the exit
status is 1 then.

Results are PNG, turned upright, without EXIF data. Transparency and the colour
profile are kept, and grey pictures of 16 bits stay so. Not purified, but named
at the end: 16-bit colour, 32-bit and floating-point pictures, and pictures of
several frames (GIF, TIFF, APNG; of a phone's MPO file the first is taken).
"""

# Flags that are fields of TrainingConfig: name, type, default, what it is. The defaults are tested to be the library's.
TRAIN_FLAGS: tuple[tuple[str, Callable[[str], Any], Any, str], ...]


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


def one_line(error: BaseException) -> str:
    """The message of an error on one line; of an error in a DataLoader worker the message at its end."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else " ".join(" ".join(lines).split())


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


TRAIN_FLAGS = (
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


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that ``make_detox`` reads."""
    add = parser.add_argument
    add("--weights", metavar="WEIGHTS", help="a name ('sampdetox weights list'), a folder, or user/repo[@revision] on "
        "the Hub (default: the library's, downloaded once; 'bundled' needs no network)")  # fmt: skip
    add("--preset", help="ddim, paper, paper-linear or authors-code (default: ddim); the flags below change it")
    add("--t1", type=number, metavar="LEVEL", help="noise level of the global stage, 0 or more, at most what the "
        "weights know (default: 20, or the preset's)")  # fmt: skip
    add("--t2", type=number, metavar="LEVEL", help="highest noise level of the local stage, as --t1 (default: 120, or "
        "the preset's)")  # fmt: skip
    add("--sampler", help="ddim or ddpm (default: ddim, or the preset's)")
    add("--stride", type=number, metavar="LEVELS", help="levels between two network calls, above 0; 1 for the paper's "
        "ddpm (default: 20, or the preset's)")  # fmt: skip
    add("--seed", type=int, help="any whole number: a picture's result is then the same at any time, in any batch "
        "(default: fresh noise each time)")  # fmt: skip
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="what the network computes in; bfloat16 is "
        "faster where hardware has it (default: %(default)s)")  # fmt: skip
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
    parser.add_argument("--overwrite", action="store_true", help="make results that exist anew (default: skip them)")
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
    for name, kind, default, text in TRAIN_FLAGS:
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        flag, metavar = "--" + name.replace("_", "-"), {str: "NAME", float: "X", widths: "N,N,..."}.get(kind, "N")
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=f"{text} (default: {shown})")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="compute in bfloat16 (default: where the "
        "processor or card has it)")  # fmt: skip
    parser.add_argument("--half", action="store_true", help="store the weights in float16, half the size (default: no)")
    parser.add_argument("--init", metavar="WEIGHTS", help="start from these weights, of the same shape: a folder or a "
        "name (default: random weights)")  # fmt: skip
    add_device(parser)
    parser.set_defaults(run=run_train)


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
    jobs, failures, left_out = plan(args.input, args.out)
    todo = [job for job in jobs if args.overwrite or not job.target.is_file()]
    done = 0
    try:
        if todo:
            check_writable(todo[0].target.parent)
            done = purify_pictures(todo, make_detox(args), args.batch_size, failures)
    finally:
        for failure in failures:
            print(f"sampdetox: failed: {failure}", file=sys.stderr)
    parts = [f"purified {done}"]
    if skipped := len(jobs) - len(todo):
        parts.append(f"skipped {skipped} that exist already (--overwrite makes them anew)")
    if failures:
        parts.append(f"failed {len(failures)}")
    if left_out:
        parts.append(f"left out {left_out} other files")
    print(f"{', '.join(parts)}; results in {args.out}")
    return 1 if failures else 0


def run_inspect(args: argparse.Namespace) -> int:
    """Purify one picture, draw the panel, print the numbers."""
    picture = read_picture(args.image)
    name = f"{args.image.stem}-panel.png"
    out = Path(name) if args.out is None else args.out / name if args.out.is_dir() else args.out
    if out.resolve() == args.image.resolve():
        raise ValueError(f"the panel must not replace the picture, got {out} for both. Give another name to -o.")
    check_writable(out.parent)
    from sampdetox_transforms.panel import check_format, draw_panel, explanation_row

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
    from sampdetox_transforms.checkpoints import DetoxWeights

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
    from sampdetox_transforms.checkpoints import parse_weights

    weights = parse_weights(args.weights)
    if isinstance(weights, Path):
        raise ValueError(f"fetch takes a name or user/repo[@revision], got the folder {weights}. It is here already.")
    folder = folder_of(weights)
    check_hash(weights, folder)
    print(folder)
    return 0


def run_weights_verify(args: argparse.Namespace) -> int:
    """Load weights that are on this machine, check a pinned hash, and print what they are."""
    from sampdetox_transforms.checkpoints import parse_weights, read_checkpoint

    weights = parse_weights(args.weights)
    folder = folder_of(weights, local=True)
    digest, pinned = check_hash(weights, folder)
    denoiser = read_checkpoint(folder)
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

    from sampdetox_transforms.training import TrainingConfig, train

    fields = {name: getattr(args, name) for name in (*(flag[0] for flag in TRAIN_FLAGS), "bf16", "half")}
    config = TrainingConfig(data=tuple(args.data), **fields)
    check_training_folder(args.out, args.data)
    device = choose_device(args.device)
    with tqdm(total=config.steps, unit="step", file=sys.stderr, disable=None) as bar:
        train(config, args.out, device=device, init=args.init, progress=training_progress(bar))

    import numpy as np

    from sampdetox_transforms.panel import draw_loss_curve

    losses = np.loadtxt(args.out / "loss.csv", delimiter=",", skiprows=1, ndmin=2)[:, 1]
    draw_loss_curve(losses.tolist(), args.out / "loss.png")
    print(f"trained {len(losses)} steps, mean loss of the last {len(losses[-100:])}: {losses[-100:].mean():.4g}")
    print(f"weights and loss.png are in {args.out}; use them with:")
    print(f"  sampdetox purify IN OUT --weights {shlex.quote(str(args.out.resolve()))}")
    return 0


def run_demo_command(args: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    check_writable(args.out.parent)
    from sampdetox_transforms.demo import run_demo
    from sampdetox_transforms.panel import check_format

    check_format(args.out)
    device = choose_device(args.device)
    print(run_demo(args.out, seed=args.seed, device=device, progress=lambda step: print(step, file=sys.stderr)))
    print(f"panel: {args.out}")
    return 0


# What the commands share


def choose_device(device: str | None) -> str:
    """The device that was asked for, or CUDA where there is one; ValueError where it is not there."""
    import torch

    from sampdetox_transforms.transforms import check_device

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    return device


def make_detox(args: argparse.Namespace) -> "SampDetox":
    """``SampDetox`` with the settings of ``add_method_flags``; flags change what the preset sets."""
    import torch

    from sampdetox_transforms.presets import get_preset
    from sampdetox_transforms.transforms import SampDetox

    given = {name: getattr(args, name) for name in ("t1", "t2", "sampler", "stride")}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.preset is not None:
        settings = {"preset": replace(get_preset(args.preset), **settings)}
    if args.weights is not None:
        settings["weights"] = args.weights
    settings["batch_size"] = getattr(args, "batch_size", None)
    return SampDetox(**settings, device=choose_device(args.device), dtype=getattr(torch, args.dtype), seed=args.seed)


def check_writable(folder: Path) -> None:
    """Raise OSError now where files in ``folder``, which need not exist yet, could not be written. Makes nothing."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"results must go where files can be written, got {folder}: {reason}. Give another.") from error


def check_training_folder(out: Path, data: Sequence[str]) -> None:
    """Raise OSError where ``out`` cannot be written, ValueError where it is inside the data or a finished run's."""
    from sampdetox_transforms.checkpoints import SAFETENSORS

    for folder in data:
        if out.resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(f"OUT must be outside of DATA, got {out} in {folder}. Its loss.png would be trained on.")
    if (out / SAFETENSORS).exists() and not (out / "training_state.safetensors").exists():
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


def print_facts(facts: dict[str, str]) -> None:
    """Print one ``name  value`` a line, the values aligned."""
    size = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.ljust(size)}  {value}")


def describe(picture: "Picture", path: Path) -> str:
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

    return {
        "weights": f"{detox.denoiser.source}, levels 1 to {detox.denoiser.max_level}",
        "settings": f"t1={s.t1}, t2={s.t2}, {s.sampler}, stride {s.stride}, map {s.map}, {detox.schedule.name} levels",
        "sigma1": f"{explained.sigma1:.4f} ({explained.sigma1 * 127.5:.1f} grey levels of 255), whole picture",
        "sigma2": f"{explained.sigma2:.4f} ({explained.sigma2 * 127.5:.1f} grey levels of 255), where the level is t2",
        "network calls": str(int(explained.network_calls)),
        "level > 0": share(0),
        f"level > {s.t2 / 2:g}": share(s.t2 / 2),
        "mean change": f"{change:.2f} grey levels of 255",
    }


def folder_of(weights: "DetoxWeights | HubRepo | Path", *, local: bool = False) -> Path:
    """The folder of what ``parse_weights`` returned, downloaded unless ``local``: then DownloadError if not here."""
    from sampdetox_transforms.checkpoints import BUNDLED_FOLDER, DetoxWeights, HubRepo, fetch

    if isinstance(weights, Path):
        return weights
    if isinstance(weights, DetoxWeights):
        if not weights.meta.repo:
            return BUNDLED_FOLDER
        weights = HubRepo(weights.meta.repo, weights.meta.revision)
    return fetch(weights, local_files_only=local)


def where_is(weights: "DetoxWeights") -> str:
    """Whether named weights are on this machine, in a word or two."""
    from sampdetox_transforms.checkpoints import DownloadError

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

    from sampdetox_transforms.checkpoints import PICKLED, SAFETENSORS, DetoxWeights, WeightsFileError, verify_sha256

    places = [base / name for base in (folder, folder / "unet") for name in (SAFETENSORS, PICKLED)]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise WeightsFileError(f"a checkpoint folder must hold {SAFETENSORS}, got none in {folder}. Fetch it anew.")
    pinned = weights.meta.sha256 if isinstance(weights, DetoxWeights) else ""
    if pinned:
        verify_sha256(path, pinned)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), bool(pinned)


# Trees of pictures


@dataclass(frozen=True)
class Job:
    """A picture to read, and where its result goes."""

    source: Path
    target: Path


def plan(source: Path, out: Path) -> tuple[list[Job], list[str], int]:
    """What to purify to where; what could not be listed; the number of files left out. Touches nothing.

    Raises:
        OSError: ``source`` does not exist.
        ValueError: a folder without pictures; results that would lie among the pictures, or share a name.
    """
    if not source.exists():
        raise FileNotFoundError(f"IN must be a picture or a folder of pictures, got {source}. It does not exist.")
    if not source.is_dir():
        return [Job(source, target_of_file(source, out))], [], 0
    pictures, failures, left_out = find_pictures(source)
    if not pictures and not failures:
        raise ValueError(f"IN must hold pictures ({' '.join(SUFFIXES)}), got none in {source}. Check the path.")
    jobs = [Job(source / p, out / name) for p, name in zip(pictures, output_names(pictures), strict=True)]
    inputs = {folder.resolve() for folder in {job.source.parent for job in jobs}}
    for folder in {job.target.parent for job in jobs} | {out}:
        if folder.resolve().is_relative_to(source.resolve()) or folder.resolve() in inputs:
            raise ValueError(
                f"results must not lie among the pictures, or they would be purified again, got OUT {out} for "
                f"IN {source}. Give a folder beside IN."
            )
    return jobs, failures, left_out


def target_of_file(source: Path, out: Path) -> Path:
    """Where one picture goes: into ``out`` if that is a folder or has no ending, else to the .png file ``out``."""
    if out.is_dir() or not (out.suffix or out.exists()):
        out = out / source.with_suffix(".png").name
    elif out.suffix.lower() != ".png":
        raise ValueError(f"OUT must be a folder that exists or end in .png (lossless), got {out}. Rename it to .png.")
    if out.resolve() == source.resolve():
        raise ValueError(f"OUT must not be IN, got {out} for both. Give another name, or another folder.")
    return out


def find_pictures(folder: Path) -> tuple[list[Path], list[str], int]:
    """Relative paths of all pictures, sorted; folders that cannot be read; the number of other files."""
    found: list[Path] = []
    failures: list[str] = []
    left_out = 0
    walk = os.walk(folder, followlinks=True, onerror=lambda e: failures.append(f"{e.filename}: {e.strerror}"))
    for base, folders, names in walk:
        here = Path(base)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not leads_back(here / name))
        for name in sorted(names):
            path = here / name
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES or (path.exists() and not path.is_file()):
                left_out += 1
            else:
                found.append(path.relative_to(folder))
    return found, failures, left_out


def leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def output_names(pictures: Sequence[Path]) -> list[Path]:
    """b.jpg -> b.png; pictures that would share a name (or take a folder's) keep theirs whole: b.jpg.png.

    Names that differ in capitals only count as shared, for file systems that do not tell them apart.
    """
    short = [path.with_suffix(".png") for path in pictures]
    taken = Counter(str(name).casefold() for name in short)
    folders = {str(parent).casefold() for path in pictures for parent in path.parents}
    names = [
        path.with_name(path.name + ".png") if taken[key] > 1 or key in folders else name
        for path, name in zip(pictures, short, strict=True)
        for key in [str(name).casefold()]
    ]
    for name, count in Counter(names).items():
        if count > 1:
            first, second = [path for path, given in zip(pictures, names, strict=True) if given == name][:2]
            raise ValueError(f"two pictures must not get one name, got {name} for {first} and {second}. Rename one.")
    return names


def purify_pictures(jobs: Sequence[Job], detox: "SampDetox", batch_size: int | None, failures: list[str]) -> int:
    """Purify and write pictures, batch by batch; returns how many were written, and adds the others to ``failures``.

    Raises:
        OSError: results cannot be written at all: a full disk, say.
    """
    import torch
    from tqdm import tqdm

    done, before = 0, len(failures)
    with tqdm(total=len(jobs), unit="picture", file=sys.stderr, disable=None) as bar:
        for batch in batches(load_pictures(jobs, failures), batch_size):
            try:
                results = detox(torch.stack([picture.pixels for _, picture in batch]))
            except ValueError as error:  # too large for the network's attention
                failures += [f"{job.source}: {one_line(error)}" for job, _ in batch]
                continue
            for (job, picture), pixels in zip(batch, results, strict=True):
                try:
                    write_picture(job.target, picture, pixels)
                    done += 1
                except OSError as error:
                    problem = f"{job.target} cannot be written: {error.strerror or error}"
                    if error.errno not in THIS_FILE_ONLY:
                        raise OSError(f"{problem}. {done} are done; start the same command again to go on.") from error
                    failures.append(f"{job.source}: {problem}")
            bar.update(done + len(failures) - before - bar.n)
    return done


def load_pictures(jobs: Iterable[Job], failures: list[str]) -> Iterator[tuple[Job, "Picture"]]:
    """Read one picture after the other; those that cannot be read are added to ``failures``."""
    for job in jobs:
        try:
            picture = read_picture(job.source)
        except PictureError as error:
            failures.append(one_line(error))
        else:
            yield job, picture


def batches(pictures: Iterable[tuple[Job, "Picture"]], batch_size: int | None) -> Iterator[list[tuple[Job, "Picture"]]]:
    """Group pictures that follow each other and have one shape and dtype, reading no further than a batch."""
    for (shape, _), same in itertools.groupby(pictures, lambda item: (item[1].pixels.shape, item[1].pixels.dtype)):
        limit = batch_size or max(1, min(BATCH_MOST, BATCH_PIXELS // (shape[1] * shape[2])))
        while batch := list(itertools.islice(same, limit)):
            yield batch


# Picture files


class PictureError(OSError):
    """A picture file that cannot be read, or that cannot be purified without loss."""


@dataclass(frozen=True)
class Picture:
    """A picture file, taken apart.

    Attributes:
        pixels: (1 or 3, h, w), uint8, or float32 in [0, 1] if the file has 16 bits.
        alpha: the transparency, mode L, or None.
        icc_profile: the colour profile, or None.
    """

    pixels: "Tensor"
    alpha: "PIL.Image.Image | None"
    icc_profile: bytes | None


def read_picture(path: Path) -> Picture:
    """Read a picture file, upright.

    Raises:
        PictureError: whatever is wrong with the file.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            return take_apart(image)
    except UnidentifiedImageError as error:
        raise PictureError(f"{path}: not a picture of a known kind ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise PictureError(f"{path}: {getattr(error, 'strerror', None) or one_line(error)}") from error


def take_apart(image: "PIL.Image.Image") -> Picture:
    """An open picture file, upright, in the modes L, RGB or 16-bit grey, without its alpha.

    Raises:
        ValueError: several frames, or values that Pillow would cut to 8 bits or whose range is unknown.
    """
    import numpy as np
    import torch
    from PIL import ImageOps

    deep = check_depth(image)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a photo with previews or a depth map behind it
        raise ValueError(f"pictures must have one frame, got {frames}. Save each frame as a file of its own.")
    profile = image.info.get("icc_profile") if image.mode not in ("CMYK", "YCbCr", "LAB", "HSV") else None
    image = ImageOps.exif_transpose(image)
    if deep:
        return Picture(torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)[None], None, profile)
    grey, alpha = image.mode in ("1", "L", "LA", "La"), None
    if image.has_transparency_data:
        image = image.convert("LA" if grey else "RGBA")
        alpha = image.getchannel("A")
    array = np.array(image.convert("L" if grey else "RGB"))
    pixels = torch.from_numpy(array)
    return Picture(pixels[None] if grey else pixels.movedim(-1, 0), alpha, profile)


def check_depth(image: "PIL.Image.Image") -> bool:
    """Whether a file not yet decoded is grey with 16 bits; ValueError for other pictures of more than 8 bits."""
    file: Any = image  # an ImageFile of some format
    bits, inverted = 8, False
    decoders = [arg for tile in file.tile for arg in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
    if image.format == "TIFF":
        bits = max(file.tag_v2.get(258, (1,)))  # BitsPerSample
        inverted = file.tag_v2.get(262) == 0  # PhotometricInterpretation: white is 0, which Pillow ignores at 16 bits
    elif image.format == "PPM" and any(isinstance(arg, int) and arg > 255 for arg in decoders):
        bits = 16  # the largest value, which Pillow scales to 65535 for grey, and to 255 for colours
    elif any(str(arg).endswith((";16B", ";16L", ";16N")) for arg in decoders):
        bits = 16
    range_known = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if range_known and bits == 16 and not inverted and "transparency" not in image.info:
        return True
    if bits > 8 or image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(
            "pictures must have 8 bits a colour, or 16 bits in one grey channel, "
            f"got {bits} bits in mode {image.mode}. Convert it to 8 bits first."
        )
    return False


def write_picture(target: Path, picture: Picture, pixels: "Tensor") -> None:
    """Write ``pixels`` as PNG with the alpha and profile of ``picture``; the file appears whole or not at all."""
    import numpy as np
    from PIL import Image

    from sampdetox_transforms.checkpoints import write_atomically

    if pixels.is_floating_point():
        array = (pixels[0] * 65535).round().numpy().astype(np.uint16)
    else:
        array = (pixels[0] if len(pixels) == 1 else pixels.movedim(0, -1)).contiguous().numpy()
    image = Image.fromarray(array)
    if picture.alpha is not None:
        image.putalpha(picture.alpha)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda part: image.save(part, format="PNG", icc_profile=picture.icc_profile))
