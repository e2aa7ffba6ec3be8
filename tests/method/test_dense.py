"""Dense triggers: which of the answers each gets, at which level, and that what was done is told."""

import math
from functools import partial

import pytest
import torch
from samples import WhiteIsForeign, flat, patched
from samples import run as run_with_noise

from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.retouch import colour_amount, resampled, sharpened, without_colour_cast
from sampdetox_transforms.method.waves import without_waves

run = partial(run_with_noise, noise=torch.zeros_like)  # the denoiser finds none either: diffusion changes nothing

CAST = torch.tensor([-0.3, 0.1, 0.2])[:, None, None]


def scene(seed: int = 0) -> torch.Tensor:
    """Grey, and smooth: neither colour nor fine detail."""
    small = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) - 0.5
    return torch.nn.functional.interpolate(small, size=(32, 32), mode="bicubic").expand(1, 3, 32, 32).clone()


def wave(periods: float = 7) -> torch.Tensor:
    return 0.25 * torch.sin(2 * math.pi * periods * torch.arange(32.0) / 32).expand(1, 3, 32, 32)


class Knows(WhiteIsForeign):
    """Networks that know the image without its trigger: whatever differs from it by enough carries a dense one."""

    def __init__(self, clean: torch.Tensor, threshold: float = 1e-3):
        super().__init__()
        self.clean, self.threshold = clean, threshold

    def look(self, x):
        far = (x - self.clean).square().mean(dim=(1, 2, 3)) > self.threshold
        return super().look(x)._replace(dense=torch.where(far, 8.0, -8.0))

    def estimate(self, x):
        return self.clean.expand_as(x)


LEVELS = {"t1": 6, "t2": 60, "t2_light": 20, "stride": 60}


def test_a_wave_is_taken_out_before_the_look():
    clean, x0 = scene(), scene() + wave()
    networks = Knows(clean, threshold=1e-2)
    result = run(x0, networks, waves=24, gain=0, **LEVELS)
    torch.testing.assert_close(result.image, without_waves(x0)[0])
    assert (result.image - clean).square().mean() < 0.3 * (x0 - clean).square().mean()
    assert result.retouched.waves.tolist() == [True] and result.found.dense.tolist() == [False]
    torch.testing.assert_close(result.lightened, x0 - result.image)
    assert float(result.timestep_map.unique()) == 0 and result.network_calls.tolist() == [2 + 1]


def test_what_a_wave_leaves_suspicious_is_answered_as_without_the_wave():
    clean = scene()
    x0 = clean + wave() + 0.2 * scene(1)
    result = run(x0, Knows(clean), waves=24, **LEVELS)
    assert result.retouched.waves.all() and result.found.dense.all()
    without = run(without_waves(x0)[0], Knows(clean), **LEVELS)
    assert torch.equal(result.image, without.image) and not without.retouched.waves.any()


def test_a_patch_is_filled_where_a_wave_was_taken_out():
    result = run(patched(scene() + wave()), Knows(scene()), waves=24, **LEVELS)
    assert result.found.mask.any() and result.retouched.waves.all()


def test_a_cast_is_answered_by_the_image_without_it_at_t1():
    clean = scene()
    x0 = clean + CAST
    result = run(x0, Knows(clean), colour_gain=1.4, **LEVELS)
    torch.testing.assert_close(result.image, without_colour_cast(x0))
    torch.testing.assert_close(result.image, clean, rtol=0, atol=1e-6)
    assert result.retouched.colour.tolist() == [1] and result.found.dense.tolist() == [True]
    assert float(result.timestep_map.unique()) == 6 and result.network_calls.tolist() == [2 + 1 + 1]
    off = run(x0, Knows(clean + 0.01), **LEVELS)  # the estimate, where casts have no answer of their own
    torch.testing.assert_close(off.image, clean + 0.01)
    assert float(off.timestep_map.unique()) == 60 and off.retouched.colour.tolist() == [0]


@pytest.mark.parametrize(("t2_light", "t2", "level"), [(20, 60, 20), (None, 60, 60), (20, 10, 10)])
def test_what_leaves_fine_detail_is_answered_by_the_estimate_at_a_lower_level(t2_light, t2, level):
    clean, noise = 1.4 * scene(), torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2)) * 0.05
    x0 = torch.cat([clean + noise, clean + 0.3 * scene(1)])
    result = run(x0, Knows(clean), t1=6, t2=t2, t2_light=t2_light, stride=60)
    torch.testing.assert_close(result.image, clean.expand_as(x0))
    assert [float(levels.unique()) for levels in result.timestep_map] == [level, t2]


def test_what_is_faint_is_answered_at_the_lower_level_and_further_than_the_estimate():
    clean = scene()
    x0 = torch.cat([clean + c * scene(1) for c in (0.05, 0.3)])
    assert 0.05 * scene(1).square().mean().sqrt() < 0.035 < 0.3 * scene(1).square().mean().sqrt()
    result = run(x0, Knows(clean, threshold=1e-6), t1=6, t2=60, t2_light=20, stride=60, dense_gain=1.5)
    assert [float(levels.unique()) for levels in result.timestep_map] == [20, 60]
    torch.testing.assert_close(result.image, clean - 0.5 * (x0 - clean))


def test_what_a_shared_trigger_leaves_is_answered_at_the_lower_level():
    clean = scene()
    x0 = torch.cat([clean + 0.3 * scene(1), clean + 0.3 * scene(1), clean])
    matched = torch.tensor([True, False, True])
    result = run(x0, Knows(clean), matched=matched, t1=6, t2=60, t2_light=20, stride=60)
    assert [float(levels.unique()) for levels in result.timestep_map] == [20, 60, 0]
    assert result.found.dense.tolist() == [True, True, False]
    torch.testing.assert_close(result.image, clean.expand_as(x0))


def shift_alone(like: torch.Tensor) -> torch.Tensor:
    """Noise for the two coordinates of a shift, and none for diffusion."""
    return torch.full_like(like, float(like.shape[1] == 2))


def test_images_that_are_not_flagged_are_displaced():
    clean = scene()
    x0 = torch.cat([clean, clean + 0.3 * scene(1)])
    result = run(x0, Knows(clean), jitter=0.2, noise=shift_alone, **LEVELS)
    assert result.retouched.jittered.tolist() == [0.2, 0] and not torch.equal(result.image[0], clean[0])
    torch.testing.assert_close(result.image[1], clean[0])


@pytest.mark.parametrize(("size", "amount"), [((48, 60), 0.2), ((49, 60), 0.2 * 107 / 49), ((214, 107), 0.2)])
def test_images_of_up_to_159_pixels_are_displaced_in_inverse_proportion_to_their_side(size, amount):
    x = torch.nn.functional.interpolate(scene(), size=size)
    result = run(x, WhiteIsForeign(), jitter=0.2, noise=shift_alone, gain=0)
    assert result.retouched.jittered.tolist() == [pytest.approx(amount)] and not torch.equal(result.image, x)


@pytest.mark.parametrize("size", [(160, 160), (160, 300)])
def test_larger_photographs_are_not_displaced(size):
    x = torch.nn.functional.interpolate(scene(), size=size)
    result = run(x, WhiteIsForeign(), jitter=0.2, noise=shift_alone, gain=0)
    assert torch.equal(result.image, x) and result.retouched.jittered.tolist() == [0]


@pytest.mark.parametrize("least", [0.0, 0.4])
def test_images_that_are_not_flagged_lose_the_more_colour_the_more_the_estimate_takes(least):
    x0 = (scene() + CAST).expand(3, 3, 32, 32)
    rms = math.sqrt(float(CAST.square().mean())) * 127.5  # grey levels; CAST is all colour, and smooth
    shares = torch.tensor([0.0, 0.5, 2.0]) / (1.4 * rms)  # of it, that the estimate takes

    class Unsure(WhiteIsForeign):
        def estimate(self, x):
            return x - shares[:, None, None, None] * CAST

        def look(self, x):
            return super().look(x)._replace(dense=torch.full((3,), -8.0))

    amount = least + (1 - least) * torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(colour_amount(x0, Unsure().estimate(x0), least, 1.4), amount)
    result = run(x0, Unsure(), gain=0, colour=least, colour_gain=1.4)
    torch.testing.assert_close(result.image, without_colour_cast(x0, amount=amount))
    torch.testing.assert_close(result.retouched.colour.float(), amount)
    torch.testing.assert_close(result.lightened, x0 - result.stage1)
    assert not result.found.dense.any()


def test_networks_without_an_estimate_take_the_least_colour():
    assert colour_amount(scene(), None, 0.4).tolist() == [pytest.approx(0.4)]


def test_what_every_image_loses_filled_and_estimated_ones_lose_too():
    """The estimate of WhiteIsForeign is red all over; the cast of a flat image is all of its colour."""
    x0 = torch.cat([patched(flat(0, 0, 0)), flat(-0.5, 0, 0.5), flat(0.3, 0, 0)])
    result = run(x0, WhiteIsForeign(), gain=0, colour=0.5)
    for image, whole in zip(result.image, (None, flat(0.5, -0.5, -0.5)[0], flat(0.3, 0, 0)[0]), strict=True):
        if whole is not None:
            torch.testing.assert_close(image, whole.lerp(whole.mean(dim=0, keepdim=True).expand_as(whole), 0.5))
    assert result.retouched.colour.tolist() == [0.5, 0.5, 0.5] and result.found.dense.tolist() == [False, True, False]
    inside = result.found.mask[0].expand(3, -1, -1)
    assert 0 < result.image[0][inside].abs().max() < 0.5  # red, less its colour


def test_resampling_and_sharpening_come_last_and_are_told():
    x0 = torch.cat([scene() + wave(), patched(scene())])
    plain = run(x0, WhiteIsForeign())
    result = run(x0, WhiteIsForeign(), resample=0.6, sharpness=2)
    assert torch.equal(result.image, sharpened(resampled(plain.image, 0.6), 2))
    assert torch.equal(result.stage1, plain.stage1)
    assert result.retouched.resampled.tolist() == [0.6, 0.6] and result.retouched.sharpened.tolist() == [2, 2]
    assert plain.retouched.resampled.tolist() == [1, 1] and plain.retouched.sharpened.tolist() == [0, 0]


def test_a_grey_image_loses_no_colour_and_says_so():
    result = run((scene() + wave())[:, :1], WhiteIsForeign(), gain=0, colour=1, colour_gain=1.4)
    assert result.retouched.colour.tolist() == [0] and not result.lightened.any()


def test_a_large_image_is_answered_at_its_own_size():
    large = torch.nn.functional.interpolate(scene(), size=(96, 96), mode="bilinear")
    fine = 0.1 * torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(3))
    x0 = large + fine + CAST
    result = run(x0, Knows(scene(), 0.01), colour_gain=1.4, **LEVELS)
    assert result.retouched.colour.tolist() == [1]
    torch.testing.assert_close(result.image, large + fine, rtol=0, atol=0.02)


def test_gradients_reach_the_image_through_every_answer():
    clean = scene()
    x0 = torch.cat([clean + wave(), clean + CAST, clean + 0.3 * scene(1), clean]).requires_grad_()
    networks = Knows(clean)
    networks.estimate = lambda x: x * 0.1 + networks.clean * 0.9
    result = run(x0, networks, waves=24, colour_gain=1.4, resample=0.8, sharpness=1, **LEVELS)
    gradient = torch.autograd.grad(result.image.square().sum(), x0)[0]
    assert gradient.isfinite().all() and (gradient.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_each_answer_is_the_same_in_any_batch():
    clean = scene()
    x0 = torch.cat([clean + wave(), clean + CAST, clean + 0.3 * scene(1), clean])
    settings = {"waves": 24, "colour_gain": 1.4, **LEVELS}
    together = run(x0, Knows(clean), **settings)
    for i in range(4):
        alone = run(x0[i : i + 1], Knows(clean), **settings)
        torch.testing.assert_close(alone.image[0], together.image[i])
        assert alone.network_calls[0] == together.network_calls[i]
        for name in ("colour", "waves"):
            assert getattr(alone.retouched, name)[0] == getattr(together.retouched, name)[i]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"colour": 1.5}, r"colour must be a share in \[0, 1\], got 1.5"),
        ({"resample": 0}, r"resample must be a factor in \(0, 1\], got 0"),
        ({"sharpness": -1}, "sharpness must be 0 or more, got -1. 0 is the default"),
        ({"waves": float("inf")}, "waves must be 0 or more, got inf"),
        ({"colour_gain": float("nan")}, "colour_gain must be 0 or more, got nan"),
        ({"t2_light": -3}, "t2_light must be 0 or more, got -3"),
    ],
)
def test_refusals(setting, message):
    with pytest.raises(ValueError, match=message):
        Restore(**setting)


def test_no_level_above_t2_is_asked_of_the_network():
    assert Restore(t1=6, t2=60, t1_large=None, t2_light=90).highest_level == 60


def test_a_faint_trigger_takes_no_more_than_a_share_of_a_dark_images_contrast():
    detail = 0.02 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    x0 = scene() * 0 - 0.9 + detail
    result = run(x0, Knows(x0 - detail, threshold=1e-5), waves=0, dense_gain=2, **LEVELS)
    assert result.found.dense.all() and float(result.timestep_map.unique()) == 20
    taken = (x0 - result.image).square().mean().sqrt() / detail.std()
    assert 0.25 < float(taken) <= 0.3 + 1e-3


def test_a_faint_trigger_in_a_bright_image_is_taken_twice():
    x0 = (clean := scene()) + 0.01 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    result = run(x0, Knows(clean, threshold=5e-5), waves=0, dense_gain=2, **LEVELS)
    torch.testing.assert_close(result.image, 2 * clean - x0)


class Doubts(WhiteIsForeign):
    """Dense triggers are as likely as the upper left pixel is bright: from -10 for black to 0 for white."""

    def look(self, x):
        return super().look(x)._replace(dense=5 * (x[:, 0, 0, 0] - 1))


def test_images_in_doubt_have_a_level_of_their_own():
    x0 = flat(0.1, 0.1, 0.1, n=4)
    x0[:, 0, 0, 0] = torch.tensor([-0.4, 0.5, 0.84, 0.97])  # p-values of 1, .5, .16 and .03
    result = run(x0, Doubts(), t1=12, t1_doubt=40, t2=60, stride=20, gain=0)
    assert result.level1.tolist() == [12, 12, 40, 12]
    # what a shared trigger leaves is faint
    matched = torch.tensor([False, False, True, False])
    known = run(x0, Doubts(), matched=matched, t1=12, t1_doubt=40, t2=60, stride=20, gain=0)
    assert known.level1.tolist() == [12, 12, 12, 12]
    assert result.timestep_map.flatten(1)[:, -1].tolist() == [0, 0, 0, 60]
    assert result.network_calls.tolist() == [2 + 1, 2 + 1, 2 + 2, 2 + 1 + 3]
    assert result.found.dense.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    "settings", [{"t1_doubt": None}, {"t1": 0, "t1_doubt": 40}, {"t1": 50, "t1_doubt": 40}, {"t2": 8, "t1_doubt": 40}]
)
def test_without_a_higher_level_no_image_is_in_doubt(settings):
    x0 = flat(0.1, 0.1, 0.1)
    x0[:, :, 0, 0] = 0.84
    settings = {"t1": 12, "t2": 60, "gain": 0, **settings}
    assert run(x0, Doubts(), **settings).level1.tolist() == [settings["t1"]]


def test_no_large_image_is_in_doubt():
    x0 = torch.full((1, 3, 50, 50), 0.84)
    assert run(x0[..., :40, :40], Doubts(), t1=12, t1_doubt=40, t2=60, gain=0).level1.tolist() == [40]
    assert run(x0, Doubts(), t1=12, t1_doubt=40, t2=60, gain=0).level1.tolist() == [12]


def test_the_level_in_doubt_is_at_most_t2_and_asks_for_no_denoiser_that_knows_more():
    x0 = flat(0.1, 0.1, 0.1)
    x0[:, 0, 0, 0] = 0.84
    settings = {"t1": 12, "t1_doubt": 40, "t2": 25}
    assert run(x0, Doubts(), gain=0, **settings).level1.tolist() == [25]
    assert Restore(**settings).highest_level == 25
