"""``Restore``: whom it leaves alone, what it takes out, what it cannot have looked at, what it counts."""

from functools import partial

import pytest
import torch
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import CALIBRATION, CALIBRATIONS, LINEAR, RED, WhiteIsForeign, as_it_is, flat, patched, run, silent

from sampdetox_transforms import Denoiser
from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.method.noise import SeededNoise
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.sampdetox import global_stage
from sampdetox_transforms.method.samplers import ddim_step
from sampdetox_transforms.method.search import local_suspicion
from sampdetox_transforms.networks.unet import UNet


def test_an_image_without_a_trigger_is_left_as_stage_1_made_it():
    x0, noise = flat(0, 0, 0, n=3), SeededNoise(flat(0, 0, 0, n=3), 0)
    result = as_it_is(x0, WhiteIsForeign(), t1=20, noise=noise)
    again = global_stage(x0, silent, LINEAR, [20, 0], ddim_step, SeededNoise(x0, 0))
    assert torch.equal(result.image, again) and torch.equal(result.image, result.stage1)
    assert not result.found.mask.any() and not result.timestep_map.any()
    assert result.network_calls.tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("estimates", "colour", "colour_gain", "taken"),
    [(True, 0, 1.6, 1), (True, 0, 0, 0), (True, 0.25, 0, 0.25), (False, 0.5, 1.6, 0.5), (False, 0, 1.6, 0)],
)
def test_an_image_that_is_not_flagged_loses_as_much_colour_as_is_told(estimates, colour, colour_gain, taken):
    class Networks(WhiteIsForeign):
        def look(self, x):
            answer = super().look(x)
            return answer if estimates else answer._replace(image=None)

    x0 = flat(0.3, 0.1, -0.1)
    result = as_it_is(x0, Networks(), colour=colour, colour_gain=colour_gain)
    grey = x0.mean(dim=1, keepdim=True)
    torch.testing.assert_close(result.image, grey + (1 - taken) * (x0 - grey))
    assert result.retouched.colour.tolist() == [taken]


def test_a_patch_is_filled_and_the_rest_stays():
    x0 = torch.cat([flat(0, 0, 0), patched(flat(0, 0, 0))])
    result = as_it_is(x0, WhiteIsForeign())
    assert torch.equal(result.image[0], x0[0])
    inside = torch.zeros(1, 16, 16, dtype=torch.bool)
    inside[:, 2:5, 4:7] = True  # the patch
    assert torch.equal(result.found.mask[1], inside)
    assert torch.equal(result.image[1], torch.where(inside, flat(*RED)[0], x0[1]))
    assert result.network_calls.tolist() == [2, 2 + 1 + 2]  # a look; a look, a fill and another look
    assert result.found.p_value[1] < CALIBRATION.false_alarm_rate <= result.found.p_value[0]


def test_what_the_first_fill_brings_back_is_taken_out_by_the_second_look():
    class LeavesSome(WhiteIsForeign):
        def fill(self, x, mask):
            filled = super().fill(x, mask)
            return patched(filled, 4) if self.fills == 1 else filled  # another white patch, elsewhere

    once = as_it_is(patched(flat(0, 0, 0)), LeavesSome(), looks=1)
    twice = as_it_is(patched(flat(0, 0, 0)), LeavesSome())
    assert (once.image > 0.9).any() and not (twice.image > 0.9).any()
    assert (once.found.mask <= twice.found.mask).all() and (once.found.mask != twice.found.mask).any()
    assert once.network_calls.tolist() == [2 + 1] and twice.network_calls.tolist() == [2 + 1 + 2 + 1]


@pytest.mark.parametrize(("left", "again"), [(-0.4, False), (-0.4, True), (2.0, True)])
def test_networks_may_ask_for_a_suspicion_before_more_is_taken_out(left, again):
    class SeesMore(WhiteIsForeign):
        """A corner stands out once the patch is filled: as a pixel of a trigger, though not as an alarm below 0."""

        suspicious_again = again

        def look(self, x):
            answer = super().look(x)
            if self.looks > 1:
                answer.local[..., :4, :4] = left
            return answer

    x0 = patched(flat(0, 0, 0))
    first = as_it_is(x0, WhiteIsForeign()).found.mask
    found = as_it_is(x0, SeesMore()).found.mask
    assert found[..., :4, :4].all() == (left > 0 or not again)
    assert (found & first).equal(first)


def test_further_looks_are_made_with_the_last_margin_until_nothing_is_found():
    class LeavesMore(WhiteIsForeign):
        margins = (0, 2)

        def fill(self, x, mask):
            filled = super().fill(x, mask)
            return patched(filled, 3 + self.fills) if self.fills < 4 else filled

    networks = LeavesMore()
    result = as_it_is(patched(flat(0, 0, 0)), networks, looks=9)
    assert (networks.looks, networks.fills) == (1 + 4, 4)
    assert not (result.image > 0.9).any()
    assert result.found.mask[..., 1:9, 3:11].all() and result.found.mask.sum() == 8 * 8  # 6 wide, and one more


def test_a_mask_that_leaves_too_little_counts_as_a_dense_trigger():
    x0 = patched(flat(0, 0, 0), 12)
    result = run(x0, WhiteIsForeign(), t2=20)
    assert result.found.dense.all() and not result.found.mask.any()
    assert float(result.timestep_map.unique()) == 20
    assert result.image.mean() < 0  # the network's own estimate, noised and denoised


def test_a_dense_trigger_is_answered_by_the_estimate_and_t2():
    x0 = flat(-0.5, 0, 0.5)
    result = run(x0, WhiteIsForeign(), t1=0, t2=0)
    assert torch.equal(result.image, flat(*RED)) and result.found.dense.all() and not result.found.mask.any()
    assert result.network_calls.tolist() == [2]
    noised = run(x0, WhiteIsForeign(), t1=8, t2=60)
    assert noised.network_calls.tolist() == [1 + 2 + 3]
    assert float(noised.timestep_map.unique()) == 60


def test_an_image_does_not_depend_on_its_batch():
    torch.manual_seed(1)
    denoiser = Denoiser(UNet(tiny_config()), LINEAR, size_multiple=2)
    x0 = torch.cat([flat(0, 0, 0), patched(flat(0.1, 0, 0)), flat(-0.5, 0, 0.5), patched(flat(0, -0.2, 0))])
    call = partial(run, denoiser=denoiser, t1=20, t2=40, stride=60)
    together = call(x0, WhiteIsForeign(), noise=SeededNoise(x0, 0))
    for i in range(4):
        alone = call(x0[i : i + 1], WhiteIsForeign(), noise=SeededNoise(x0[i : i + 1], 0))
        assert torch.allclose(alone.image[0], together.image[i], atol=1e-4)
        assert torch.equal(alone.found.mask[0], together.found.mask[i])
        assert alone.network_calls[0] == together.network_calls[i]


def test_stage_1_starts_from_the_image_with_less_of_a_dense_trigger_the_likelier_it_is():
    x0, wanted = flat(0, 0, 0, n=3), flat(*RED)[0]
    dense = torch.tensor([-40.0, -1.0, 40.0])  # one clean image in ten is above -1

    class Unsure(WhiteIsForeign):
        def look(self, x):
            return super().look(x)._replace(dense=dense)

    defaults = Restore()
    result = run(x0, Unsure())
    for stage1, share in zip(result.stage1, (0, 0.5 * defaults.gain, defaults.gain), strict=True):
        torch.testing.assert_close(stage1, (share * wanted).clamp(-1, 1))
    torch.testing.assert_close(result.lightened, x0 - result.stage1)
    same = run(x0, Unsure(), gain=0)
    assert torch.equal(same.stage1, x0) and not same.lightened.any()


def test_the_calls_that_are_counted_are_made():
    x0 = torch.cat([flat(0, 0, 0, n=2), patched(flat(0, 0, 0)), flat(-0.5, 0, 0.5)])
    networks, made = WhiteIsForeign(), []

    def counting(x_t, t):
        made.append(len(x_t))
        return torch.zeros_like(x_t)

    result = run(x0, networks, denoiser=counting, t1=20, t2=60)
    assert int(result.network_calls.sum()) == sum(made) + networks.asked
    assert sum(made) == 4 + 1 + 3


# What it says of what it did


def test_an_image_that_is_left_is_stage_1_of_what_was_not_taken_from_it():
    """With mask 0 and level 0 it may have changed by far more than noise: ``lightened`` says by what."""

    class FaintlyDense(WhiteIsForeign):
        def look(self, x):
            return super().look(x)._replace(dense=torch.full((len(x),), -1.5))

    x0 = torch.rand(3, 3, 16, 16) * 0.5
    denoiser = Denoiser(UNet(tiny_config()), LINEAR, size_multiple=2)
    result = run(x0, FaintlyDense(), denoiser=denoiser, t1=12, noise=SeededNoise(x0, 0))
    assert not result.found.mask.any() and not result.found.dense.any() and not result.timestep_map.any()
    assert ((result.image - x0).abs().mean(dim=(1, 2, 3)) * 127.5 > 5).all()
    assert (result.lightened.abs().mean(dim=(1, 2, 3)) * 127.5 > 5).all()
    start = x0 - result.lightened
    expected = global_stage(start, denoiser, LINEAR, [12, 0], ddim_step, SeededNoise(x0, 0))
    torch.testing.assert_close(result.image, expected, rtol=0, atol=1e-5)
    without = run(x0, WhiteIsForeign(), denoiser=denoiser, t1=12, gain=0, noise=SeededNoise(x0, 0))
    assert not torch.allclose(without.image, expected, atol=0.02) and not without.lightened.any()


def test_lightened_is_told_at_the_size_of_a_large_image():
    class FaintlyDense(WhiteIsForeign):
        def look(self, x):
            return super().look(x)._replace(dense=torch.full((len(x),), -1.0))

    x0 = torch.rand(2, 3, 60, 90) * 0.2
    result = run(x0, FaintlyDense())
    assert result.lightened.shape == x0.shape and result.lightened.abs().mean() > 0.1
    torch.testing.assert_close(result.image, x0 - result.lightened)


class Says(WhiteIsForeign):
    """Answers with the logits that it is given."""

    def __init__(self, local, dense):
        super().__init__()
        self.local, self.dense = local, dense

    def look(self, x):
        answer = super().look(x)
        return answer if self.looks > 1 else answer._replace(local=self.local, dense=self.dense)


def treated(result) -> torch.Tensor:
    return result.found.mask.any(dim=(1, 2, 3)) | result.found.dense


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.001, 0.01, 0.05, 0.3, 0.9]), spread=st.floats(0.01, 9))
def test_the_p_value_is_below_the_rate_exactly_where_an_image_is_treated(seed, rate, spread):
    generator = torch.Generator().manual_seed(seed)
    tables = torch.randn(2, 401, generator=generator).sort(dim=1).values
    tables = (tables * 8).round() / 8 if seed % 2 else tables  # with equal quantiles, too
    calibration = Calibration(*(tuple(table.tolist()) for table in tables), rate, 10_000)
    local = torch.randn(64, 1, 1, 1, generator=generator).expand(-1, 1, 16, 16).clone() * spread
    dense = torch.randn(64, generator=generator) * spread
    # on the thresholds themselves, and just beside them
    for i, (threshold, values) in enumerate(zip(calibration.thresholds, (local, dense), strict=True)):
        for j, shift in enumerate((-1e-6, 0, 1e-6)):
            values[3 * i + j] = threshold + shift
    result = run(flat(0, 0, 0, n=64), Says(local, dense), calibrations=Calibrations(calibration))
    assert ((result.found.p_value < rate) == treated(result)).all()
    assert treated(result).any()


def test_flagged_for_local_suspicion_alone_what_stands_out_most_is_filled():
    local = torch.full((1, 1, 16, 16), -5.0)
    local[..., 7, 9] = -2.0  # below every logit from which a pixel is located
    calibration = Calibration(tuple(i / 400 - 9 for i in range(401)), CALIBRATION.dense)
    assert local_suspicion(local) > calibration.thresholds[0]
    result = run(flat(0, 0, 0), Says(local, torch.tensor([-8.0])), calibrations=Calibrations(calibration))
    expected = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    expected[..., 6:9, 8:11] = True
    assert torch.equal(result.found.mask, expected) and not result.found.dense.any()


def test_the_levels_are_told_as_they_were_asked_for():
    result = run(torch.cat([patched(flat(0, 0, 0)), flat(-0.5, 0, 0.5)]), WhiteIsForeign(), t1=0.1, t2=33.3)
    assert result.timestep_map.dtype == torch.float64
    assert [levels.unique().tolist() for levels in result.timestep_map] == [[0.1], [33.3]]


# Large images


@pytest.mark.parametrize(("size", "level"), [((48, 200), 12), ((49, 49), 2), ((300, 49), 2), ((1, 49), 12)])
def test_images_with_a_shorter_side_above_48_get_the_level_of_large_ones(size, level):
    asked = []
    x0 = torch.zeros(1, 3, *size)
    settings = {"networks": WhiteIsForeign(), "calibrations": CALIBRATIONS}
    result = Restore().run(x0, lambda x, t: asked.append(t) or torch.zeros_like(x), LINEAR, **settings)
    assert [t.tolist() for t in asked] == [[level - 1]] and result.sigma1 == float(LINEAR.sigma(level))
    assert Restore(t1_large=None).run(x0, silent, LINEAR, **settings).sigma1 == float(LINEAR.sigma(12))


def test_networks_may_bring_their_denoiser_and_give_their_estimate_only_when_it_is_asked_for():
    class Large(WhiteIsForeign):
        name, calls = "large", 1

        def look(self, x):
            return super().look(x)._replace(image=None)

        def denoiser(self, schedule, level):
            assert schedule is LINEAR
            return lambda x, t: torch.full_like(x, 0.01)

    def foreign(x_t, t):
        raise AssertionError("the denoiser of small images was asked")

    x0 = torch.cat([flat(0, 0, 0), flat(-0.5, 0, 0.5)])
    result = run(x0, Large(), denoiser=foreign, t1=10, noise=torch.zeros_like)
    assert result.found.dense.tolist() == [False, True]
    assert result.network_calls.tolist() == [1 + 1, 1 + 1 + 1]  # the estimate is one of its own; t2 is 0
    assert torch.equal(result.image[1], flat(*RED)[0]) and not result.lightened.any()
    assert result.image[0].abs().max() > 0
    with pytest.raises(ValueError, match="got none for 'large' images"):
        run(x0, Large(), calibrations=Calibrations(CALIBRATION))


def test_each_group_of_images_has_the_denoiser_of_its_own_level():
    asked = []

    class Light(WhiteIsForeign):
        def denoiser(self, schedule, level):
            asked.append(level)
            return None if level > 60 else lambda x, t: torch.full_like(x, 0.01)

    given = []
    x0 = torch.cat([flat(0, 0, 0), flat(-0.5, 0, 0.5)])
    result = run(
        x0,
        Light(),
        denoiser=lambda x, t: given.append(len(x)) or torch.zeros_like(x),
        t1=10,
        t2=120,
        t2_light=None,
        stride=60,
    )
    assert result.found.dense.tolist() == [False, True]
    assert sorted(set(asked)) == [10, 120] and given == [1, 1]  # two steps of the image with a dense trigger


# Hostile images


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (20, 1), (640, 32)])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_no_size_and_no_flat_colour_gives_nan(size, value):
    for channels in (1, 3):
        x0 = torch.full((2, channels, *size), value)
        result = run(x0, WhiteIsForeign(), t1=12, t2=40)
        assert result.image.shape == x0.shape and result.image.isfinite().all() and result.image.abs().max() <= 1
        assert result.found.p_value.isfinite().all() and result.lightened.isfinite().all()
