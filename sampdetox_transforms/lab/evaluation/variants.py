"""The default with one part taken out: the columns of its ablation.

"no search": stage 1 alone. "no dense answer": nothing is taken for a dense trigger, and masks of any size are filled.
"noise instead of fill": located pixels go through the paper's local stage from t2.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.method.checks import step_of
from sampdetox_transforms.method.noise import SeededNoise, fresh_noise
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.result import Purified
from sampdetox_transforms.method.sampdetox import local_stage
from sampdetox_transforms.method.samplers import Denoiser, Noise, grid
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.method.search import SearchNetworks


class Changed:
    """Search networks with some attributes or methods of their own."""

    def __init__(self, networks: SearchNetworks, **changes: Any):
        self._networks, self._changes = networks, changes

    def __getattr__(self, name: str) -> Any:
        if name in ("_networks", "_changes"):  # not set yet, as in a copy that is being made
            raise AttributeError(name)
        return self._changes[name] if name in self._changes else getattr(self._networks, name)


@dataclass(frozen=True, kw_only=True)
class Variant(Restore):
    """``Restore`` with networks that are read or asked otherwise.

    Attributes:
        read: attributes of the networks in place of their own; "certain" for ``possible`` means their own ``certain``.
        noised: noise located pixels to t2 and denoise them, instead of filling them.
    """

    read: dict[str, Any] = field(default_factory=dict)
    noised: bool = False

    def run(
        self,
        x0: Float[Tensor, "b c h w"],
        denoiser: Denoiser,
        schedule: Schedule,
        *,
        networks: SearchNetworks,
        calibrations: Calibrations,
        noise: Noise = fresh_noise,
        matched: Bool[Tensor, " b"] | None = None,
    ) -> Purified:
        """As ``Restore.run``."""
        changes = {k: networks.certain if v == "certain" else v for k, v in self.read.items()}
        levels = grid(self.t2, self.stride)

        def fill(x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
            map_ = self.t2 * mask.double()
            return local_stage(x, map_, denoiser, schedule, levels, step_of(self), SeededNoise(x, 0))

        changes |= {"fill": fill} if self.noised else {}
        other: Any = Changed(networks, **changes)
        search: dict[str, Any] = {"networks": other, "calibrations": calibrations, "matched": matched}
        done = super().run(x0, denoiser, schedule, noise=noise, **search)
        if not self.noised:
            return done
        assert done.found is not None
        # calls besides the first search and the diffusions: to fill, to look again, to fill, ...
        level = done.timestep_map.amax(dim=(1, 2, 3))
        looked = done.network_calls - (len(grid(self.t1, self.stride)) - 1 + networks.calls)
        looked = looked - (level / self.stride).ceil().long()
        filled = (looked + networks.calls) // (1 + networks.calls)
        filled = filled * done.found.mask.flatten(1).any(dim=1)  # without a mask, it was looked at again for lines
        return replace(done, network_calls=done.network_calls + filled * (len(levels) - 2))


def never(calibrations: Calibrations, *kinds: str) -> Calibrations:
    """The same where no image is suspected enough of these kinds of triggers; the lower values stay."""

    def out_of_reach(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(v + 1e15 * (i > 0.95 * (len(values) - 1)) for i, v in enumerate(values))

    def silent(calibration: Calibration | None) -> Calibration | None:
        return calibration and replace(
            calibration, **{kind: out_of_reach(getattr(calibration, kind)) for kind in kinds}
        )

    return Calibrations(**{name: silent(part) for name, part in vars(calibrations).items()})


VARIANTS: dict[str, Variant] = {
    "restore, no search": Variant(),
    "restore, no dense answer": Variant(largest=1.0),
    "restore, one look": Variant(looks=1),
    "restore, margin of 1 pixel": Variant(read={"margins": (1, 1)}),
    "restore, no hysteresis": Variant(read={"possible": "certain"}),
    "restore, noise instead of fill": Variant(noised=True),
    "restore, no estimate": Variant(gain=0),
}

NEVER = {"restore, no search": ("local", "dense"), "restore, no dense answer": ("dense",)}
