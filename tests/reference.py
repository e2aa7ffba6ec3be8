"""Naive reference implementations for the tests: loops over pixels and plain numbers, with nothing from the package.

Arrays are numpy float64, images (b, c, h, w) in [-1, 1]. ``denoiser`` is the package's kind of callable, on tensors.
"""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from skimage.metrics import structural_similarity


def linear_betas() -> np.ndarray:
    """Ho et al. 2020, section 4: a thousand steps from 1e-4 to .02."""
    return np.array([1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)])


def cosine_betas() -> np.ndarray:
    """Nichol and Dhariwal 2021, equation 17, with s = .008 and betas of at most .999."""

    def f(step: int) -> float:
        return math.cos((step / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - f(i + 1) / f(i), 0.999) for i in range(1000)])


def log_table(betas: Sequence[float]) -> np.ndarray:
    """log(alphas_cumprod) of the levels 0, 1, ..., T; 0 at level 0."""
    return np.array([0.0, *np.log(np.cumprod(1 - np.asarray(betas)))])


def log_signal(table: np.ndarray, level: float) -> float:
    """log(alphas_cumprod) at a real-valued level: a straight line between two whole levels."""
    below = min(math.floor(level), len(table) - 2)
    share = level - below
    return float((1 - share) * table[below] + share * table[below + 1])


def ddpm_pixel(x, eps, z, log_now, log_next, *, variance_type="fixed_small"):
    """One pixel's DDPM step: the posterior q(x_next | x, x0) of Ho et al. 2020, equation 7, at the predicted x0."""
    ab, ab_next = math.exp(log_now), math.exp(log_next)
    noise_share, next_share = -math.expm1(log_now), -math.expm1(log_next)
    alpha, beta = ab / ab_next, -math.expm1(log_now - log_next)
    x0 = (x - math.sqrt(noise_share) * eps) / math.sqrt(ab)
    mean = (math.sqrt(ab_next) * beta * x0 + math.sqrt(alpha) * next_share * x) / noise_share
    if log_next == 0:
        return mean
    variance = {"fixed_small": next_share / noise_share * beta, "fixed_large": beta}[variance_type]
    return mean + math.sqrt(variance) * z


def ddim_pixel(x, eps, z, log_now, log_next, *, eta=0.0):
    """One pixel's DDIM step: Song et al. 2021, equations 12 and 16."""
    noise_share, next_share = -math.expm1(log_now), -math.expm1(log_next)
    x0 = (x - math.sqrt(noise_share) * eps) / math.exp(log_now / 2)
    sigma = eta * math.sqrt(next_share / noise_share) * math.sqrt(-math.expm1(log_now - log_next))
    return math.exp(log_next / 2) * x0 + math.sqrt(next_share - sigma**2) * eps + sigma * z


def grid(start: float, stride: float) -> list[float]:
    """From ``start`` down to 0, ``stride`` at a time; the last step is as long as what is left."""
    levels = [start]
    while levels[-1] > 0:
        levels.append(max(levels[-1] - stride, 0))
    return levels


def predict(denoiser: Callable, x: np.ndarray, t: float) -> np.ndarray:
    """Ask a denoiser on tensors."""
    return denoiser(torch.tensor(x), torch.full((len(x),), t, dtype=torch.float64)).numpy()


def stage(
    x: np.ndarray,
    level_map: np.ndarray,
    denoiser: Callable,
    table: np.ndarray,
    *,
    start: float,
    stride: float,
    step: Callable,
    draw: Callable[[], np.ndarray],
    draws_at_steps: bool,
) -> np.ndarray:
    """Noise each pixel to its level in ``level_map``, (b, h, w); walk down from ``start``; clip the noised pixels.

    At the step from k to k', a pixel of level m moves when m > k', and starts from min(m, k). Level 0: untouched.
    """
    b, c, h, w = x.shape
    pixels = list(np.ndindex(b, h, w))
    x = x.copy()
    z = draw()
    for n, i, j in pixels:
        signal = log_signal(table, level_map[n, i, j])
        x[n, :, i, j] = math.exp(signal / 2) * x[n, :, i, j] + math.sqrt(-math.expm1(signal)) * z[n, :, i, j]
    levels = grid(start, stride)
    for k, k_next in pairwise(levels):
        eps = predict(denoiser, x, k - 1)
        z = draw() if draws_at_steps and k_next > 0 else np.zeros_like(x)
        for n, i, j in pixels:
            m = level_map[n, i, j]
            if m > k_next:
                now, after = log_signal(table, min(m, k)), log_signal(table, k_next)
                for channel in range(c):
                    at = n, channel, i, j
                    x[at] = step(x[at], eps[at], z[at], now, after)
    for n, i, j in pixels:
        if level_map[n, i, j] > 0:
            x[n, :, i, j] = np.clip(x[n, :, i, j], -1, 1)
    return x


def purify(
    x0: np.ndarray,
    denoiser: Callable,
    table: np.ndarray,
    *,
    t1: float,
    t2: float,
    stride: float,
    step: Callable,
    make_map: Callable[[np.ndarray, np.ndarray], np.ndarray],
    draw: Callable[[], np.ndarray],
    draws_at_steps: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Algorithm 1: the result, the image after stage 1, and the levels of stage 2, t2 * make_map(x0, stage 1)."""
    options = {"stride": stride, "step": step, "draw": draw, "draws_at_steps": draws_at_steps}
    everywhere = np.full((len(x0), *x0.shape[2:]), t1)
    stage1 = stage(x0, everywhere, denoiser, table, start=t1, **options)
    level_map = t2 * make_map(x0, stage1)
    return stage(stage1, level_map, denoiser, table, start=t2, **options), stage1, level_map


def minmax(x: np.ndarray) -> np.ndarray:
    """Stretch one image's map to [0, 1]."""
    return (x - x.min()) / (x.max() - x.min())


def similarity(x: np.ndarray, y: np.ndarray, *, weights: Sequence[float] | None = None, **options) -> np.ndarray:
    """scikit-image's full SSIM map, (h, w), of two images (c, h, w) in [-1, 1], compared on [0, 1]."""
    full = structural_similarity((x + 1) / 2, (y + 1) / 2, full=True, channel_axis=0, **options)[1]
    return full.mean(axis=0) if weights is None else np.tensordot(weights, full, axes=1)


def authors_code(
    x0: np.ndarray, denoiser: Callable, betas: np.ndarray, *, t1: int, t2: int, draw: Callable[[], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The released program by its array indices: the result, the image after stage 1, and the mask.

    Index i of the arrays is the i+1st noising step. Images are noised at index t and restored from index t - 1 on.
    """
    b, _, h, w = x0.shape
    pixels = list(np.ndindex(b, h, w))
    alphas = 1 - betas
    products = np.cumprod(alphas)
    shared = draw()[0]  # one tensor for all images and both stages

    def noised(x, index, z):
        return math.sqrt(products[index]) * x + math.sqrt(1 - products[index]) * z

    def one_step(x, eps, z, index):
        mean = (x - (1 - alphas[index]) / math.sqrt(1 - products[index]) * eps) / math.sqrt(alphas[index])
        return mean + math.sqrt(betas[index]) * z if index > 0 else mean

    x = noised(x0, t1, shared)
    for index in reversed(range(t1)):
        eps = predict(denoiser, x, index)
        x = one_step(x, eps, draw() if index > 0 else None, index)
    stage1 = np.clip(x, -1, 1)

    mask = np.zeros((b, h, w))
    for n in range(b):
        options = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": True}
        grey = similarity(x0[n], stage1[n], weights=(0.11, 0.59, 0.30), **options)
        mask[n] = np.floor((1 - minmax(grey)) * t2)

    x = stage1.copy()
    for n, i, j in pixels:
        x[n, :, i, j] = noised(stage1[n, :, i, j], int(mask[n, i, j]), shared[:, i, j])
    for index in reversed(range(t2)):
        eps = predict(denoiser, x, index)
        z = draw() if index > 0 else np.zeros_like(x)
        for n, i, j in pixels:
            if mask[n, i, j] > index:
                x[n, :, i, j] = one_step(x[n, :, i, j], eps[n, :, i, j], z[n, :, i, j], index)
    return np.clip(x, -1, 1), stage1, mask


def toy_denoiser(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A stand-in for the network, in any size: cheap, deterministic, and dependent on each image's neighbours and t."""
    neighbours = 0.6 * x_t - 0.3 * x_t.roll(1, 2) + 0.2 * x_t.roll(-1, 3) + 0.1 * x_t.roll(1, 1)
    return torch.tanh(neighbours + t.to(x_t).view(-1, 1, 1, 1) / 50)


class DrawnNoise:
    """Noise drawn beforehand, so that the package and a reference get the same: the i-th call returns the i-th draw."""

    def __init__(self, shape: Sequence[int], *, calls: int, seed: int = 0, dtype: torch.dtype = torch.float64):
        generator = torch.Generator().manual_seed(seed)
        self.draws = torch.randn(calls, *shape, generator=generator, dtype=dtype)
        self.used = 0

    def __call__(self, like: torch.Tensor) -> torch.Tensor:
        self.used += 1
        assert self.draws[self.used - 1].shape == like.shape
        return self.draws[self.used - 1].to(like)

    def subset(self, keep: torch.Tensor) -> "DrawnNoise":
        result = copy.copy(self)
        result.draws = self.draws[:, keep]
        return result

    def arrays(self) -> Callable[[], np.ndarray]:
        """The same draws, as a source for the reference implementations."""
        draws = iter(self.draws.double().numpy())
        return lambda: next(draws)
