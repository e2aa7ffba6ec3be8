"""The ablation of retouching: each part alone, and behind the default, as an experiment of the evaluation engine."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sampdetox_transforms.lab.evaluation.rows import NO_DEFENSE, Column, Images, Model
from sampdetox_transforms.lab.evaluation.tools import Tools
from sampdetox_transforms.method.retouch import resampled, sharpened, without_colour_cast
from sampdetox_transforms.method.waves import without_waves
from sampdetox_transforms.transforms.presets import PRESETS

Part = Callable[[Images], Images]  # on images in [-1, 1]


def resampled_and_sharpened(x: Images, *, factor: float, amount: float) -> Images:
    """Shrunk and back, then an unsharp mask."""
    return sharpened(resampled(x, factor), amount)


PARTS: Mapping[str, tuple[Callable[..., Images], Mapping[str, Any]]] = {
    "colour .5": (without_colour_cast, {"sigma": 8.0, "amount": 0.5}),
    "colour 1": (without_colour_cast, {"sigma": 8.0, "amount": 1.0}),
    "colour 1, sigma 4": (without_colour_cast, {"sigma": 4.0, "amount": 1.0}),
    "sharpened 1": (sharpened, {"amount": 1.0}),
    "resampled .8, sharpened 1": (resampled_and_sharpened, {"factor": 0.8, "amount": 1.0}),
    "resampled .6, sharpened 3": (resampled_and_sharpened, {"factor": 0.6, "amount": 3.0}),
    "waves": (lambda x: without_waves(x)[0], {}),
}


def retouching(tools: Tools) -> list[Column]:
    """No defense, the default, and each part without and behind it."""
    default = tools.sampdetox("restore", PRESETS["restore"])
    columns = [NO_DEFENSE, default]
    for name, (function, settings) in PARTS.items():
        part = partial(function, **settings)
        alone = {"part": function.__name__, **settings}
        columns.append(Column(name=name, build=partial(behind, NO_DEFENSE, part), settings=alone))
        both = {**default.settings, **alone}
        columns.append(Column(name=f"restore, {name}", build=partial(behind, default, part), settings=both))
    return columns


def behind(column: Column, part: Part, model: Model) -> Callable[[Images], Images]:
    """What a defense returns, with a part applied to it: images in [0, 1] in and out."""
    defense = column.build(model)
    return lambda images: ((part(defense(images) * 2 - 1) + 1) / 2).clamp(0, 1)
