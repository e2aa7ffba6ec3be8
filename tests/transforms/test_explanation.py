"""What ``explain`` says: shapes, units, what was found, and what was taken besides noise."""

import pytest
import torch
from contract import HEIGHT, WIDTH, assert_close, assert_same_kind, is_close, picture, pixels
from samples import CALIBRATIONS, WhiteIsForeign, flat, patched

from sampdetox_transforms import SampDetox, Schedule
from sampdetox_transforms.method.restore import DOUBT, Restore
from sampdetox_transforms.networks.restorers import Restorers
from sampdetox_transforms.transforms.explanation import sigmas
from sampdetox_transforms.transforms.shared_images import purified_by

LINEAR = Schedule.named("linear")


@pytest.mark.parametrize("same", [True, False])
def test_the_noise_of_a_level_is_asked_once_where_an_image_has_one(same, monkeypatch):
    levels, asked = torch.tensor([0.0, 20, 120], dtype=torch.float64)[:, None, None, None].repeat(1, 1, 4, 5), []
    levels[1, 0, 3, 4] += 0 if same else 1
    wanted, sigma = LINEAR.sigma(levels), Schedule.sigma
    monkeypatch.setattr(Schedule, "sigma", lambda self, level: asked.append(level.numel()) or sigma(self, level))
    found = sigmas(LINEAR, levels)
    assert torch.equal(found, wanted) and found.is_contiguous() and asked == [3 if same else 60]


@pytest.mark.parametrize("lead", [(), (2,), (2, 1)])
def test_explanation_of_a_tensor(tiny, lead):
    images = pixels(*lead, 3, HEIGHT, WIDTH)
    detox = SampDetox(tiny, preset="ddim", seed=0)
    told = detox.explain(images)
    assert torch.equal(told.image, detox(images))
    assert_same_kind(told.stage1, images)
    assert not is_close(told.stage1, images) and not is_close(told.stage1, told.image)
    for values in (told.difference_map, told.timestep_map, told.sigma_map):
        assert values.shape == (*lead, 1, HEIGHT, WIDTH)
    assert torch.equal(told.network_calls, torch.full(lead, 7))
    highest = told.timestep_map.amax(dim=(-3, -2, -1))
    torch.testing.assert_close(highest, torch.full(lead, 120.0, dtype=torch.float64))
    assert float(told.timestep_map.amin()) == 0
    torch.testing.assert_close(told.sigma_map, LINEAR.sigma(told.timestep_map))
    assert told.sigma1 == pytest.approx(float(LINEAR.sigma(20))) and told.sigma2 == pytest.approx(
        float(LINEAR.sigma(120))
    )


def test_explanation_of_a_picture(tiny):
    detox = SampDetox(tiny, preset="ddim", seed=0)
    told = detox.explain(picture(1))
    assert_close(told.image, detox(picture(1)))
    assert_same_kind(told.stage1, picture(1))
    assert told.timestep_map.shape == (1, HEIGHT, WIDTH)
    assert told.network_calls.shape == () and int(told.network_calls) == 7


def test_explanation_of_a_grey_network_covers_the_three_colours(tiny_grey):
    detox = SampDetox(tiny_grey, preset="ddim", seed=0)
    image = pixels(3, HEIGHT, WIDTH)
    told, parts = detox.explain(image), [detox.explain(image[c : c + 1]) for c in range(3)]
    assert int(told.network_calls) == 21
    highest = torch.stack([part.timestep_map for part in parts]).amax(0)
    torch.testing.assert_close(told.timestep_map, highest, rtol=0, atol=1e-2)


def test_levels_of_another_schedule_mean_its_noise(fast_denoiser):
    told = SampDetox(fast_denoiser, schedule="cosine", t1=20, t2=120).explain(pixels(3, 4, 4))
    cosine = Schedule.named("cosine")
    assert told.sigma1 == pytest.approx(float(cosine.sigma(20))) and told.sigma1 < float(LINEAR.sigma(20))
    torch.testing.assert_close(told.sigma_map, cosine.sigma(told.timestep_map))


# The search


def searching(weights, networks=None, **settings) -> SampDetox:
    made = SampDetox(weights, seed=0, **settings)
    made.restorer, made.calibration = Restorers(networks or WhiteIsForeign()), CALIBRATIONS
    return made


@pytest.fixture
def images() -> torch.Tensor:
    """A clean one, one with a patch, one with a dense trigger."""
    return (torch.cat([flat(0, 0, 0), patched(flat(0, 0, 0)), flat(-0.5, 0, 0.5)]) + 1) / 2


def test_it_shows_what_was_found(tiny, images):
    told = searching(tiny).explain(images)
    assert told.difference_map is None and told.matched is None
    assert told.found.mask.shape == told.found.probability.shape == (3, 1, 16, 16)
    assert told.found.mask.dtype == torch.bool and told.found.probability.dtype == torch.float64
    assert told.found.mask.flatten(1).any(dim=1).tolist() == [False, True, False]
    assert told.found.dense.tolist() == [False, False, True]
    assert (told.found.p_value < 0.05).tolist() == [False, True, True]
    assert torch.equal(told.found.probability > 0.5, images.amin(dim=1, keepdim=True) > 0.95)
    for i in range(3):
        alone = searching(tiny).explain(images[i])
        assert alone.found.mask.shape == (1, 16, 16) and alone.found.p_value.shape == alone.found.dense.shape == ()
        assert torch.equal(alone.found.mask, told.found.mask[i]) and alone.found.p_value == told.found.p_value[i]


def test_leading_dimensions_are_the_inputs(tiny, images):
    told = searching(tiny).explain(images[None])
    assert told.found.mask.shape == (1, 3, 1, 16, 16) and told.lightened.shape == (1, 3, 3, 16, 16)
    assert told.found.dense.shape == told.found.p_value.shape == (1, 3)


def test_a_grey_network_tells_the_most_suspicious_of_the_colours(tiny_grey):
    image = torch.full((3, 16, 16), 0.5)
    image[1, 2:5, 4:7] = 1
    told = searching(tiny_grey).explain(torch.stack([image, torch.full((3, 16, 16), 0.5)]))
    assert told.found.mask.shape == (2, 1, 16, 16) and told.found.mask.flatten(1).sum(dim=1).tolist() == [9, 0]
    assert (told.found.p_value < 0.05).tolist() == [True, False] and not told.found.dense.any()


@pytest.mark.parametrize("preset", ["ddim", "paper", "authors-code"])
def test_other_presets_look_for_nothing(tiny, preset):
    settings = {} if preset == "ddim" else {"t1": 2, "t2": 3}
    told = SampDetox(tiny, preset=preset, seed=0, **settings).explain(torch.rand(3, 16, 16))
    assert told.found is None and told.lightened is None and told.difference_map is not None


class FaintlyDense(WhiteIsForeign):
    """Is in doubt about every image."""

    def look(self, x):
        return super().look(x)._replace(dense=torch.full((len(x),), -1.5))


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("channels", [1, 3])
def test_lightened_is_what_an_image_lost_besides_noise(tiny, lead, channels):
    image = pixels(*lead, channels, 16, 16) * 0.5 + 0.25
    told = searching(tiny, FaintlyDense(), preset=Restore(t1=0, jitter=0)).explain(image)
    assert not told.found.mask.any() and not told.found.dense.any() and not told.timestep_map.any()
    assert told.lightened.shape == image.shape
    assert (told.image - image).abs().mean() * 255 > 5 and told.lightened.abs().mean() * 255 > 5
    torch.testing.assert_close(told.image, (image - told.lightened).clamp(0, 1), rtol=0, atol=1e-6)


def test_for_a_comparison_only_what_a_trigger_may_be_is_taken(tiny):
    settings = Restore(t1=0, gain=0, colour=0.5)
    detox = searching(tiny, preset=settings)
    image = pixels(1, 3, 16, 16) * 0.5 + 0.25
    assert (detox(image) - image).abs().mean() * 255 > 1  # its colour, and displaced pixels
    torch.testing.assert_close(purified_by(detox, image)[0], image, rtol=0, atol=1e-6)
    assert detox.settings == settings


def test_lightened_is_in_the_same_unit_for_bytes_and_behind_normalize(tiny):
    image = (pixels(3, 16, 16) * 128).round() / 255
    expected = searching(tiny, FaintlyDense()).explain(image).lightened
    assert torch.equal(searching(tiny, FaintlyDense()).explain((image * 255).round().byte()).lightened, expected)
    behind = searching(tiny, FaintlyDense(), mean=0.5, std=0.5)
    torch.testing.assert_close(behind.explain(image * 2 - 1).lightened, expected)


@pytest.mark.parametrize("lead", [(3,), (1, 3)])
def test_what_was_done_without_a_network_is_told_of_each_image(tiny, images, lead):
    preset = Restore(colour=0.25, colour_gain=1e-4, jitter=0.1, resample=0.8, sharpness=1.5)
    told = searching(tiny, preset=preset).explain(images.reshape(*lead, 3, 16, 16)).retouched
    assert all(value.shape == lead for value in vars(told).values())
    assert told.colour.flatten()[2] == 1  # a blue image, which the network takes for a red one with a cast
    assert ((told.colour.flatten()[:2] >= 0.25) & (told.colour.flatten()[:2] < 0.27)).all()
    assert told.jittered.flatten().tolist() == [0.1, 0, 0]  # of the clean image alone
    assert (told.resampled == 0.8).all() and (told.sharpened == 1.5).all() and told.waves.dtype == torch.bool
    assert SampDetox(tiny, preset="ddim").explain(images).retouched is None
    assert searching(tiny).explain(images[:0]).retouched.colour.shape == (0,)


def test_the_p_value_is_below_the_rate_exactly_where_an_image_is_treated_by_the_package_itself():
    detox = SampDetox("bundled", seed=0)
    images = torch.nn.functional.interpolate(pixels(24, 3, 4, 4), size=(32, 32), mode="bilinear")
    images[:8, :, 3:8, 20:25] = 1
    waves = torch.sin(torch.arange(32.0) * 2)
    images[8:16] = (images[8:16] + 0.2 * waves).clamp(0, 1)
    told = detox.explain(images)
    treated = told.found.mask.flatten(1).any(dim=1) | told.found.dense
    below = told.found.p_value < detox.calibration.small.false_alarm_rate
    assert torch.equal(below, treated) and treated.any() and not treated.all()
    assert torch.equal(told.timestep_map.flatten(1).any(dim=1), treated)
    assert torch.equal(told.level1 > 12, ~treated & (told.found.p_value < DOUBT)) and (told.level1 > 12).any()
