"""Experiments on images and victims of their own: ``lab.evaluation.run`` from the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampdetox_transforms.cli.evaluate.request import Request
from sampdetox_transforms.cli.shared import keyed_progress, read_dtype

if TYPE_CHECKING:
    from sampdetox_transforms.lab.evaluation.study import Study


def measure_study(asked: Request, bar: Any) -> tuple[str, Mapping[str, Any]]:
    """Run the experiment; the tables as text, and the document that the JSON file holds."""
    from sampdetox_transforms._common import check_choice
    from sampdetox_transforms.lab.evaluation.run import STUDIES, run_experiment

    study, name = STUDIES[asked.experiment], asked.experiment
    for key in asked.options:
        check_choice("--set", key, tuple(study.options))
    refused = {"--full-range": asked.full_range, "--n-slow": asked.n_slow, "--batch-size": asked.batch_size}
    refused |= {"--backdoorbench": asked.backdoorbench or None, "--denoisers": ", ".join(asked.denoisers) or None}
    for flag, value in refused.items():
        if value is not None:
            raise ValueError(
                f"experiment {name!r} has no {flag}, got {value}. Leave it out; its own options are --set."
            )
    if asked.fit is not None and "fit" not in study.options:
        raise ValueError(
            f"experiment {name!r} has no --fit, got {asked.fit}. Leave it out, or take experiment 'dense'."
        )
    fit = {} if asked.fit is None else {"fit": asked.fit}
    dtype = {} if asked.dtype is None else {"dtype": read_dtype(asked.dtype)}
    found = run_experiment(
        name,
        data=asked.data,
        out=asked.out,
        n=asked.n,
        seed=asked.seed,
        settings=list(asked.defenses) or None,
        weights=asked.weights,
        device=asked.device,
        command=asked.command(),
        progress=keyed_progress(bar),
        **dtype,
        **fit,
        **asked.doors,
        **{key: as_in(study, key, value) for key, value in asked.options.items()},
        **victims_of(asked, study),
    )
    return found.text.rstrip("\n"), found.document


def victims_of(asked: Request, study: "Study") -> dict[str, Any]:
    """The option that VICTIM is for, one folder or several; ValueError where the experiment has neither."""
    if not asked.victims:
        return {}
    if "victims" in study.options:
        return {"victims": tuple(asked.victims)}
    if "victim" not in study.options or len(asked.victims) > 1:
        allowed = "one VICTIM at most" if "victim" in study.options else "no VICTIM"
        raise ValueError(
            f"experiment {asked.experiment!r} takes {allowed}, got {len(asked.victims)}. Its options are "
            f"{', '.join(study.options) or 'none'}."
        )
    return {"victim": asked.victims[0]}


def as_in(study: "Study", name: str, value: Any) -> Any:
    """A value of --set as the option's default is: several with commas between, a path, yes or no, or as written.

    Raises:
        ValueError: what is neither true nor false, for an option that is.
    """
    default = study.options.get(name)
    if isinstance(default, bool) and not isinstance(value, bool):
        if str(value).lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, got {value!r}. Leave it out for {str(default).lower()}.")
        return str(value).lower() == "true"
    if isinstance(default, tuple):
        return tuple(str(value).split(","))
    return Path(str(value)) if isinstance(default, Path) else value
