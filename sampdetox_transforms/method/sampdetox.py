"""SampDetox, Algorithm 1 of the paper: a global stage, a map of what it changed, a local stage.

Pure functions on (b, c, h, w) tensors in [-1, 1]. Yang et al., "SampDetox: Black-box Backdoor Defense via
Perturbation-based Sample Detoxification", NeurIPS 2024, sections 4.3 to 4.5.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sampdetox_transforms.method.maps import dissimilarity_map, minmax
from sampdetox_transforms.method.noise import fresh_noise, subset
from sampdetox_transforms.method.result import Purified
from sampdetox_transforms.method.samplers import Denoiser, Noise, Step, ddim_step, denoise, grid
from sampdetox_transforms.method.schedule import Schedule

Map = Callable[[Tensor, Tensor], Float[Tensor, "b 1 h w"]]


def purify(
    x0: Float[Tensor, "b c h w"],
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    t1: float = 20,
    t2: float = 120,
    stride: float = 20,
    step: Step = ddim_step,
    dissimilarity: Map = dissimilarity_map,
    to_unit: Callable[[Tensor], Tensor] = minmax,
    noise: Noise = fresh_noise,
) -> Purified:
    """Algorithm 1. Images in [-1, 1] in, images in [-1, 1] out; differentiable when gradients are on.

    Args:
        x0: suspected images in [-1, 1].
        denoiser: predicts the noise in (x_t, t), t = level - 1 of ``schedule``, shape (b,).
        schedule: the noise schedule that the levels refer to.
        t1: level of the global stage.
        t2: highest level of the local stage.
        stride: levels between two network calls; 1 is the paper's DDPM, 20 its DDIM (appendix A.3).
        step: ``ddim_step`` or ``ddpm_step``, options bound with ``functools.partial``.
        dissimilarity: map of how much the restored image differs from the image, 0 where it does not.
        to_unit: takes that map to [0, 1].
        noise: draws standard normal noise shaped like its argument.
    """
    stage1 = global_stage(x0, denoiser, schedule, grid(t1, stride), step, noise)  # lines 1-6
    difference_map = dissimilarity(x0, stage1)  # line 7
    timestep_map = t2 * to_unit(difference_map)  # lines 8-9
    levels = grid(t2, stride)
    image = local_stage(stage1, timestep_map, denoiser, schedule, levels, step, noise)  # lines 10-21
    calls = len(grid(t1, stride)) - 1 + steps(timestep_map, levels).sum(dim=1)
    sigma1, sigma2 = float(schedule.sigma(t1)), float(schedule.sigma(t2))
    return Purified(image, stage1, timestep_map, calls, sigma1, sigma2, difference_map=difference_map)


def global_stage(
    x0: Float[Tensor, "b c h w"],
    denoiser: Denoiser,
    schedule: Schedule,
    levels: list[float],
    step: Step,
    noise: Noise,
) -> Float[Tensor, "b c h w"]:
    """Stage 1, lines 1 to 6: noise the whole image to the first level of the grid and denoise it to 0."""
    if levels[0] == 0:
        return x0
    x_t = schedule.add_noise(x0, levels[0], noise(x0))
    return denoise(x_t, denoiser, schedule, levels, step, noise).clamp(-1, 1)


def local_stage(
    stage1: Float[Tensor, "b c h w"],
    timestep_map: Float[Tensor, "b 1 h w"],
    denoiser: Denoiser,
    schedule: Schedule,
    levels: list[float],
    step: Step,
    noise: Noise,
) -> Float[Tensor, "b c h w"]:
    """Stage 2, lines 10 to 21: noise each pixel to its own level and denoise only it.

    An image joins the running batch at its own highest level; one whose map is 0 everywhere costs nothing. How many
    join at each step is the one host read of the method.
    """
    taken = steps(timestep_map, levels)
    running = taken.sum(dim=0).tolist()
    if not running or running[-1] == 0:
        return stage1
    if running[0] == len(stage1):  # all take all steps
        index, x, level = None, stage1, timestep_map
    else:
        index = taken.sum(dim=1).argsort(descending=True, stable=True)[: running[-1]]
        x, level, noise = stage1[index], timestep_map[index], subset(noise, index)
    x_t = schedule.add_noise(x, level, noise(x))
    x = denoise(x_t, denoiser, schedule, levels, step, noise, timestep_map=level, running=running)
    x = torch.where(level > 0, x.clamp(-1, 1), x)
    return x if index is None else stage1.index_put((index,), x)


def steps(timestep_map: Float[Tensor, "b 1 h w"], levels: list[float]) -> Bool[Tensor, "b n"]:
    """Which steps of the grid an image takes part in: those that end below its highest level."""
    ends = torch.tensor(levels[1:], dtype=torch.float64, device=timestep_map.device)
    return timestep_map.detach().amax(dim=(1, 2, 3))[:, None] > ends


def on_schedule(denoiser: Denoiser, trained_on: Schedule, schedule: Schedule) -> Denoiser:
    """Run a network on levels of another schedule than the one it was trained on.

    The network gets the fractional timestep with the same alphas_cumprod; levels below its own level 1 use level 1.
    """
    return partial(_matched, denoiser, None if trained_on == schedule else trained_on, schedule)


def _matched(denoiser: Denoiser, trained_on: Schedule | None, schedule: Schedule, x_t: Tensor, t: Tensor) -> Tensor:
    if trained_on is not None:
        t = (schedule.convert(t.double() + 1, to=trained_on) - 1).float()
    return denoiser(x_t, t.clamp(min=0))
