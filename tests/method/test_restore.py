"""The ``restore`` preset: whom it leaves alone, what it takes out, what it cannot have looked at, what it counts."""

from functools import partial

import pytest
import torch
from conftest import tiny_config
from samples import CALIBRATION, WhiteIsForeign, as_it_is, flat, patched, run, silent
from torch.nn import functional

from sampdetox_transforms import Denoiser, DetoxWrapper, SampDetox, Schedule
from sampdetox_transforms.method.noise import SeededNoise
from sampdetox_transforms.method.restore import GAIN, fill
from sampdetox_transforms.method.sampdetox import global_stage
from sampdetox_transforms.method.samplers import ddim_step
from sampdetox_transforms.networks.restorer import Restorer, RestorerConfig
from sampdetox_transforms.networks.unet import UNet

LINEAR = Schedule.named("linear")


def test_an_image_without_a_trigger_is_left_as_stage_1_made_it():
    x0, noise = flat(0, 0, 0, n=3), SeededNoise(flat(0, 0, 0, n=3), 0)
    result = as_it_is(x0, t1=20, restorer=WhiteIsForeign(), noise=noise)
    again = global_stage(x0, silent, LINEAR, [20, 0], ddim_step, SeededNoise(x0, 0))
    assert torch.equal(result.image, again) and torch.equal(result.image, result.stage1)
    assert not result.mask.any() and not result.timestep_map.any()
    assert result.network_calls.tolist() == [3, 3, 3]


def test_a_patch_is_filled_and_the_rest_stays():
    x0 = torch.cat([flat(0, 0, 0), patched(flat(0, 0, 0))])
    result = as_it_is(x0, restorer=WhiteIsForeign())
    assert torch.equal(result.image[0], x0[0])
    inside = torch.zeros(1, 16, 16, dtype=torch.bool)
    inside[:, 2:5, 4:7] = True  # the patch
    assert torch.equal(result.mask[1], inside)
    assert torch.equal(result.image[1], torch.where(inside, flat(0.5, -0.5, -0.5)[0], x0[1]))
    assert result.network_calls.tolist() == [2, 2 + 1 + 2]  # a look; a look, a fill and another look
    assert result.suspicion[0] < 0 < result.suspicion[1]
    assert result.clean_share[1] < CALIBRATION.false_alarm_rate <= result.clean_share[0]


def test_what_the_first_fill_brings_back_is_taken_out_by_the_second_look():
    class LeavesSome(WhiteIsForeign):
        def forward(self, x, erased=None):
            answer = super().forward(x, erased)
            if self.calls == 2:  # the first fill puts another white patch elsewhere
                return answer._replace(image=patched(flat(0.5, -0.5, -0.5, n=len(x)), 4))
            return answer

    once = as_it_is(patched(flat(0, 0, 0)), restorer=LeavesSome(), margins=(0,))
    twice = as_it_is(patched(flat(0, 0, 0)), restorer=LeavesSome())
    assert (once.image > 0.9).any() and not (twice.image > 0.9).any()
    assert (once.mask <= twice.mask).all()


def test_a_mask_that_leaves_too_little_counts_as_a_dense_trigger():
    x0 = patched(flat(0, 0, 0), 12)
    result = run(x0, restorer=WhiteIsForeign(), t2=20)
    assert not result.mask.any()
    assert float(result.timestep_map.unique()) == 20
    assert result.image.mean() < 0  # the network's own estimate, noised and denoised


def test_a_dense_trigger_is_answered_by_the_estimate_and_t2():
    x0 = flat(-0.5, 0, 0.5)
    result = run(x0, restorer=WhiteIsForeign(), t1=0, t2=0)
    assert torch.equal(result.image, flat(0.5, -0.5, -0.5)) and not result.mask.any()
    assert result.network_calls.tolist() == [2]
    noised = run(x0, restorer=WhiteIsForeign(), t1=8, t2=60)
    assert noised.network_calls.tolist() == [1 + 2 + 3]
    assert float(noised.timestep_map.unique()) == 60


@pytest.mark.parametrize("size", [(16, 16), (9, 13)])
def test_the_fill_takes_nothing_from_inside(size):
    restorer = Restorer(RestorerConfig(widths=(8, 16, 16))).eval()
    mask = torch.rand(2, 1, *size) < 0.3
    x = torch.rand(2, 3, *size) * 2 - 1
    other = torch.where(mask, -x, x)
    assert torch.equal(fill(x, mask, restorer), fill(other, mask, restorer))
    assert torch.equal(torch.where(mask, 0, fill(x, mask, restorer)), torch.where(mask, 0, x))


def test_an_image_does_not_depend_on_its_batch():
    torch.manual_seed(1)
    denoiser = Denoiser(UNet(tiny_config()), LINEAR, size_multiple=2)
    x0 = torch.cat([flat(0, 0, 0), patched(flat(0.1, 0, 0)), flat(-0.5, 0, 0.5), patched(flat(0, -0.2, 0))])
    call = partial(run, denoiser=denoiser, t1=20, t2=40, stride=60)
    together = call(x0, restorer=WhiteIsForeign(), noise=SeededNoise(x0, 0))
    for i in range(4):
        alone = call(x0[i : i + 1], restorer=WhiteIsForeign(), noise=SeededNoise(x0[i : i + 1], 0))
        assert torch.allclose(alone.image[0], together.image[i], atol=1e-4)
        assert torch.equal(alone.mask[0], together.mask[i])
        assert alone.network_calls[0] == together.network_calls[i]


def test_stage_1_starts_from_the_image_with_less_of_a_dense_trigger_the_likelier_it_is():
    x0, wanted = flat(0, 0, 0, n=3), flat(0.5, -0.5, -0.5)[0]
    dense = torch.tensor([-40.0, -1.0, 40.0])  # one clean image in ten is above -1

    class Unsure(WhiteIsForeign):
        def forward(self, x, erased=None):
            return super().forward(x, erased)._replace(dense=dense)

    stage1 = run(x0, restorer=Unsure()).stage1
    for result, share in zip(stage1, (0, 0.5 * GAIN, GAIN), strict=True):
        torch.testing.assert_close(result, (share * wanted).clamp(-1, 1))
    assert torch.equal(as_it_is(x0, restorer=Unsure()).stage1, x0)


def test_the_calls_that_are_counted_are_made():
    x0 = torch.cat([flat(0, 0, 0, n=2), patched(flat(0, 0, 0)), flat(-0.5, 0, 0.5)])
    restorer, made = WhiteIsForeign(), []

    def counting(x_t, t):
        made.append(len(x_t))
        return torch.zeros_like(x_t)

    result = run(x0, restorer=restorer, denoiser=counting, t1=20, t2=60)
    assert int(result.network_calls.sum()) == sum(made) + restorer.images
    assert sum(made) == 4 + 1 + 3


def test_gradients_reach_what_is_outside_the_mask_only():
    restorer = Restorer(RestorerConfig(widths=(8, 16, 16))).eval()
    x = (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_()
    mask = functional.pad(torch.ones(1, 1, 4, 4), (4, 8, 6, 6)) > 0
    fill(x, mask, restorer)[mask.expand(-1, 3, -1, -1)].sum().backward()
    assert not (x.grad * mask).any() and x.grad.any()


@pytest.fixture
def detox(tiny) -> SampDetox:
    made = SampDetox(tiny, preset="restore", seed=0)
    made.restorer, made.calibration = WhiteIsForeign(), CALIBRATION
    return made


def test_explain_shows_mask_suspicion_and_false_alarms(detox):
    images = (torch.cat([flat(0, 0, 0), patched(flat(0, 0, 0))]) + 1) / 2
    explained = detox.explain(images)
    assert explained.mask.shape == (2, 1, 16, 16) and explained.mask.dtype == torch.bool
    assert explained.mask.flatten(1).any(dim=1).tolist() == [False, True]
    assert (explained.false_alarm_rate < 0.05).tolist() == [False, True]
    assert explained.suspicion.shape == (2,)
    single = detox.explain(images[1])
    assert single.mask.shape == (1, 16, 16) and single.suspicion.shape == () == single.false_alarm_rate.shape
    empty = detox.explain(images[:0])
    assert empty.mask.shape == (0, 1, 16, 16) and empty.suspicion.shape == (0,)


def test_other_presets_look_for_nothing(tiny):
    explained = SampDetox(tiny, preset="ddim", seed=0).explain(torch.rand(3, 16, 16))
    assert explained.mask is None and explained.suspicion is None and explained.false_alarm_rate is None
    with pytest.raises(ValueError, match=r"preset='restore' \(the default\) has thresholds to calibrate"):
        SampDetox(tiny, preset="ddim").calibrate(torch.rand(100, 3, 16, 16))


def test_calibrate_takes_batches_and_images_and_sets_the_thresholds(detox):
    images = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    found = detox.calibrate(images, false_alarm_rate=0.1, data="noise")
    assert detox.calibration is found and (found.images, found.data, found.false_alarm_rate) == (60, "noise", 0.1)
    one_by_one = detox.calibrate(list(images), false_alarm_rate=0.1, data="noise")
    assert one_by_one == found
    with pytest.raises(ValueError, match="needs 200 clean images or more, got 60"):
        detox.calibrate(images, false_alarm_rate=0.01)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        detox.calibrate(images * 255)


def test_the_wrapper_returns_the_suspicion(detox, tiny):
    images = (torch.cat([flat(0, 0, 0), patched(flat(0, 0, 0))]) + 1) / 2

    def model(x):
        return x.mean(dim=(2, 3))

    logits, suspicion = DetoxWrapper(model, detox, return_suspicion=True)(images)
    assert torch.equal(logits, DetoxWrapper(model, detox)(images))
    assert suspicion[0] < suspicion[1]
    logits, _ = DetoxWrapper(model, detox, passes=2, return_suspicion=True)(images)
    assert torch.equal(logits, DetoxWrapper(model, detox, passes=2)(images))
    with pytest.raises(ValueError, match=r"return_suspicion needs .* Build it with preset='restore', the default"):
        DetoxWrapper(model, SampDetox(tiny, preset="ddim"), return_suspicion=True)
