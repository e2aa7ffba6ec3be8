"""``sampdetox victim``: a classifier with a backdoor, to measure defenses on."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.shared import (
    bar_off,
    check_writable,
    choose_device,
    keyed_progress,
    listen,
    say,
    say_facts,
    say_json,
)
from sampdetox_transforms.lab.victims.config import VictimConfig as Default

NOTES = "A run that was killed goes on from its last epoch when the same command is started again."

ITS_OWN = "as usual for the attack"


def victim(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Image folder to train on, a subfolder for each class.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the victim, outside of DATA.")],
    target_label: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="The attacker's class, an index into the sorted subfolders, or 'none' for mode all2all.",
        ),
    ] = str(Default.target_label),
    attack: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Attack to poison with; 'none' for a clean classifier; a wrong name lists all."
        ),
    ] = Default.attack,
    poison_rate: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            show_default=ITS_OWN,
            help="Share of the images that are poisoned, above 0, at most 1; for clean-label attacks of the target "
            "class.",
        ),
    ] = Default.poison_rate,
    mode: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=ITS_OWN, help="all2one, all2all or clean-label.")
    ] = Default.mode,
    robust_noise: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Share of noise in half of the images, from 0 to less than 1: the paper's adaptive attacks.",
        ),
    ] = Default.robust_noise,
    classifier: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Such as preact-resnet18, vgg19 or efficientnet-lite0; a wrong name lists all."
        ),
    ] = Default.classifier,
    size: Annotated[
        int, typer.Option(metavar="N", help="Height and width that images are resized to, in pixels.")
    ] = Default.size,
    epochs: Annotated[int, typer.Option(metavar="N", help="Times that each image is seen, 1 or more.")] = (
        Default.epochs
    ),
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images a step, 1 or more.")] = Default.batch_size,
    learning_rate: Annotated[float, typer.Option(metavar="X", help="Highest learning rate, above 0.")] = (
        Default.learning_rate
    ),
    weight_decay: Annotated[float, typer.Option(metavar="X", help="Weight decay, 0 or more.")] = Default.weight_decay,
    crop: Annotated[
        int,
        typer.Option(
            metavar="N", help="Padding of the random crops in pixels, 0 for none; large ones cut corner triggers off."
        ),
    ] = Default.crop,
    seed: flags.Seed = Default.seed,
    surrogate: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            show_default="none",
            help="Folder of a victim with attack 'none' on the same data, for triggers optimised on one.",
        ),
    ] = Default.surrogate,
    picture: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=ITS_OWN,
            help="Image file, for the attacks that take one; for low-frequency a ready pattern, .npy.",
        ),
    ] = Default.picture,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE...",
            show_default="none",
            help="The attack's own settings, such as size=5 pattern=checker; a wrong name lists all.",
        ),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", show_default="no", help="Mirror half of the images; wrong for signs.")
    ] = Default.flip,
    rotate: Annotated[
        float, typer.Option(metavar="X", help="Degrees by which each image is turned at most, from 0 to 180.")
    ] = Default.rotate,
    brightness: Annotated[
        float,
        typer.Option(metavar="X", help="Share by which each image is brightened or darkened at most, below 1."),
    ] = Default.brightness,
    fresh_covers: Annotated[
        bool,
        typer.Option(
            "--fresh-covers",
            show_default="no",
            help="Draw WaNet's noise, BPP's negatives and Dynamic's cross images anew in each epoch.",
        ),
    ] = Default.fresh_covers,
    bf16: flags.Bf16 = Default.bf16,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", show_default="none", help="Measure CA, PA and ASR on this image folder in the end."
        ),
    ] = None,
    device: flags.Device = None,
    as_json: flags.Json = False,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Train a classifier with a backdoor, to measure defenses on."""
    listen(verbose, quiet)
    config = Default(
        data=data,
        target_label=read_label(target_label),
        settings=dict(setting(text) for text in settings or ()),
        **{"attack": attack, "poison_rate": poison_rate, "mode": mode, "robust_noise": robust_noise, "seed": seed},
        **{"classifier": classifier, "size": size, "epochs": epochs, "batch_size": batch_size, "crop": crop},
        **{"learning_rate": learning_rate, "weight_decay": weight_decay, "surrogate": surrogate, "picture": picture},
        **{"flip": flip, "rotate": rotate, "brightness": brightness, "fresh_covers": fresh_covers, "bf16": bf16},
    )
    if out.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(f"OUT must be outside of DATA, got {out} in {data}. It would be a class of its own.")
    shares = train_and_measure(config, out, test, choose_device(device), quiet)
    if as_json:
        say_json({"out": out, **{name: vars(share) for name, share in shares.items()}})
        return 0
    say(f"the victim is in {out}; measure defenses on it with:", quiet=quiet)
    say(f"  sampdetox evaluate {shlex.quote(str(out))} --data TEST_FOLDER", quiet=quiet)
    if shares:
        say_facts({k: f"{s.value:.4f} [{s.low:.4f}, {s.high:.4f}] of {s.n}" for k, s in shares.items()})
    return 0


def read_label(text: str) -> int | None:
    """A class index; None for "none"."""
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"--target-label must be a whole number or 'none', got {text!r}. 0 is usual.") from error


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE -> (NAME, VALUE), the value as a number or a truth value where it is one."""
    name, found, value = text.partition("=")
    if not found:
        raise ValueError(f"a setting must be NAME=VALUE, got {text!r}. Write size=5, say.")
    if value in ("true", "false"):
        return name, value == "true"
    try:
        return name, flags.number(value)
    except ValueError:
        return name, value


def train_and_measure(config: Default, out: Path, test: str | None, device: str, quiet: bool) -> dict[str, Any]:
    """Train or resume, then measure where there are test images; one that was trained before is measured only."""
    from tqdm import tqdm

    from sampdetox_transforms.lab.victims.config import ABOUT
    from sampdetox_transforms.lab.victims.poisoned import image_folder
    from sampdetox_transforms.lab.victims.training import train_victim
    from sampdetox_transforms.lab.victims.victim import load_victim, measure

    images = None if test is None else image_folder(test, config.size)
    check_writable(out)
    with tqdm(unit="step", file=sys.stderr, disable=bar_off(quiet)) as bar:
        if (out / ABOUT).exists() and images is not None:
            trained = load_victim(out, device=device)
        else:
            trained = train_victim(config, out, device=device, progress=staged_progress(bar))
    return {} if images is None else measure(trained, images, device)


def staged_progress(bar: Any) -> Callable[[str, int, int, float], None]:
    """A progress function for ``train_victim``: one bar after the other for the trigger and the epochs."""
    move = keyed_progress(bar)

    def progress(what: str, done: int, total: int, loss: float) -> None:
        if loss == loss:
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        move(what, done, total)

    return progress
