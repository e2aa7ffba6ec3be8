"""``sampdetox evaluate``: defenses on classifiers with a backdoor."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.shared import (
    bar_off,
    check_at_least,
    check_json,
    choose_device,
    given,
    keyed_progress,
    listen,
)

NOTES = "An interrupted run goes on at the first missing row when the same command is started again."


def evaluate(
    victims: Annotated[list[Path], typer.Argument(metavar="VICTIM", help="Folders that 'sampdetox victim' wrote.")],
    data: Annotated[str, typer.Option(metavar="FOLDER", help="Image folder of test images.")],
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
        str,
        typer.Option(
            metavar="NAME",
            help="comparison, ablation, levels, transformations, samplers, strides, precision, adaptive, semantic or "
            "robustness; a wrong name lists all.",
        ),
    ] = "comparison",
    defense: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", show_default="all", help="Only these of the experiment's defenses."),
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
    restorer: flags.Restorer = None,
    calibration: flags.Calibration = None,
    n: Annotated[int, typer.Option("--n", metavar="N", help="Test images, 1 or more.")] = 560,
    n_slow: Annotated[
        int, typer.Option(metavar="N", help="Test images for defenses of more than 20 network calls an image.")
    ] = 20,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images at once.")] = 64,
    seed: flags.Seed = 0,
    dtype: flags.DtypeFlag = flags.Dtype.AUTO,
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
    from sampdetox_transforms.lab.evaluation.experiments import EXPERIMENTS, ROBUSTNESS
    from sampdetox_transforms.lab.victims.poisoned import image_folder

    check_choice("experiment", experiment, (*EXPERIMENTS, ROBUSTNESS))
    check_at_least(1, n=n, n_slow=n_slow, batch_size=batch_size)
    check_json(out)
    device = choose_device(device)
    asked = Request(
        **{"victims": victims, "data": data, "experiment": experiment, "defenses": defense or [], "weights": weights},
        **{"full_range": full_range, "doors": given(restorer=restorer, calibration=calibration), "n": n},
        **{"n_slow": n_slow, "batch_size": batch_size, "seed": seed, "dtype": name_of(dtype, device)},
        **{"device": device, "out": out},
    )
    models = read_victims(victims, device, backdoorbench)
    sizes = {victim.size for victim in models}
    if len(sizes) > 1:
        raise ValueError(f"victims must take images of one size, got {sorted(map(str, sizes))}. Evaluate them apart.")
    dataset = image_folder(data, sizes.pop())
    measure = measure_robustness if experiment == ROBUSTNESS else measure_table
    with tqdm(unit="image", file=sys.stderr, disable=bar_off(quiet)) as bar:
        text, document = measure(asked, models, dataset, row_progress(bar))
    print(json.dumps(document, indent=1) if as_json else text)
    if out is not None:
        from sampdetox_transforms._common import write_atomically

        write_atomically(out.with_suffix(".md"), lambda path: path.write_text(text + "\n"))
    return 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command was asked for; ``doors`` are the search networks and thresholds that were given."""

    victims: Sequence[Path]
    data: str
    experiment: str
    defenses: Sequence[str]
    weights: str
    full_range: str | None
    doors: dict[str, Path] = field(default_factory=dict)
    n: int
    n_slow: int
    batch_size: int
    seed: int
    dtype: str
    device: str
    out: Path | None

    def about(self) -> dict[str, str]:
        """What is stored with results: the command, with folders by their last names, the experiment and the data."""
        data = "/".join(Path(self.data).parts[-2:])
        shown = ["evaluate", *(folder.name for folder in self.victims), "--data", data, "--experiment", self.experiment]
        shown += ["--defense", *self.defenses] if self.defenses else []
        shown += ["--weights", Path(self.weights).name]
        shown += ["--full-range", Path(self.full_range).name] if self.full_range else []
        shown += [part for name, path in self.doors.items() for part in (f"--{name}", path.name)]
        shown += ["--n", str(self.n), "--n-slow", str(self.n_slow), "--seed", str(self.seed), "--dtype", self.dtype]
        return {"command": shlex.join(["sampdetox", *shown]), "experiment": self.experiment, "data": data}


def name_of(dtype: str, device: str) -> str:
    """What the networks will compute in, by its name, since results are stored with it."""
    import torch

    from sampdetox_transforms.networks.precision import fastest_dtype

    return str(fastest_dtype(torch.device(device))).removeprefix("torch.") if dtype == "auto" else str(dtype)


def read_victims(folders: Sequence[Path], device: str, backdoorbench: bool) -> list[Any]:
    """The victims: ours, or records of BackdoorBench where these were allowed."""
    if backdoorbench:
        from sampdetox_transforms.lab.victims.backdoorbench import load_record

        return [load_record(folder, allow_pickle=True).victim(folder.name) for folder in folders]
    from sampdetox_transforms.lab.victims.victim import load_victim

    return [load_victim(folder, device=device) for folder in folders]


def measure_table(asked: Request, victims: list[Any], dataset: Any, progress: Callable) -> tuple[str, dict[str, Any]]:
    """Measure rows of CA, PA and ASR; the table as text, and as a JSON document."""
    from sampdetox_transforms._common import check_choice
    from sampdetox_transforms.lab.evaluation.engine import evaluate
    from sampdetox_transforms.lab.evaluation.experiments import get_experiment
    from sampdetox_transforms.lab.evaluation.render import render_experiment

    columns = get_experiment(asked.experiment).columns(make_tools(asked))
    if asked.defenses:
        for name in asked.defenses:
            check_choice("--defense", name, tuple(column.name for column in columns))
        columns = [column for column in columns if column.name in asked.defenses]
    doors = {name: path.name for name, path in asked.doors.items()}
    report = evaluate(
        victims,
        columns,
        dataset,
        n=min(asked.n, len(dataset)),
        seed=asked.seed,
        batch_size=asked.batch_size,
        device=asked.device,
        out=asked.out,
        about={**asked.about(), "weights": Path(asked.weights).name, "dtype": asked.dtype, **doors},
        progress=progress,
    )
    if asked.out is not None and asked.experiment == "comparison":
        draw_times(report.rows, asked.out.with_suffix(".png"))
    rows = [asdict(row) for row in report.rows]
    document = {"settings": report.settings, "environments": report.environments, "rows": rows}
    return render_experiment(asked.experiment, report), document


def make_tools(asked: Request) -> Any:
    """What the experiment's defenses are built from."""
    import torch

    from sampdetox_transforms.lab.evaluation.experiments import Tools
    from sampdetox_transforms.networks.catalogue import load_denoiser
    from sampdetox_transforms.networks.denoiser import Denoiser

    dtype = getattr(torch, asked.dtype)

    def load(weights: str) -> Denoiser:
        return load_denoiser(weights).to(asked.device).set_precision(dtype)

    return Tools(
        denoiser=load(asked.weights),
        full_range=None if asked.full_range is None else load(asked.full_range),
        seed=asked.seed,
        dtype=dtype,
        device=asked.device,
        n_slow=asked.n_slow,
        **asked.doors,  # pyright: ignore[reportArgumentType]
    )


def draw_times(rows: Sequence[Any], out: Path) -> None:
    """Draw the paper's Figure 5, the time of each defense."""
    from sampdetox_transforms.lab.drawing.plots import draw_bars

    times: dict[str, list[float]] = {}
    for row in rows:
        times.setdefault(row.defense, []).append(row.ms_per_image)
    means = {name: sum(values) / len(values) for name, values in times.items() if name != "none"}
    if means:
        draw_bars(means, out, "ms an image, without the classifier")


def measure_robustness(
    asked: Request, victims: list[Any], dataset: Any, progress: Callable
) -> tuple[str, dict[str, Any]]:
    """Measure visibility and robustness, the paper's Figure 2; the table as text, and as a JSON document."""
    from sampdetox_transforms._common import write_atomically
    from sampdetox_transforms.lab.drawing.plots import draw_scatter
    from sampdetox_transforms.lab.environment import describe
    from sampdetox_transforms.lab.evaluation.engine import evaluate_robustness
    from sampdetox_transforms.lab.evaluation.render import footnote, render_robustness

    n = min(asked.n, len(dataset))
    rows = evaluate_robustness(victims, dataset, n=n, seed=asked.seed, device=asked.device, progress=progress)
    settings = {**asked.about(), "n": n, "seed": asked.seed, "test_images": len(dataset)}
    environments = [describe(asked.device)]
    document = {"settings": settings, "environments": environments, "rows": [asdict(row) for row in rows]}
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(asked.out, lambda path: path.write_text(json.dumps(document) + "\n"))
        groups = {row.victim: (row.visibility, row.robustness) for row in rows}
        draw_scatter(groups, asked.out.with_suffix(".png"), ("visibility v", "robustness eta_r"))
    return render_robustness(rows) + "\n\n" + footnote(settings, environments), document


def row_progress(bar: Any) -> Callable[[str, str, int, int], None]:
    """A progress function for ``evaluate``: one bar, begun anew for each row."""
    move = keyed_progress(bar)
    return lambda victim, defense, done, total: move(f"{victim}, {defense}", done, total)
