"""Tables of victims behind defenses: ``lab.evaluation.engine`` from the command line."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sampdetox_transforms.cli.evaluate.request import Request
from sampdetox_transforms.cli.shared import keyed_progress

N, N_SLOW, BATCH_SIZE = 560, 20, 64

COMPARE_DENOISERS = ("denoisers", "faces")  # which --denoisers is for

Shown = tuple[str, dict[str, Any]]  # the table as text, and the document that the JSON file holds

Progress = Callable[[str, str, int, int], None]


def measure_table(asked: Request, bar: Any) -> Shown:
    """Measure every defense of the experiment on every victim; write the table beside the JSON."""
    from sampdetox_transforms._common import write_atomically
    from sampdetox_transforms.lab.evaluation.experiments import ROBUSTNESS
    from sampdetox_transforms.lab.victims.poisoned import image_folder

    check_table(asked)
    models = read_victims(asked.victims, asked.device, asked.backdoorbench)
    sizes = {victim.size for victim in models}
    if len(sizes) > 1:
        raise ValueError(f"victims must take images of one size, got {sorted(map(str, sizes))}. Evaluate them apart.")
    dataset = image_folder(str(asked.data), sizes.pop())
    measure = measure_robustness if asked.experiment == ROBUSTNESS else measure_shares
    text, document = measure(asked, models, dataset, row_progress(bar))
    if asked.out is not None:
        write_atomically(asked.out.with_suffix(".md"), lambda path: path.write_text(text + "\n"))
    return text, document


def check_table(asked: Request) -> None:
    """Raise ValueError unless there is what a table needs, and nothing that it would leave aside."""
    if not asked.victims:
        raise ValueError(
            f"experiment {asked.experiment!r} needs a VICTIM, got none. Train one with 'sampdetox victim', or take "
            "an experiment with victims of its own, such as restore."
        )
    if asked.data is None:
        raise ValueError(
            f"experiment {asked.experiment!r} needs test images, got no --data. Give an image folder with a subfolder "
            "for each class."
        )
    if asked.denoisers and asked.experiment not in COMPARE_DENOISERS:
        raise ValueError(
            f"experiment {asked.experiment!r} compares no denoisers, got --denoisers {', '.join(asked.denoisers)}. "
            f"Leave it out, or take experiment {' or '.join(COMPARE_DENOISERS)}."
        )
    names = [Path(weights).name for weights in asked.denoisers]
    if len(names) > len(set(names)):
        raise ValueError(f"--denoisers must be folders of different names, got {', '.join(names)}. Rename one.")
    if asked.fit is not None and asked.experiment == "robustness":
        raise ValueError(f"experiment 'robustness' has no defenses to fit, got --fit {asked.fit}. Leave it out.")
    if asked.options:
        raise ValueError(
            f"experiment {asked.experiment!r} has no options, got --set {', '.join(asked.options)}. Leave it out."
        )


def about(asked: Request) -> dict[str, str]:
    """What is stored with results: command, experiment, data."""
    return {"command": asked.command(), "experiment": asked.experiment, "data": asked.data_name()}


def dtype_name(asked: Request) -> str:
    """What the networks will compute in, by its name, since results are stored with it."""
    import torch

    from sampdetox_transforms.networks.precision import fastest_dtype

    if asked.dtype in (None, "auto"):
        return str(fastest_dtype(torch.device(asked.device))).removeprefix("torch.")
    return str(asked.dtype)


def read_victims(folders: Sequence[Path], device: str, backdoorbench: bool) -> list[Any]:
    """The victims: ours, or records of BackdoorBench where these were allowed."""
    if backdoorbench:
        from sampdetox_transforms.lab.victims.backdoorbench import load_record

        return [load_record(folder, allow_pickle=True).victim(folder.name) for folder in folders]
    from sampdetox_transforms.lab.victims.victim import load_victim

    return [load_victim(folder, device=device) for folder in folders]


def measure_shares(asked: Request, victims: list[Any], dataset: Any, progress: Progress) -> Shown:
    """Measure rows of CA, PA and ASR."""
    from sampdetox_transforms._common import check_choice
    from sampdetox_transforms.lab.evaluation.engine import evaluate
    from sampdetox_transforms.lab.evaluation.experiments import get_experiment
    from sampdetox_transforms.lab.evaluation.render import render_experiment

    tools = make_tools(asked)
    columns = get_experiment(asked.experiment).columns(tools)
    if asked.fit is not None:
        columns.append(tools.fitted(images_of(asked.fit, victims[0].size)))
    if asked.defenses:
        for name in asked.defenses:
            check_choice("--defense", name, tuple(column.name for column in columns))
        columns = [column for column in columns if column.name in asked.defenses]
    doors = {name: path.name for name, path in asked.doors.items()}
    report = evaluate(
        victims,
        columns,
        dataset,
        n=min(asked.n or N, len(dataset)),
        seed=asked.seed,
        batch_size=asked.batch_size or BATCH_SIZE,
        device=asked.device,
        out=asked.out,
        about={**about(asked), "weights": Path(asked.weights).name, "dtype": dtype_name(asked), **doors},
        progress=progress,
    )
    if asked.out is not None and asked.experiment == "comparison":
        draw_times(report.rows, asked.out.with_suffix(".png"))
    rows = [asdict(row) for row in report.rows]
    document = {"settings": report.settings, "environments": report.environments, "rows": rows}
    fits = [f"Fitted to {row.victim}: {row.settings['fitted']}." for row in report.rows if "fitted" in row.settings]
    return "\n\n".join([render_experiment(asked.experiment, report), *fits]), document


def images_of(folder: Path, size: int | None) -> Any:
    """All images of a folder of clean images, to fit the default with; ValueError for too few of them."""
    from sampdetox_transforms.lab.victims.poisoned import image_folder
    from sampdetox_transforms.lab.victims.victim import materialise
    from sampdetox_transforms.transforms.fit import FEWEST

    dataset = image_folder(str(folder), size)
    if len(dataset) < FEWEST:
        raise ValueError(f"--fit must hold {FEWEST} images or more, got {len(dataset)} in {folder}. Add clean images.")
    return materialise(dataset)[0]


def make_tools(asked: Request) -> Any:
    """What the experiment's defenses are built from."""
    import torch

    from sampdetox_transforms.lab.evaluation.tools import Tools
    from sampdetox_transforms.networks.catalogue import load_denoiser
    from sampdetox_transforms.networks.denoiser import Denoiser

    dtype = getattr(torch, dtype_name(asked))

    def load(weights: str) -> Denoiser:
        return load_denoiser(weights).to(asked.device).set_precision(dtype)

    return Tools(
        denoiser=load(asked.weights),
        full_range=None if asked.full_range is None else load(asked.full_range),
        others={Path(weights).name: load(weights) for weights in asked.denoisers},
        seed=asked.seed,
        dtype=dtype,
        device=asked.device,
        n_slow=asked.n_slow or N_SLOW,
        **asked.doors,
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


def measure_robustness(asked: Request, victims: list[Any], dataset: Any, progress: Progress) -> Shown:
    """Measure visibility and robustness, the paper's Figure 2."""
    from sampdetox_transforms._common import write_atomically
    from sampdetox_transforms.lab.drawing.plots import draw_scatter
    from sampdetox_transforms.lab.environment import describe
    from sampdetox_transforms.lab.evaluation.engine import evaluate_robustness
    from sampdetox_transforms.lab.evaluation.render import footnote, render_robustness

    n = min(asked.n or N, len(dataset))
    rows = evaluate_robustness(victims, dataset, n=n, seed=asked.seed, device=asked.device, progress=progress)
    settings = {**about(asked), "n": n, "seed": asked.seed, "test_images": len(dataset)}
    environments = [describe(asked.device)]
    document = {"settings": settings, "environments": environments, "rows": [asdict(row) for row in rows]}
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(asked.out, lambda path: path.write_text(json.dumps(document) + "\n"))
        groups = {row.victim: (row.visibility, row.robustness) for row in rows}
        draw_scatter(groups, asked.out.with_suffix(".png"), ("visibility v", "robustness eta_r"))
    return render_robustness(rows) + "\n\n" + footnote(settings, environments), document


def row_progress(bar: Any) -> Progress:
    """A progress function for ``evaluate``: one bar, begun anew for each row."""
    move = keyed_progress(bar)
    return lambda victim, defense, done, total: move(f"{victim}, {defense}", done, total)
