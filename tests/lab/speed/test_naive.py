"""The authors' loop, one pixel after the other: the same algorithm, and what is extrapolated."""

import pytest
import torch
from clockwork import Slow, pixels, slow, speed
from reference import DrawnNoise, toy_denoiser

from sampdetox_transforms import Denoiser, SampDetox, Schedule
from sampdetox_transforms.lab.speed import naive
from sampdetox_transforms.method.authors_code import purify_authors_code


def test_the_naive_loop_is_the_authors_algorithm():
    x0 = pixels(1, 6) * 2 - 1
    schedule = Schedule.named("linear")
    found = naive.naive_purify(
        x0, toy_denoiser, schedule, t1=6, t2=9, noise=DrawnNoise(x0.shape, calls=14, dtype=torch.float32)
    )
    expected = purify_authors_code(
        x0, toy_denoiser, schedule, t1=6, t2=9, noise=DrawnNoise(x0.shape, calls=14, dtype=torch.float32)
    )
    assert expected.timestep_map.unique().numel() > 3, "the gate is not put to a test"
    torch.testing.assert_close(found, expected.image, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("every", "walked"), [(1, 240), (10, 24), (7, 36), (120, 2)])
def test_levels_that_are_not_walked_are_extrapolated(clock, every, walked):
    detox = SampDetox(slow(clock, seconds=0.5), preset="ddim")  # a second a call at batch 1
    found = naive.measure_naive(detox, pixels(2, 4), speed(images_per_second=4.0), every=every)
    assert (found.images, found.levels, found.levels_walked, found.batch_size) == (2, 240, walked, 4)
    assert found.seconds_per_image == pytest.approx(240) and found.paper_seconds_per_image == pytest.approx(140)
    assert found.ratio == pytest.approx(240 * 4) and found.paper_ratio == pytest.approx(140 * 4)


def test_what_is_done_once_is_not_extrapolated(clock, monkeypatch):
    monkeypatch.setattr(naive, "ssim_map", clock.passes(1000, naive.ssim_map))
    detox = SampDetox(slow(clock, seconds=0.5), preset="ddim")
    found = naive.measure_naive(detox, pixels(1, 4), speed(), every=60)
    assert found.seconds_per_image == pytest.approx(1240)


def test_a_denoiser_of_few_levels_walks_those_it_knows(clock, fast_denoiser):
    detox = SampDetox(Denoiser(Slow(clock, 0.5), Schedule.named("linear"), max_level=41), preset="ddim", t2=40)
    found = naive.measure_naive(detox, pixels(1, 4), speed(), every=10)
    assert (found.levels, found.levels_walked) == (80, 8)
    assert found.seconds_per_image == pytest.approx(80) and found.paper_seconds_per_image == pytest.approx(60)
