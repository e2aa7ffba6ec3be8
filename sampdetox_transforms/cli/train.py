"""``sampdetox train``: networks and thresholds for a user's own images."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.shared import bar_off, check_writable, choose_device, listen, say
from sampdetox_transforms.training.config import PhotoTrainingConfig, RestorerTrainingConfig
from sampdetox_transforms.training.config import TrainingConfig as Default

NOTES = "A run that was killed goes on from its last save when the same command is started again."


def train(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="Folders of images, searched at any depth.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the weights, outside of DATA.")],
    size: Annotated[
        int, typer.Option(metavar="N", help="Height and width of the training crops in pixels.")
    ] = Default.size,
    max_level: Annotated[
        int, typer.Option(metavar="N", help="Train the noise levels 1 to this one, at most 1000.")
    ] = Default.max_level,
    schedule: Annotated[
        str, typer.Option(metavar="NAME", help="Noise schedule: linear, scaled_linear or cosine.")
    ] = Default.schedule,
    channels: Annotated[int, typer.Option(metavar="N", help="3 for colour, 1 for grey.")] = Default.channels,
    block_out_channels: Annotated[
        str, typer.Option(metavar="N,N,...", help="Width of each block of the network, multiples of 8.")
    ] = ",".join(map(str, Default.block_out_channels)),
    layers_per_block: Annotated[
        int, typer.Option(metavar="N", help="ResNet blocks at each size, 1 or more.")
    ] = Default.layers_per_block,
    steps: Annotated[int, typer.Option(metavar="N", help="Optimiser steps in all, 1 or more.")] = Default.steps,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images a step, 1 or more.")] = Default.batch_size,
    learning_rate: Annotated[
        float, typer.Option(metavar="X", help="Learning rate between warm-up and cool-down, above 0.")
    ] = Default.learning_rate,
    warmup: Annotated[
        int, typer.Option(metavar="N", help="Steps until the learning rate is reached, 0 or more.")
    ] = Default.warmup,
    cooldown: Annotated[
        float, typer.Option(metavar="X", help="Share of the steps over which it falls to 0, from 0 to 1.")
    ] = Default.cooldown,
    ema: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Decay of the averaged weights, which are what is saved, from 0 to less than 1; 0 turns it off.",
        ),
    ] = Default.ema,
    zoom: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Smallest share of an image's area that a crop takes, above 0, at most 1; 1 takes whole images.",
        ),
    ] = Default.zoom,
    only_denoiser: Annotated[
        bool, typer.Option("--only-denoiser", show_default="no", help="Train no networks that find and fill triggers.")
    ] = False,
    search_steps: Annotated[
        int, typer.Option(metavar="N", help="Steps of each of the three other networks of small images.")
    ] = RestorerTrainingConfig.steps,
    pictures: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            show_default="other images of DATA",
            help="Pictures to mix into small images in training, beside drawings: of any kind and size. Repeatable.",
        ),
    ] = None,
    photographs: Annotated[
        bool,
        typer.Option(
            "--photographs", show_default="no", help="Train the two networks for images above 48 pixels a side as well."
        ),
    ] = False,
    photograph_steps: Annotated[
        int, typer.Option(metavar="N", help="Steps of each of the two networks for photographs.")
    ] = PhotoTrainingConfig.steps,
    seed: flags.Seed = Default.seed,
    workers: Annotated[int, typer.Option(metavar="N", help="Processes that read images, 0 or more.")] = Default.workers,
    save_every: Annotated[
        int, typer.Option(metavar="N", help="Steps between two saves, 1 or more.")
    ] = Default.save_every,
    bf16: flags.Bf16 = Default.bf16,
    half: Annotated[
        bool, typer.Option("--half", show_default="no", help="Store the weights in float16, half the size.")
    ] = Default.half,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            show_default="random weights",
            help="Start from these weights, of the same shape: a folder or a name.",
        ),
    ] = None,
    device: flags.Device = None,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Train all that the default needs on folders of images: a denoiser, networks that find triggers, thresholds."""
    listen(verbose, quiet)
    config = Default(
        data=tuple(data),
        block_out_channels=flags.numbers(block_out_channels, "--block-out-channels"),
        **{"size": size, "max_level": max_level, "schedule": schedule, "channels": channels, "seed": seed},
        **{"layers_per_block": layers_per_block, "steps": steps, "batch_size": batch_size, "workers": workers},
        **{"learning_rate": learning_rate, "warmup": warmup, "cooldown": cooldown, "ema": ema, "zoom": zoom},
        **{"bf16": bf16, "save_every": save_every, "half": half},
    )
    check_training_folder(out, data, finished=only_denoiser)
    common = {"workers": workers, "bf16": bf16, "seed": seed}
    mixed = {"blend_data": tuple(pictures)} if pictures else {}
    search = None if only_denoiser else {"steps": search_steps, **mixed, **common}
    large = {"steps": photograph_steps, **common} if photographs else None
    run_training(config, out, search, large, init=init, device=choose_device(device), quiet=quiet)
    say(summary(out), quiet=quiet)
    return 0


def check_training_folder(out: Path, data: Sequence[str], *, finished: bool) -> None:
    """Raise OSError where ``out`` cannot be written, ValueError where it is inside the data.

    Args:
        finished: whether that of a finished denoiser is refused as well.
    """
    from sampdetox_transforms.training.denoiser import is_finished

    for folder in data:
        if out.resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(f"OUT must be outside of DATA, got {out} in {folder}. Its loss.png would be trained on.")
    if finished and is_finished(out):
        raise ValueError(f"OUT must not hold finished weights, got {out}. Give another; --init goes on from these.")
    check_writable(out)


def run_training(
    config: Default,
    out: Path,
    search: dict[str, Any] | None,
    photographs: dict[str, Any] | None,
    *,
    init: str | None,
    device: str,
    quiet: bool,
) -> None:
    """Train or resume, with one bar for all networks; the denoiser only where nothing is said of the search."""
    from tqdm import tqdm

    from sampdetox_transforms.training import denoiser
    from sampdetox_transforms.training.everything import train_all

    with tqdm(unit="step", file=sys.stderr, disable=bar_off(quiet)) as bar:
        move = training_progress(bar)
        if search is None:
            moved = lambda step, loss: move("denoiser", step, config.steps, loss)  # noqa: E731
            denoiser.train(config, out, device=device, init=init, progress=moved)
            return
        settings = {k: v for k, v in vars(config).items() if k != "data"}
        train_all(
            config.data,
            out,
            denoiser=settings,
            restorer=search,
            photographs=photographs,
            device=device,
            init=init,
            progress=move,
        )


def training_progress(bar: Any) -> Callable[[str, int, int, float], None]:
    """A progress function that moves a tqdm bar and shows the network and a running mean of its loss."""
    means: dict[str, float] = {}

    def progress(name: str, step: int, total: int, loss: float) -> None:
        if not means:  # a resumed run starts the bar where it starts itself
            bar.total, bar.initial, bar.n = total, step - 1, step - 1
        mean = means.setdefault(name, loss)
        means[name] = mean + 0.02 * (loss - mean)
        bar.set_postfix_str(f"{name}, loss {means[name]:.4f}", refresh=False)
        bar.update(step - bar.n)

    return progress


def summary(out: Path) -> str:
    """Draw the loss curve; how it went, and what comes next."""
    import numpy as np

    from sampdetox_transforms.lab.drawing.plots import draw_loss_curve

    losses = np.loadtxt(out / "loss.csv", delimiter=",", skiprows=1, ndmin=2)[:, 1]
    draw_loss_curve(losses.tolist(), out / "loss.png")
    return (
        f"trained {len(losses)} steps, mean loss of the last {len(losses[-100:])}: {losses[-100:].mean():.4g}\n"
        f"weights and loss.png are in {out}; use them with:\n"
        f"  sampdetox purify IN OUT --weights {shlex.quote(str(out.resolve()))}"
    )
