"""The measurements of a benchmark, by a clock of our own."""

from dataclasses import replace

import pytest
import torch
from clockwork import CPU, pixels, slow
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sampdetox_transforms import Denoiser, SampDetox, Schedule
from sampdetox_transforms.lab.speed import measure
from sampdetox_transforms.lab.speed.table import PARTS, DefendedSpeed
from sampdetox_transforms.method import algorithm1
from sampdetox_transforms.transforms import presets, transform


def test_parts_are_told_apart(clock, monkeypatch):
    for module in (transform, measure):
        monkeypatch.setattr(module, "fresh_noise", clock.passes(1, module.fresh_noise))
    monkeypatch.setattr(algorithm1, "dissimilarity_map", clock.passes(3, algorithm1.dissimilarity_map))
    monkeypatch.setattr(transform, "to_core", clock.passes(5, transform.to_core))
    detox = SampDetox(slow(clock), preset="ddim", batch_size=4)
    parts = measure.measure_parts(detox, pixels(4), repeats=3)
    assert parts == {"network": 7 * (2 * 4 + 0.5), "SSIM map": 3, "noise": 2, "rest": 5}


def test_measuring_parts_leaves_the_transform_as_it_was(tiny):
    detox = SampDetox(str(tiny), preset="ddim", seed=0)
    before, settings = detox(pixels()), detox.settings
    parts = measure.measure_parts(detox, pixels(), repeats=1)
    assert list(parts) == list(PARTS) and all(seconds > 0 for seconds in parts.values())
    assert detox.settings is settings and torch.equal(detox(pixels()), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in detox.modules())


@pytest.mark.parametrize("preset", ["authors-code", "paper"])
def test_parts_of_other_presets(preset, fast_denoiser):
    preset = replace(presets.PRESETS[preset], t1=2, t2=3)
    parts = measure.measure_parts(SampDetox(fast_denoiser, preset=preset), pixels(1), repeats=1)
    assert parts["network"] > 0 and parts["noise"] > 0
    assert (parts["SSIM map"] > 0) == isinstance(preset, algorithm1.Algorithm1)


def test_a_batch_is_measured_in_seconds_calls_and_flop(clock):
    detox = SampDetox(slow(clock), preset="ddim", batch_size=1)
    found = measure.measure_batch(detox, pixels(4), rate=1e6, flop=17, repeats=3)
    assert found.batch_size == 4 and found.calls_per_image == 7
    assert found.seconds == [7 * 8.5] * 3, "the batch did not go through the network at once"
    assert found.images_per_second == pytest.approx(4 / (7 * 8.5))
    assert found.network_seconds == 8.5
    assert found.network_flop_per_second == pytest.approx(17 * 4 / 8.5)
    assert found.utilisation == pytest.approx(17 * 4 / 8.5 / 1e6)
    assert detox.batch_size == 1


def test_flop_are_counted():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    expected = 2 * 3 * 3 * 9 * 8 * 8  # a multiplication and an addition for each weight and place
    denoiser = Denoiser(lambda x, t: conv(x), Schedule.named("linear"))
    given = SampDetox(denoiser, preset="ddim")
    assert measure.count_flop(given, pixels(1)) == measure.count_flop(given, pixels(1)[:, :1]) == expected
    detox = SampDetox(denoiser)  # small images are given to the light denoiser, large ones to another
    assert detox.restorer is not None and detox.restorer.small.light is not None
    with FlopCounterMode(display=False) as counter:
        detox.restorer.small.light(pixels(1), torch.ones(1))
    assert measure.count_flop(detox, pixels(1)) == counter.get_total_flops() > expected
    assert measure.count_flop(SampDetox(denoiser, t1=90), pixels(1)) == expected  # more noise than the light one knows
    large = torch.rand(1, 3, 64, 64)
    own = detox.restorer.large.denoiser(detox.schedule, 2)
    with FlopCounterMode(display=False) as counter:
        own(large, torch.zeros(1))
    assert measure.count_flop(detox, large) == counter.get_total_flops() > 64 * expected


def test_the_matmul_rate(clock, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__matmul__", clock.passes(2, torch.Tensor.__matmul__))
    assert measure.matmul_rate(CPU, torch.float32, 8, repeats=3) == 2 * 8**3 / 2


def test_peak_memory(monkeypatch, tmp_path):
    kept = []
    if measure.RESET_PEAK.exists():
        little = measure.peak_memory_mb(lambda: None, CPU)
        # not a tensor: torch may take one from memory that it kept from an earlier test
        much = measure.peak_memory_mb(lambda: kept.append(b"x" * 120_000_000), CPU)
        assert little is not None and much is not None and 100 < much - little < 400
    monkeypatch.setattr(measure, "RESET_PEAK", tmp_path / "no" / "such")
    assert measure.peak_memory_mb(lambda: kept.append("ran"), CPU) is None and kept[-1] == "ran"


def test_batches_begin_again_where_images_run_out():
    images = pixels(3)
    assert torch.equal(measure.batch_of(images, 7), images[[0, 1, 2, 0, 1, 2, 0]])
    assert torch.equal(measure.batch_of(images, 2), images[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_classifier_alone_and_behind(clock, dtype):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3 * 8 * 8, 2)

        def forward(self, x):
            clock.now += 10
            assert x.dtype == self.linear.weight.dtype == dtype
            return self.linear(x.flatten(1))

    detox = SampDetox(slow(clock), preset="ddim", dtype=dtype)
    found = measure.measure_defended(detox, Counted(), pixels(2), "counted", repeats=2)
    assert found == DefendedSpeed("counted", 2, 10, 10 + 7 * 4.5, (10 + 7 * 4.5) / 10)
