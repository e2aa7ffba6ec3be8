"""A smooth first filling of holes, which the restoring network starts from instead of from nothing."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def push_pull(x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
    """The masked pixels from means of the known ones around, the nearest that there are (Gortler et al. 1996, 7).

    Means of known pixels at half the size, a quarter and so on; then from the coarsest to the finest each size takes
    what it lacks from the one below. Images without a known pixel become 0.
    """
    known = (~mask).to(x)
    levels = [(x * known, known)]
    while max(levels[-1][0].shape[-2:]) > 1:
        values, weights = levels[-1]
        total = halved(weights)
        mean = halved(values * weights) / total.clamp(min=1e-6)
        levels.append((mean, (4 * total).clamp(max=1)))
    filled = levels[-1][0]
    for values, weights in reversed(levels[:-1]):
        coarse = functional.interpolate(filled, size=list(values.shape[-2:]), mode="bilinear", align_corners=False)
        filled = torch.lerp(coarse, values, weights)
    return filled


def halved(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c y x"]:
    """Means of 2x2 pixels."""
    return functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
