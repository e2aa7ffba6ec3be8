"""Clocks: whole runs by torch's timer, and callables that say how long they took."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from sampdetox_transforms.method.noise import subset
from sampdetox_transforms.method.samplers import Noise


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_runs(run: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of about ``repeats`` whole runs, by torch's own timer, after two that are not counted.

    A run that is too short for the clock is measured in blocks, whose seconds are divided by their length.
    """
    started = clock(device)
    run()
    once = max(clock(device) - started, 1e-6)
    timer = Timer("run()", globals={"run": run}, timer=lambda: clock(device), num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=(repeats - 0.5) * once).times


class Stopwatch:
    """Adds up, by name, the seconds that wrapped callables take."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time added to ``name``."""

        def run(*args, **kwargs):
            started = clock(self.device)
            result = function(*args, **kwargs)
            self.seconds[name] += clock(self.device) - started
            return result

        return run


class TimedNoise:
    """A source of noise with a clock."""

    def __init__(self, noise: Noise, watch: Stopwatch):
        self.noise, self.watch = noise, watch
        self.draw = watch.timed("noise", noise)

    def __call__(self, like: Tensor) -> Tensor:
        return self.draw(like)

    def subset(self, index: Tensor) -> "TimedNoise":
        return TimedNoise(subset(self.noise, index), self.watch)
