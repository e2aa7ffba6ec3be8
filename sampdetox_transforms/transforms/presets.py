"""Named settings of the method: the paper's, the authors' code, and this package's own."""

from dataclasses import fields, replace
from typing import Any

from sampdetox_transforms._common import check_choice, suggest
from sampdetox_transforms.method.algorithm1 import Algorithm1
from sampdetox_transforms.method.authors_code import AuthorsCode
from sampdetox_transforms.method.restore import Restore

Preset = Algorithm1 | Restore | AuthorsCode

PAPER = Algorithm1(schedule="cosine", sampler="ddpm", stride=1, data_range=1.0)

PRESETS: dict[str, Preset] = {
    "restore": Restore(),
    "ddim": Algorithm1(),
    "paper": PAPER,
    "paper-linear": replace(PAPER, schedule="linear"),
    "authors-code": AuthorsCode(),
}

DEFAULT = "restore"


def get_preset(preset: str | Preset, **changes: Any) -> Preset:
    """Look a preset up by its name, and change the settings that are given (those that are not None).

    Raises:
        ValueError: an unknown name, for which the nearest ones are suggested; a setting that this preset does not
            have, or a value out of range.
    """
    if isinstance(preset, str):
        check_choice("preset", preset, tuple(PRESETS))
        name, settings = preset, PRESETS[preset]
    elif isinstance(preset, Preset):
        name, settings = type(preset).__name__, preset
    else:
        raise TypeError(f"preset must be a name or settings such as Restore(), got {preset!r}. {suggest('', PRESETS)}")
    changes = {key: value for key, value in changes.items() if value is not None}
    known = [field.name for field in fields(settings)]
    for key, value in changes.items():
        if key not in known:
            raise ValueError(
                f"the settings of {name!r} are {', '.join(known)}, got {key}={value!r}. Leave it out, or start from "
                "another preset: 'ddim' and 'paper' have a map."
            )
    if "t1" in changes and "t1_large" in known:
        for other in ("t1_large", "t1_doubt"):
            changes.setdefault(other, None)  # a level that is asked for is meant for all images
    return replace(settings, **changes)
