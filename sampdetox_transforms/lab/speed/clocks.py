"""Clocks: whole runs, and the parts of one."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sampdetox_transforms.method.noise import subset
from sampdetox_transforms.method.samplers import Noise

# Clocks


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_runs(run: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` runs, after one that is not counted."""
    run()
    return time_each(run, device, repeats)


def time_each(run: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` runs."""
    seconds = []
    for _ in range(repeats):
        started = clock(device)
        run()
        seconds.append(clock(device) - started)
    return seconds


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


class TimedSettings:
    """The settings of a ``SampDetox``, whose algorithm is handed a map and noise with clocks.

    A preset whose algorithm takes no map (the authors' code) has its map counted under "rest".
    """

    def __init__(self, settings: Any, watch: Stopwatch):
        self.settings, self.watch = settings, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.settings, name)

    def algorithm(self) -> Callable[..., Any]:
        algorithm = self.settings.algorithm()
        clocks = {}
        if "dissimilarity" in algorithm.keywords:
            clocks["dissimilarity"] = self.watch.timed("SSIM map", algorithm.keywords["dissimilarity"])

        def run(*args, noise: Noise, **kwargs):
            return algorithm(*args, noise=TimedNoise(noise, self.watch), **clocks, **kwargs)

        return run


def timed_network(network: nn.Module, watch: Stopwatch) -> list[Any]:
    """Hooks that add the time of a module's calls to "network"; remove them afterwards."""
    started = []

    def before(*_) -> None:
        started.append(clock(watch.device))

    def after(*_) -> None:
        watch.seconds["network"] += clock(watch.device) - started.pop()

    return [network.register_forward_pre_hook(before), network.register_forward_hook(after)]
