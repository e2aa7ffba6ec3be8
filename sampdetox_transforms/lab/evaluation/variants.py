"""Preset ``restore`` with one part taken out: the columns of its ablation.

"no search": stage 1 alone. "no dense answer": nothing is taken for a dense trigger, and masks of any size are filled.
"noise instead of fill": located pixels go through the paper's local stage from t2.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sampdetox_transforms.lab.handed import Changed
from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.method.checks import step_of
from sampdetox_transforms.method.noise import SeededNoise, fresh_noise
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.result import Purified
from sampdetox_transforms.method.sampdetox import local_stage
from sampdetox_transforms.method.samplers import Denoiser, Noise, grid
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.method.search import SearchNetworks


@dataclass(frozen=True, kw_only=True)
class Variant(Restore):
    """``Restore`` whose networks and thresholds are changed where they are handed over.

    Attributes:
        margins: other margins of the masks; None for the networks' own.
        hysteresis: False locates only pixels that are certain.
        fills: False noises what was located, and denoises it.
        never: kinds of triggers, "local" and "dense", that are not suspected.
    """

    margins: tuple[int, ...] | None = None
    hysteresis: bool = True
    fills: bool = True
    never: tuple[str, ...] = ()

    def run(
        self,
        x0: Tensor,
        denoiser: Denoiser,
        schedule: Schedule,
        *,
        networks: SearchNetworks,
        calibrations: Calibrations,
        noise: Noise = fresh_noise,
    ) -> Purified:
        changes: dict[str, Any] = {} if self.margins is None else {"margins": self.margins}
        if not self.hysteresis:
            changes["possible"] = networks.certain
        levels = grid(self.t2, self.stride)
        if not self.fills:
            changes["fill"] = lambda x, mask: local_stage(
                x, self.t2 * mask.double(), denoiser, schedule, levels, step_of(self), SeededNoise(x, 0)
            )
        own: Any = Changed(networks, **changes)
        calibrations = calibrations.having(networks.name, never(calibrations.of(networks), *self.never))
        done = super().run(x0, denoiser, schedule, networks=own, calibrations=calibrations, noise=noise)
        return done if self.fills else self.counted(done, networks.calls, len(levels) - 1)

    def counted(self, done: Purified, search: int, calls: int) -> Purified:
        """With the calls of a local stage for each fill, which ``Restore`` takes for one; of small images."""
        level = done.timestep_map.amax(dim=(1, 2, 3))
        before = len(grid(self.t1, self.stride)) - 1 + search
        looked = done.network_calls - before - (level / self.stride).ceil().long()
        fills = (looked + search) // (1 + search)  # to fill, to look again, to fill, ...
        return replace(done, network_calls=done.network_calls + fills * (calls - 1))


def never(calibration: Calibration, *kinds: str) -> Calibration:
    """The same where no image is suspected enough of these kinds of triggers; the lower values stay."""

    def out_of_reach(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(v + 1e9 * (i > 0.95 * (len(values) - 1)) for i, v in enumerate(values))

    return replace(calibration, **{kind: out_of_reach(getattr(calibration, kind)) for kind in kinds})


VARIANTS: dict[str, Variant] = {
    "restore, no search": Variant(never=("local", "dense")),
    "restore, no dense answer": Variant(largest=1.0, never=("dense",)),
    "restore, one look": Variant(looks=1),
    "restore, margin of 1 pixel": Variant(margins=(1, 1)),
    "restore, no hysteresis": Variant(hysteresis=False),
    "restore, noise instead of fill": Variant(fills=False),
    "restore, no estimate": Variant(gain=0.0),
}
