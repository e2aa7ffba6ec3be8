"""The settings of Algorithm 1, and how it runs with them."""

from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.method.checks import check_levels, check_positive, check_walk, step_of
from sampdetox_transforms.method.maps import WINDOWS, absolute, dissimilarity_map, minmax, squared_error_map
from sampdetox_transforms.method.noise import fresh_noise
from sampdetox_transforms.method.result import Purified
from sampdetox_transforms.method.sampdetox import purify
from sampdetox_transforms.method.samplers import Denoiser, Noise
from sampdetox_transforms.method.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Algorithm1:
    """Algorithm 1 of the paper; ``dataclasses.replace`` makes variants.

    Attributes:
        schedule: what the levels mean: "linear", "scaled_linear", "cosine", or None for the network's own schedule.
        t1, t2: level of the global stage, and highest level of the local stage.
        sampler, stride, eta: "ddim" or "ddpm"; levels between two calls; DDIM's stochasticity in [0, 1].
        variance_type: DDPM's: "fixed_small" (posterior) or "fixed_large" (beta).
        map, window, data_range: "ssim" with its window and range, or "squared_error" (which has neither).
        direction: "dissimilarity" noises what changed most; "similarity" is Algorithm 1 read literally.
        rescale, scale: how the map comes to [0, 1]: "minmax" for each image, or "absolute", where the map value
            ``scale`` gets the level t2.

    Raises:
        TypeError, ValueError: a setting of another kind, or out of range.
    """

    schedule: str | None = None
    t1: float = 20
    t2: float = 120
    sampler: str = "ddim"
    stride: float = 20
    eta: float = 0.0
    variance_type: str = "fixed_small"
    map: str = "ssim"
    window: str = "uniform"
    data_range: float = 255.0
    direction: str = "dissimilarity"
    rescale: str = "minmax"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_walk(self)
        check_levels(self, "t1", "t2")
        check_positive(self, "data_range", "scale")
        check_choice("map", self.map, ("ssim", "squared_error"))
        check_choice("window", self.window, WINDOWS)
        check_choice("direction", self.direction, ("dissimilarity", "similarity"))
        check_choice("rescale", self.rescale, ("minmax", "absolute"))

    @property
    def highest_level(self) -> float:
        """The highest level at which the network is asked."""
        return max(self.t1, self.t2)

    def run(
        self, x0: Float[Tensor, "b c h w"], denoiser: Denoiser, schedule: Schedule, *, noise: Noise = fresh_noise
    ) -> Purified:
        """``purify`` with these settings: images in [-1, 1] in and out."""
        return purify(
            x0,
            denoiser,
            schedule,
            t1=self.t1,
            t2=self.t2,
            stride=self.stride,
            step=step_of(self),
            dissimilarity=self.difference,
            to_unit=minmax if self.rescale == "minmax" else partial(absolute, high=self.scale),
            noise=noise,
        )

    def difference(self, x0: Float[Tensor, "b c h w"], stage1: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """The map of these settings, see ``maps.py``."""
        if self.map == "squared_error":
            difference = squared_error_map(x0, stage1)
            return difference if self.direction == "dissimilarity" else self.scale - difference
        difference = dissimilarity_map(x0, stage1, window=self.window, data_range=self.data_range)
        return difference if self.direction == "dissimilarity" else 1 - difference
