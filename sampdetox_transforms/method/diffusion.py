"""The global stage from a level of each image's own, for the default: noise up to it, and the walk down to 0."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sampdetox_transforms.method.checks import step_of
from sampdetox_transforms.method.noise import subset
from sampdetox_transforms.method.sampdetox import global_stage
from sampdetox_transforms.method.samplers import Denoiser, Noise, grid
from sampdetox_transforms.method.schedule import Schedule


class Diffusion(NamedTuple):
    """The walk of the settings, which have a sampler, its stride, and what it draws; with the denoiser for a level."""

    settings: Any
    denoiser_for: Callable[[float], Denoiser]
    schedule: Schedule

    def to_levels(
        self, x: Float[Tensor, "b c h w"], groups: Iterable[tuple[Bool[Tensor, " b"], float]], noise: Noise
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"], Int[Tensor, " b"]]:
        """Images (b, c, h, w) in [-1, 1], the level that each had, and its network calls.

        Args:
            groups: which images, and their level; each image is in one group.
        """
        result = torch.empty_like(x)
        levels, calls = (x.new_zeros(len(x), dtype=dtype) for dtype in (torch.float64, torch.long))
        for these, level in groups:
            index = these.nonzero()[:, 0]
            if len(index):
                walk, all_of_them = grid(level, self.settings.stride), len(index) == len(x)
                step, part = step_of(self.settings), x if all_of_them else x[index]
                part = global_stage(part, self.denoiser_for(level), self.schedule, walk, step, subset(noise, index))
                if all_of_them:  # as photographs are: no copy of them
                    result = part
                else:
                    result[index] = part
                levels[index], calls[index] = level, len(walk) - 1
        return result, levels, calls
