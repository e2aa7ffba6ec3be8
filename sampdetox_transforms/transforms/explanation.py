"""``Explanation``: what was done to an image."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Explanation:
    """What was done to an image or a batch, from ``SampDetox.explain``; leading dimensions are the input's.

    Attributes:
        image, stage1: the result, and the image after the global stage, in the input's own type and range.
        ssim_map: (..., 1, h, w), how much the global stage changed each pixel, before normalisation.
        timestep_map: (..., 1, h, w), the noise level in [0, t2] of each pixel in the local stage.
        sigma_map: (..., 1, h, w), the same as noise std beside an image in [-1, 1]; times 127.5 in grey levels.
        network_calls: (...), how often each image went through the network.
        sigma1, sigma2: noise std of the global stage, and the local stage's at level t2, in the same unit.
        mask: (..., 1, h, w), the pixels that were taken for a trigger's and filled; None for a preset without search.
        suspicion: (...), how clearly an image shows a local trigger (a logit).
        false_alarm_rate: (...), the share of clean images that look at least as suspicious, local and dense triggers
            together; an image is treated where it is below the calibration's rate.
    """

    image: Any
    stage1: Any
    ssim_map: Tensor
    timestep_map: Tensor
    sigma_map: Tensor
    network_calls: Tensor
    sigma1: float
    sigma2: float
    mask: Tensor | None = None
    suspicion: Tensor | None = None
    false_alarm_rate: Tensor | None = None
