"""Thresholds: quantiles of what clean images show, the rate that they promise, and refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampdetox_transforms.method.answer import Answer
from sampdetox_transforms.method.calibration import Calibration, calibrate, strictest


def measured(x: torch.Tensor) -> Answer:
    """Says of an image what its first pixels hold: the local suspicion red, the dense one green."""
    return Answer(x, x[:, :1, :1, :1].expand(-1, 1, 2, 2), x[:, 1, 0, 0])


def normal(n: int, seed: int, size: int = 50) -> list[torch.Tensor]:
    return list(torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed)).split(size))


def test_thresholds_are_quantiles_of_the_clean_images():
    ramp = torch.arange(401.0)[:, None, None, None].expand(-1, 3, 2, 2) * torch.tensor([1.0, 2.0, 0])[:, None, None]
    found = calibrate(measured, [ramp], false_alarm_rate=0.1, data="a ramp")
    assert found.thresholds == pytest.approx((400 * 0.95, 800 * 0.95))
    assert (found.images, found.data) == (401, "a ramp")
    assert found.at(0.5).thresholds == pytest.approx((400 * 0.75, 800 * 0.75))


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.3])
def test_the_rate_holds_on_other_clean_images(rate):
    calibration = calibrate(measured, normal(4000, 0), false_alarm_rate=rate)
    (other,) = normal(4000, 1, 4000)
    share = calibration.clean_share(other[:, 0, 0, 0], other[:, 1, 0, 0])
    flagged = float((share < rate).double().mean())
    assert rate * (1 - rate / 2) * 0.6 < flagged < rate * 1.4 + 0.005
    local, dense = calibration.thresholds
    by_thresholds = (other[:, 0, 0, 0] > local) | (other[:, 1, 0, 0] > dense)
    assert ((share < rate) == by_thresholds).double().mean() > 0.998


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-50, 50), min_size=2, max_size=9), a=st.floats(-60, 60), b=st.floats(-60, 60))
def test_clean_share_falls_with_suspicion_and_stays_a_share(values, a, b):
    calibration = Calibration(tuple(sorted(values)), (0.0, 1.0))
    low, high = sorted((a, b))
    first, second = calibration.clean_share(torch.tensor([low, high]).double(), torch.full((2,), -9.0)).tolist()
    assert 0 < second <= first <= 1


def test_the_strictest_of_several_keeps_the_rate_of_each():
    calm, restless = Calibration((0.0, 1.0), (0.0, 5.0), data="a"), Calibration((0.5, 3.0), (0.0, 2.0), data="b")
    both = strictest([calm, restless])
    assert (both.local, both.dense, both.data) == ((0.5, 3.0), (0.0, 5.0), "a; b")


def test_refusals():
    for rate in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"false_alarm_rate must be in \(0, 1\), got .* 0.05 is 5 %"):
            calibrate(measured, normal(100, 0), false_alarm_rate=rate)
    with pytest.raises(ValueError, match="needs 40 clean images or more, got 39"):
        calibrate(measured, normal(39, 0), false_alarm_rate=0.05)
    with pytest.raises(ValueError, match="needs 40 clean images or more, got 0"):
        calibrate(measured, [])
    with pytest.raises(ValueError, match=r"local must be 2 or more ascending numbers, got 2. Use calibrate\(\)"):
        Calibration((1.0, 0.0), (0.0, 1.0))
