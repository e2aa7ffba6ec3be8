"""``sampdetox evaluate``: defenses on classifiers with a backdoor, and every other experiment of the package."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.evaluate.request import Request
from sampdetox_transforms.cli.shared import bar_off, check_at_least, check_json, choose_device, given, listen
from sampdetox_transforms.cli.victim import setting

NOTES = """\
Tables of defenses (comparison, cifar10, tiny-imagenet, classifiers, textures, denoisers, faces, ablation, levels,
transformations, samplers, strides, precision, adaptive, semantic, retouching, robustness) are made for VICTIMs on the
test images of --data. All other experiments (restore, restore-ablation, dense, settings, drawn-signs, photographs,
denoising, adaptive-patch, adaptive-smooth, relabel, shared-trigger, sig-clipping; a wrong name lists all) choose their
images, from the folder of data that --data or SAMPDETOX_DATA names; --defense are then their settings, and --set their
options. An interrupted run goes on at the first missing row when the same command is started again.
"""

THE_EXPERIMENTS_OWN = "the experiment's own"


def evaluate(
    victims: Annotated[
        list[Path] | None,
        typer.Argument(metavar="VICTIM...", show_default=False, help="Folders that 'sampdetox victim' wrote."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            show_default="SAMPDETOX_DATA, if the experiment chooses its images",
            help="Image folder of test images; for experiments that choose theirs, the folder of all data.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="JSON",
            show_default="print only",
            help="File for the results; the table goes beside it as .md, the drawing of a figure as .png.",
        ),
    ] = None,
    experiment: Annotated[
        str, typer.Option(metavar="NAME", help="What is measured, see below; a wrong name lists all.")
    ] = "comparison",
    defense: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", show_default="all", help="Only these of the experiment's defenses."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE...",
            show_default="none",
            help="The experiment's own options, such as images=cifar10 kinds=lfw,dtd; a wrong name lists all.",
        ),
    ] = None,
    weights: flags.BundledWeights = "bundled",
    full_range: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            show_default="none",
            help="Denoiser that knows all noise levels, for zip, sancdifi and high levels, which are left out without "
            "one.",
        ),
    ] = None,
    denoisers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WEIGHTS...",
            show_default="none",
            help="Denoisers to compare, for experiments denoisers and faces; the table calls them by their folders.",
        ),
    ] = None,
    restorer: flags.Restorer = None,
    calibration: flags.Calibration = None,
    n: Annotated[
        int | None,
        typer.Option("--n", metavar="N", show_default=f"560, or {THE_EXPERIMENTS_OWN}", help="Test images, 1 or more."),
    ] = None,
    fit: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            show_default="none",
            help="Clean images, 100 or more in subfolders: also measure the default as strong as each VICTIM stands, "
            "by its answers to these. For a table, and for experiment dense.",
        ),
    ] = None,
    n_slow: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            show_default="20",
            help="Test images for the defenses of a table that make more than 20 network calls an image.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", show_default="64", help="Images at once, in a table.")
    ] = None,
    seed: flags.Seed = 0,
    dtype: Annotated[
        flags.Dtype | None,
        typer.Option(
            show_default=f"auto, or {THE_EXPERIMENTS_OWN}",
            help="What the networks compute in; auto is bfloat16 where the processor or card has it, else float32.",
        ),
    ] = None,
    backdoorbench: Annotated[
        bool,
        typer.Option(
            "--backdoorbench",
            show_default="no",
            help="VICTIM is a record that BackdoorBench made; it is a pickle, which can run code: only from people "
            "you trust.",
        ),
    ] = False,
    device: flags.Device = None,
    as_json: flags.Json = False,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Measure defenses on classifiers with a backdoor."""
    listen(verbose, quiet)
    from tqdm import tqdm

    from sampdetox_transforms._common import check_choice
    from sampdetox_transforms.cli.evaluate.studies import measure_study
    from sampdetox_transforms.cli.evaluate.tables import measure_table
    from sampdetox_transforms.lab.evaluation.experiments import EXPERIMENTS, ROBUSTNESS
    from sampdetox_transforms.lab.evaluation.run import STUDIES

    check_choice("experiment", experiment, (*EXPERIMENTS, ROBUSTNESS, *STUDIES))
    check_at_least(1, **given(n=n, n_slow=n_slow, batch_size=batch_size))
    check_json(out)
    asked = Request(
        **{"victims": victims or [], "data": data, "experiment": experiment, "defenses": defense or []},
        **{"options": dict(setting(text) for text in settings or ()), "weights": weights, "full_range": full_range},
        **{"denoisers": denoisers or []},
        **{"doors": given(restorer=restorer, calibration=calibration), "n": n, "n_slow": n_slow},
        **{"fit": fit, "batch_size": batch_size, "seed": seed, "dtype": dtype, "backdoorbench": backdoorbench},
        **{"device": choose_device(device), "out": out},
    )
    measure = measure_study if experiment in STUDIES else measure_table
    with tqdm(file=sys.stderr, disable=bar_off(quiet)) as bar:
        text, document = measure(asked, bar)
    print(json.dumps(document, indent=1) if as_json else text)
    return 0
