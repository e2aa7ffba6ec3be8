"""``run_experiment``: an experiment on images and victims of its own, such as photographs, by its name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.evaluation.adaptive import ADAPTIVE_PATCH
from sampdetox_transforms.lab.evaluation.adaptive_smooth import ADAPTIVE_SMOOTH
from sampdetox_transforms.lab.evaluation.denoising import DENOISING
from sampdetox_transforms.lab.evaluation.dense import DENSE
from sampdetox_transforms.lab.evaluation.drawn_signs import DRAWN_SIGNS
from sampdetox_transforms.lab.evaluation.fills import FILLS
from sampdetox_transforms.lab.evaluation.photographs import PHOTOGRAPHS
from sampdetox_transforms.lab.evaluation.relabel import RELABEL
from sampdetox_transforms.lab.evaluation.restore import RESTORE, RESTORE_ABLATION
from sampdetox_transforms.lab.evaluation.settings import SETTINGS
from sampdetox_transforms.lab.evaluation.shared_relabel import SHARED_RELABEL
from sampdetox_transforms.lab.evaluation.shared_study import SHARED_TRIGGER
from sampdetox_transforms.lab.evaluation.sig_clipping import SIG_CLIPPING
from sampdetox_transforms.lab.evaluation.study import Plan, Progress, Result, Study, run_study, silent

# Experiments on images and victims of their own; a new one is a line here, and `sampdetox evaluate` has it.
STUDIES: Mapping[str, Study] = {
    "drawn-signs": DRAWN_SIGNS,
    "photographs": PHOTOGRAPHS,
    "fills": FILLS,
    "restore": RESTORE,
    "restore-ablation": RESTORE_ABLATION,
    "dense": DENSE,
    "settings": SETTINGS,
    "adaptive-patch": ADAPTIVE_PATCH,
    "adaptive-smooth": ADAPTIVE_SMOOTH,
    "relabel": RELABEL,
    "shared-trigger": SHARED_TRIGGER,
    "shared-relabel": SHARED_RELABEL,
    "denoising": DENOISING,
    "sig-clipping": SIG_CLIPPING,
}


def run_experiment(
    name: str,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    n: int | None = None,
    seed: int = 0,
    settings: tuple[str, ...] | list[str] | None = None,
    weights: Any = "bundled",
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    restorer: Any = None,
    calibration: Any = None,
    command: str = "",
    overwrite: bool = False,
    progress: Progress = silent,
    plan: Callable[..., Plan] = Plan,
    **options: Any,
) -> Result:
    """Run an experiment; what ``out`` holds of it already is not measured again.

    Args:
        name: one of ``STUDIES``.
        data: the folder of the data; None for the one that ``SAMPDETOX_DATA`` names.
        out: path of the results; they go to OUT.json and OUT.md. None to keep nothing.
        n: test images; None for the experiment's own number.
        seed: draws images, places and noise.
        settings: columns; None for all of the experiment's.
        weights: of the denoiser; whatever ``SampDetox`` takes.
        dtype: of all networks; None for what the experiment takes.
        restorer, calibration: of presets that search; whatever ``SampDetox`` takes.
        command: stored with the results.
        overwrite: measure anew what ``out`` holds.
        progress: called with a row's name, rows done, and rows in all.
        options: the experiment's own, see ``STUDIES[name].options``.

    Returns:
        The Markdown, and the document that the JSON file holds.

    Raises:
        ValueError: an unknown experiment, setting or option; n below 1; a file of another run.
        FileNotFoundError: no data.
        OSError: a file that cannot be written, before any work.
    """
    check_choice("experiment", name, tuple(STUDIES))
    study = STUDIES[name]
    if n is not None and n < 1:
        raise ValueError(f"n must be 1 or more, got {n}. Leave it out for {study.n}.")
    asked = plan(
        data=None if data is None else Path(data),
        out=None if out is None else Path(out).with_suffix("") if Path(out).suffix == ".json" else Path(out),
        n=study.n if n is None else n,
        seed=seed,
        settings=study.settings if settings is None else tuple(settings),
        weights=weights,
        dtype=study.dtype if dtype is None else dtype,
        device=device,
        restorer=restorer,
        calibration=calibration,
        options={**study.options, **options},
        progress=progress,
    )
    return run_study(name, study, asked, command=command, overwrite=overwrite, progress=progress)
