"""Thresholds: quantiles of what clean images show, the rate that they promise, both sizes, and refusals."""

import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampdetox_transforms.method.calibration import Calibration, Calibrations, calibrate, strictest
from sampdetox_transforms.method.search import Answer


class Measured:
    """Says of an image what its first pixels hold: the local suspicion red, the dense one green."""

    name, as_is, side, window, finds_dense = "small", 48, 32, 2, True

    def look(self, x: torch.Tensor) -> Answer:
        return Answer(x[:, :1, :1, :1].expand(-1, 1, 2, 2), x[:, 1, 0, 0])


measured = Measured()


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
    p_value = calibration.p_value(other[:, 0, 0, 0], other[:, 1, 0, 0])
    flagged = float((p_value < rate).double().mean())
    assert rate * (1 - rate / 2) * 0.6 < flagged < rate * 1.4 + 0.005
    local, dense = calibration.thresholds
    by_thresholds = (other[:, 0, 0, 0] > local) | (other[:, 1, 0, 0] > dense)
    assert ((p_value < rate) == by_thresholds).double().mean() > 0.998


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-50, 50), min_size=2, max_size=9), a=st.floats(-60, 60), b=st.floats(-60, 60))
def test_p_value_falls_with_suspicion_and_stays_a_share(values, a, b):
    calibration = Calibration(tuple(sorted(values)), (0.0, 1.0))
    low, high = sorted((a, b))
    first, second = calibration.p_value(torch.tensor([low, high]).double(), torch.full((2,), -9.0)).tolist()
    assert 0 < second <= first <= 1


def test_the_strictest_of_several_keeps_the_rate_of_each():
    calm, restless = Calibration((0.0, 1.0), (0.0, 5.0), data="a"), Calibration((0.5, 3.0), (0.0, 2.0), data="b")
    both = strictest([calm, restless])
    assert (both.local, both.dense, both.data) == ((0.5, 3.0), (0.0, 5.0), "a; b")


def test_large_images_are_measured_at_the_size_at_which_they_are_looked_at():
    tiles = torch.arange(80.0)[:, None, None, None].expand(-1, 3, 96, 64)
    assert calibrate(measured, [tiles]) == calibrate(measured, [tiles[..., :32, :32]])


def test_all_false_alarms_are_local_where_dense_triggers_are_not_looked_for():
    blind = Measured()
    blind.finds_dense = False
    calibration = calibrate(blind, normal(4000, 0), false_alarm_rate=0.1)
    local, dense = calibration.thresholds
    assert (calibration.dense, dense, calibration.doubt) == ((), math.inf, math.inf)
    assert local == pytest.approx(float(torch.cat(normal(4000, 0))[:, 0, 0, 0].quantile(0.9)), abs=1e-3)
    (other,) = normal(4000, 1, 4000)
    both = calibration.p_values(other[:, 0, 0, 0], other[:, 1, 0, 0] + 100)
    assert (both[:, 1] == 1).all() and 0.08 < float((both[:, 0] < 0.1).double().mean()) < 0.12
    assert strictest([calibration, calibration]).dense == ()
    assert calibrate(blind, normal(20, 0), false_alarm_rate=0.05).images == 20  # half as many as both kinds need
    with pytest.raises(ValueError, match="needs 40 clean images"):
        calibrate(measured, normal(20, 0), false_alarm_rate=0.05)


SEVEN = Calibration((-1.0, 0.25), (0.0, 2.0), 0.1, 7, "seven images")


@pytest.mark.parametrize(
    "calibrations", [Calibrations(SEVEN, SEVEN.at(0.5)), Calibrations(SEVEN), Calibrations(large=SEVEN), Calibrations()]
)
def test_calibrations_come_back_from_plain_dicts(calibrations):
    assert Calibrations.of_dict(asdict(calibrations)) == calibrations


def test_a_dict_of_one_is_that_of_small_images_and_lists_will_do():
    content = {**asdict(SEVEN), "local": [-1.0, 0.25], "dense": [0.0, 2.0]}
    assert Calibrations.of_dict(content) == Calibrations(SEVEN)


def test_each_of_the_networks_has_its_own():
    both = Calibrations(SEVEN).having("large", SEVEN.at(0.5))
    large = Measured()
    large.name = "large"
    assert both.of(measured) is SEVEN and both.of(large).false_alarm_rate == 0.5
    assert both.at(0.4) == Calibrations(SEVEN.at(0.4), SEVEN.at(0.4)) and Calibrations(SEVEN).at(0.4).large is None
    with pytest.raises(ValueError, match=r"for each of the networks, got none for 'large' images\. Calibrate on clean"):
        Calibrations(SEVEN).of(large)


def test_images_that_are_enlarged_take_the_thresholds_of_large_ones_where_they_have_none():
    medium = Measured()
    medium.name = "medium"
    assert Calibrations(None, SEVEN).of(medium) is SEVEN
    assert Calibrations(None, SEVEN, SEVEN.at(0.5)).of(medium).false_alarm_rate == 0.5
    with pytest.raises(ValueError, match="got none for 'medium' images"):
        Calibrations(SEVEN).of(medium)


@pytest.mark.parametrize("rate", [0.001, 0.004, 0.5])
def test_what_no_clean_image_reaches_is_flagged_at_every_rate_that_was_measured(rate):
    calibration = calibrate(measured, normal(round(2 / rate), 0), false_alarm_rate=rate)
    far = torch.full((2,), -9.0)
    local, dense = far.clone(), far.clone()
    local[0] = dense[1] = 1e4
    p_value = calibration.p_value(local, dense)
    assert (p_value < rate).all() and (p_value > 0).all()
    assert calibration.p_value(far, far).tolist() == [1, 1]


def test_one_p_value_is_the_smaller_of_the_two():
    calibration = Calibration(tuple(range(101)), tuple(range(101)), images=1000)
    local, dense = torch.tensor([90.0, 10, 99]), torch.tensor([0.0, 80, 98])
    assert calibration.p_values(local, dense)[:, 0].tolist() == pytest.approx([0.2, 1.8, 0.02])
    assert calibration.p_value(local, dense).tolist() == pytest.approx([0.2, 0.4, 0.02])


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
    with pytest.raises(ValueError, match=r"rate of 0\.1 needs 20 clean images or more, got 7\. Give more images"):
        SEVEN.at(0.1)
    with pytest.raises(ValueError, match="must be in"):
        SEVEN.at(1.0)
