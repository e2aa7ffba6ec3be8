"""Clocks of whole runs and of parts."""

import pytest
import torch
from clockwork import CPU

from sampdetox_transforms.lab.speed.clocks import Stopwatch, TimedNoise, time_runs


def test_whole_runs_are_counted_after_a_warm_up(clock):
    lengths = iter((100, 100, 100, 3, 3, 3, 3, 3, 3, 3, 3))

    def run():
        clock.now += next(lengths)

    assert time_runs(run, CPU, 1) == [100]  # the two before it are not counted
    assert time_runs(run, CPU, 3) == [3, 3, 3]


def test_what_is_too_short_for_the_clock_is_run_in_blocks(clock):
    def run():
        clock.now += 1e-7

    seconds = time_runs(run, CPU, 2)
    assert seconds and seconds == pytest.approx([1e-7] * len(seconds), rel=1e-3)


def test_a_stopwatch_adds_up_by_name(clock):
    watch = Stopwatch(CPU)
    two, three = watch.timed("a", clock.passes(2, str)), watch.timed("b", clock.passes(3, str))
    assert two(1) == "1" and two(2) == "2" and three(3) == "3"
    assert dict(watch.seconds) == {"a": 4, "b": 3}


def test_noise_with_a_clock_is_the_same_noise(clock):
    class Half:
        def __call__(self, like):
            return like

        def subset(self, keep):
            return clock.passes(7, lambda like: like / 2)

    watch = Stopwatch(CPU)
    noise = TimedNoise(Half(), watch)
    assert torch.equal(noise(torch.ones(2)), torch.ones(2)) and watch.seconds["noise"] == 0
    part = noise.subset(torch.tensor([0]))
    assert torch.equal(part(torch.ones(1)), torch.full((1,), 0.5)) and watch.seconds["noise"] == 7
