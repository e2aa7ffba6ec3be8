"""A clock of our own: every number is known beforehand, and real times are never asserted."""

from dataclasses import replace

import torch
from torch import nn

from sampdetox_transforms import Denoiser, Schedule
from sampdetox_transforms.lab.speed.table import BatchSpeed

CPU = torch.device("cpu")


class Clock:
    """A clock that stands still but for what ``passes`` is told, in place of ``clocks.clock``."""

    def __init__(self):
        self.now = 0.0

    def __call__(self, device) -> float:
        return self.now

    def __deepcopy__(self, memo) -> "Clock":  # there is one clock, whatever holds it
        return self

    def passes(self, seconds: float, function):
        """``function``, which takes so long."""

        def run(*args, **kwargs):
            self.now += seconds
            return function(*args, **kwargs)

        return run


class Slow(nn.Module):
    """A network that takes so many seconds an image, and a half for each call."""

    def __init__(self, clock: Clock, seconds: float):
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        self.clock.now += self.seconds * len(x) + 0.5
        return self.conv(x)


def slow(clock: Clock, seconds: float = 2.0) -> Denoiser:
    return Denoiser(Slow(clock, seconds), Schedule.named("linear"))


def pixels(n: int = 3, size: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def speed(**changes) -> BatchSpeed:
    return replace(BatchSpeed(4, [2.0], 2.0, 7.0, 0.1, 1e9, 0.5, 100.0), **changes)
