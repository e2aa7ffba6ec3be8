"""Reverse diffusion: one step of DDPM or DDIM, and the loop that walks a grid of levels down to 0.

A step is a function ``(x_t, eps, schedule, level, next_level, noise) -> x``. ``level`` is a number, or a
(b, 1, h, w) map of the levels at which the pixels stand; ``next_level`` is a number. Coefficients are computed in
float64 from log(alphas_cumprod), so that a pixel a hair above ``next_level`` moves by a hair.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Real
from torch import Tensor

from sampdetox_transforms.method.schedule import Schedule, scaled

Level = float | Tensor

Noise = Callable[[Tensor], Tensor]  # an image batch -> standard normal noise shaped like it

Denoiser = Callable[[Float[Tensor, "b c h w"], Real[Tensor, " b"]], Float[Tensor, "b c h w"]]

Step = Callable[[Tensor, Tensor, Schedule, Level, float, Noise], Tensor]


def ddpm_step(
    x_t: Float[Tensor, "b c h w"],
    eps: Float[Tensor, "b c h w"],
    schedule: Schedule,
    level: Level,
    next_level: float,
    noise: Noise,
    *,
    variance_type: str = "fixed_small",
) -> Float[Tensor, "b c h w"]:
    """Equation 5; over several levels at once, alpha_t becomes the product of their alphas.

    ``variance_type`` is "fixed_small", the posterior variance of equation 5, or "fixed_large", beta_t (Ho et al.
    2020, section 3.2). No noise is added on the step to level 0 (Algorithm 1, line 3).
    """
    log_signal, next_log = schedule.log_signal(level), schedule.log_signal(next_level)
    log_alpha = log_signal - next_log
    beta, noise_share = -torch.expm1(log_alpha), -torch.expm1(log_signal)
    mean = scaled((-log_alpha / 2).exp(), x_t - scaled(beta / noise_share.sqrt(), eps))
    if next_level == 0:
        return mean
    variance = beta * -torch.expm1(next_log) / noise_share if variance_type == "fixed_small" else beta
    return mean + scaled(variance.sqrt(), noise(x_t))


def ddim_step(
    x_t: Float[Tensor, "b c h w"],
    eps: Float[Tensor, "b c h w"],
    schedule: Schedule,
    level: Level,
    next_level: float,
    noise: Noise,
    *,
    eta: float = 0.0,
) -> Float[Tensor, "b c h w"]:
    """Song et al. 2021 (DDIM), equations 12 and 16: deterministic at eta 0; at eta 1 the DDPM posterior."""
    log_signal, next_log = schedule.log_signal(level), schedule.log_signal(next_level)
    noise_share, next_share = -torch.expm1(log_signal), -torch.expm1(next_log)
    x0_hat = scaled((-log_signal / 2).exp(), x_t - scaled(noise_share.sqrt(), eps))  # equation 4 of the paper
    if next_level == 0:
        return x0_hat
    log_alpha = log_signal - next_log
    variance = eta**2 * next_share / noise_share * -torch.expm1(log_alpha)
    # next_share - variance, written so that rounding cannot take it below 0
    kept = next_share * (1 - eta**2 + eta**2 * next_share / noise_share * log_alpha.exp())
    x = scaled((next_log / 2).exp(), x0_hat) + scaled(kept.sqrt(), eps)
    return x if eta == 0 else x + scaled(variance.sqrt(), noise(x_t))


def grid(start: float, stride: float) -> list[float]:
    """Levels from ``start`` down to 0 in steps of ``stride``; the last step may be short."""
    if start <= 0:
        return [0]
    steps = math.ceil(start / stride - 1e-9)  # the rest that rounding leaves over is no step
    return [*(start - i * stride for i in range(steps)), 0]


def denoise(
    x_t: Float[Tensor, "b c h w"],
    denoiser: Denoiser,
    schedule: Schedule,
    levels: list[float],
    step: Step,
    noise: Noise,
    timestep_map: Float[Tensor, "b 1 h w"] | None = None,
    running: list[int] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Walk ``x_t`` down the grid ``levels``, with one network call a step.

    With a ``timestep_map`` a pixel at level m moves at the step from k to k' when m > k', starting from min(m, k):
    all pixels with m > 0 end at level 0, and those with m = 0 stay as they are (Algorithm 1, lines 12 to 21).
    ``running`` says how many of the images, the first ones, take part in each step; the others have nothing to move.
    """
    for i, (level, next_level) in enumerate(pairwise(levels)):
        n = len(x_t) if running is None else running[i]
        x, rest = x_t[:n], x_t[n:]

        def draw(like: Tensor, every: Tensor = x_t) -> Tensor:
            return noise(every)[: len(like)]  # for all images, so that each draws as often as when it runs alone

        eps = denoiser(x, torch.full((n,), level - 1, device=x.device)) if n else x
        if timestep_map is None:
            x = step(x, eps, schedule, level, next_level, draw)
        else:
            moves = timestep_map[:n] > next_level
            start = torch.where(moves, timestep_map[:n].clamp(max=level), level)
            x = torch.where(moves, step(x, eps, schedule, start, next_level, draw), x)
        x_t = torch.cat([x, rest]) if len(rest) else x
    return x_t
