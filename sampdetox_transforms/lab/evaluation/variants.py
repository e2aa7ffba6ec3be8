"""Preset ``restore`` with one part taken out: the columns of its ablation.

"no search": stage 1 alone. "no dense answer": nothing is taken for a dense trigger, and masks of any size are filled.
"noise instead of fill": located pixels go through the paper's local stage from t2.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sampdetox_transforms.method.answer import Answer
from sampdetox_transforms.method.calibration import Calibration
from sampdetox_transforms.method.noise import SeededNoise
from sampdetox_transforms.method.restore import SEARCH, purify_and_restore
from sampdetox_transforms.method.sampdetox import Purified, local_stage
from sampdetox_transforms.method.samplers import grid
from sampdetox_transforms.transforms.presets import PRESETS, Preset


def noise_located(x0: Tensor, denoiser, schedule, *, restorer, t2: float, stride: float, step, **rest: Any) -> Purified:
    """``purify_and_restore`` where located pixels are noised to t2 and denoised, not filled."""
    levels = grid(t2, stride)

    def answer(x: Tensor, mask: Tensor | None = None) -> Answer:
        if mask is None:
            return restorer(x)
        image = local_stage(x, t2 * mask.double(), denoiser, schedule, levels, step, SeededNoise(x, 0))
        return Answer(image, mask.to(x), torch.zeros(len(x)))  # of a fill nothing but the image is used

    search: Any = answer
    done = purify_and_restore(x0, denoiser, schedule, restorer=search, t2=t2, stride=stride, step=step, **rest)
    # calls besides the first search and the diffusions before and after: to fill, to look again (SEARCH), to fill, ...
    level = done.timestep_map.amax(dim=(1, 2, 3))
    looked = done.network_calls - (len(grid(rest["t1"], stride)) - 1 + SEARCH) - (level / stride).ceil().long()
    fills = (looked + SEARCH) // (1 + SEARCH)
    return replace(done, network_calls=done.network_calls + fills * (len(levels) - 2))


@dataclass(frozen=True, kw_only=True)
class Variant(Preset):
    """A preset with other arguments of ``purify_and_restore``, or another function in its place."""

    run: Any = purify_and_restore
    changed: dict[str, Any] = field(default_factory=dict)

    def algorithm(self) -> partial:
        return partial(self.run, **{**super().algorithm().keywords, **self.changed})


def never(calibration: Calibration, *kinds: str) -> Calibration:
    """The same where no image is suspected enough of these kinds of triggers; the lower values stay."""

    def out_of_reach(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(v + 1e9 * (i > 0.95 * (len(values) - 1)) for i, v in enumerate(values))

    return replace(calibration, **{kind: out_of_reach(getattr(calibration, kind)) for kind in kinds})


KEYWORDS = purify_and_restore.__kwdefaults__ or {}

RESTORE = Variant(**asdict(PRESETS["restore"]))

VARIANTS: dict[str, Variant] = {
    "restore, no search": RESTORE,
    "restore, no dense answer": replace(RESTORE, changed={"largest": 1.0}),
    "restore, one look": replace(RESTORE, changed={"margins": (0,)}),
    "restore, margin of 1 pixel": replace(RESTORE, changed={"margins": (1, 1)}),
    "restore, no hysteresis": replace(RESTORE, changed={"low": KEYWORDS["seed"]}),
    "restore, noise instead of fill": replace(RESTORE, run=noise_located),
    "restore, no estimate": replace(RESTORE, changed={"estimate": False}),
}

NEVER = {"restore, no search": ("local", "dense"), "restore, no dense answer": ("dense",)}
