"""The method as the authors' program runs it, one image and one pixel after the other: what speed is compared with."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.lab.speed.clocks import Stopwatch, clock
from sampdetox_transforms.lab.speed.table import BatchSpeed, NaiveSpeed
from sampdetox_transforms.method.maps import minmax, ssim_map
from sampdetox_transforms.method.noise import fresh_noise
from sampdetox_transforms.method.samplers import Noise
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.transforms.transform import SampDetox

AUTHORS_LEVELS, PAPER_LEVELS = (120, 120), (20, 120)  # t1 and t2 of the released code, and of the paper's text


def measure_naive(detox: SampDetox, images: Float[Tensor, "n c h w"], fastest: BatchSpeed, *, every: int) -> NaiveSpeed:
    """Purify images one by one with ``naive_purify``; see ``NaiveSpeed`` for what is extrapolated."""
    denoiser, device = detox.denoiser, images.device
    highest = denoiser.max_level - 1  # it noises one level higher than it denoises
    (t1, t2), (paper_t1, paper_t2) = (tuple(min(t, highest) for t in ts) for ts in (AUTHORS_LEVELS, PAPER_LEVELS))
    x0 = images.float()[:, : denoiser.channels].expand(-1, denoiser.channels, -1, -1) * 2 - 1
    watch = Stopwatch(device)
    walks = watch.timed("stage 1", naive_walk), watch.timed("stage 2", naive_walk)
    started = clock(device)
    with torch.no_grad():
        for image in x0:
            naive_purify(image[None], denoiser, denoiser.schedule, t1=t1, t2=t2, every=every, walks=walks)
    total = clock(device) - started
    walked = math.ceil(t1 / every), math.ceil(t2 / every)
    level1, level2 = (watch.seconds[f"stage {i + 1}"] / walked[i] for i in range(2))  # of all images
    once = total - sum(watch.seconds.values())
    seconds = (once + level1 * t1 + level2 * t2) / len(images)
    paper = (once + level1 * paper_t1 + level2 * paper_t2) / len(images)
    ours = 1 / fastest.images_per_second
    return NaiveSpeed(
        images=len(images),
        levels=t1 + t2,
        levels_walked=sum(walked),
        seconds_per_image=seconds,
        paper_seconds_per_image=paper,
        ratio=seconds / ours,
        paper_ratio=paper / ours,
        batch_size=fastest.batch_size,
    )


# The authors' loop


def naive_purify(
    x0: Float[Tensor, "1 c h w"],
    denoiser: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    *,
    t1: int = 120,
    t2: int = 120,
    every: int = 1,
    noise: Noise = fresh_noise,
    walks: tuple[Callable[..., Tensor], Callable[..., Tensor]] | None = None,
) -> Float[Tensor, "1 c h w"]:
    """What ``purify_authors_code`` computes, in the manner of the authors' program: one image, pixel by pixel.

    A yardstick for speed only, written anew. With ``every`` above 1 it takes steps of so many levels. The map is the
    package's, where the authors' is scikit-image's; it is made once.

    Args:
        x0: one image in [-1, 1].
        walks: what goes down the levels in each stage; ``naive_walk`` both times.
    """
    first, second = walks or (naive_walk, naive_walk)
    signal = [1.0, *schedule.alphas_cumprod.tolist()]
    shared = noise(x0)

    def noised(x: Tensor, z: Tensor, level: int) -> Tensor:
        return math.sqrt(signal[level]) * x + math.sqrt(1 - signal[level]) * z

    x = noised(x0, shared, t1 + 1)
    stage1 = first(x, denoiser, signal, t1, every, noise, None)
    similarity = ssim_map(x0, stage1, window="gaussian", data_range=255, channel_weights=(0.11, 0.59, 0.30))
    levels = (t2 * (1 - minmax(similarity))).trunc()[0, 0]
    x = stage1.clone()
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            x[0, :, i, j] = noised(stage1[0, :, i, j], shared[0, :, i, j], int(levels[i, j]) + 1)
    return second(x, denoiser, signal, t2, every, noise, levels)


def naive_walk(
    x: Float[Tensor, "1 c h w"],
    denoiser: Callable[[Tensor, Tensor], Tensor],
    signal: Sequence[float],
    start: int,
    every: int,
    noise: Noise,
    levels: Float[Tensor, "h w"] | None,
) -> Float[Tensor, "1 c h w"]:
    """DDPM from ``start`` to 0; with ``levels`` a loop over the pixels asks each whether it takes part in a step."""
    for level in range(start, 0, -every):
        after = max(level - every, 0)
        eps = denoiser(x, torch.full((1,), level - 1, device=x.device))
        alpha = signal[level] / signal[after]
        stepped = (x - (1 - alpha) / math.sqrt(1 - signal[level]) * eps) / math.sqrt(alpha)
        if after > 0:
            stepped = stepped + math.sqrt(1 - alpha) * noise(x)
        if levels is None:
            x = stepped
            continue
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                if levels[i, j] > after:
                    x[0, :, i, j] = stepped[0, :, i, j]
    return x.clamp(-1, 1)
