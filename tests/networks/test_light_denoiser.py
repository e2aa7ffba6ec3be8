"""The light denoiser: levels, sizes, grey images, cost, and what it takes of the noise that it is told of."""

import pytest
import torch
from samples import seeded
from torch.utils.flop_counter import FlopCounterMode

from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.networks.light_denoiser import SIGMAS, LightDenoiser
from sampdetox_transforms.networks.restorer import Restorer, RestorerConfig, Specialists
from sampdetox_transforms.networks.restorer_files import load_restorer

LINEAR, COSINE = Schedule.named("linear"), Schedule.named("cosine")


@pytest.fixture(scope="module")
def light() -> LightDenoiser:
    torch.manual_seed(0)
    return LightDenoiser().eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (48, 7), (3, 600)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_grey(light, size, channels):
    x = torch.rand(2, channels, *size) * 2 - 1
    noise = light.at(LINEAR)(x, torch.tensor([11, 39]))
    assert noise.shape == x.shape and noise.dtype == x.dtype and noise.isfinite().all()


def test_a_grey_image_is_a_colour_image_of_three_equal_planes(light):
    x, t = torch.rand(2, 1, 16, 16), torch.tensor([11, 11])
    colour = light.at(LINEAR)(x.expand(-1, 3, -1, -1), t)
    assert torch.allclose(light.at(LINEAR)(x, t), colour.mean(dim=1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
def test_it_is_given_the_image_plus_its_noise_and_how_much_that_is(light, schedule, monkeypatch):
    given = []
    monkeypatch.setattr(light.network, "forward", lambda x, told: given.append((x, told)) or x)
    image, noise = torch.rand(3, 3, 16, 16, generator=seeded()) * 2 - 1, torch.randn(3, 3, 16, 16, generator=seeded())
    level = torch.tensor([5.0, 12.0, 40.0])
    signal = schedule.signal(level).float()[:, None, None, None]
    light.at(schedule)(signal.sqrt() * image + (1 - signal).sqrt() * noise, level - 1)
    sigma = schedule.sigma(level).float()
    assert torch.allclose(given[0][0], image + sigma[:, None, None, None] * noise, atol=1e-5)
    assert torch.allclose(given[0][1][:, 0], sigma.clamp(min=SIGMAS[0]).log() / 2 + 1.5)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
def test_it_knows_the_levels_whose_noise_it_was_trained_on(light, schedule):
    highest = float(schedule.level(SIGMAS[1]))
    assert light.knows(schedule, 1) and light.knows(schedule, highest - 0.01)
    assert not light.knows(schedule, highest + 0.01) and not light.knows(schedule, 500)


def test_small_images_get_it_at_low_levels_and_the_denoiser_that_was_given_at_high_ones(light):
    small = RestorerConfig(widths=(8, 16, 16))
    networks = Specialists(Restorer(small), Restorer(small), light)
    low = networks.denoiser(LINEAR, 40)
    assert low is not None and networks.denoiser(LINEAR, 120) is None
    x, t = torch.rand(1, 3, 8, 8), torch.tensor([39])
    assert torch.equal(low(x, t), light.at(LINEAR)(x, t))
    assert Specialists(Restorer(small), Restorer(small)).denoiser(LINEAR, 12) is None


def test_a_long_image_goes_by_tiles(light):
    sides = []
    hook = light.network.register_forward_pre_hook(lambda module, args: sides.append(tuple(args[0].shape[-2:])))
    assert light(torch.zeros(1, 3, 40, 9000), torch.tensor([0.05])).shape == (1, 3, 40, 9000)
    hook.remove()
    assert len(sides) == 1 and sides[0][1] <= 512


def test_its_cost(light):
    with FlopCounterMode(display=False) as counter:
        light(torch.zeros(1, 3, 32, 32), torch.tensor([0.05]))
    assert counter.get_total_flops() / 32**2 < 300_000


@torch.no_grad()
@pytest.mark.parametrize("level", [12, 40])
def test_the_bundled_one_takes_noise_away(level):
    light = load_restorer()[0].light
    assert light is not None
    rows = torch.linspace(-0.8, 0.8, 32)
    image = (0.5 * rows[:, None] + 0.5 * rows).expand(4, 3, -1, -1).clone()
    image[:, 0, 8:20, 10:24] = 0.7
    noise, signal = torch.randn(image.shape, generator=seeded()), float(LINEAR.signal(level))
    x_t = signal**0.5 * image + (1 - signal) ** 0.5 * noise
    eps = light.at(LINEAR)(x_t, torch.full((4,), level - 1))
    left = (x_t - (1 - signal) ** 0.5 * eps) / signal**0.5 - image
    assert float(left.std()) < 0.35 * float(LINEAR.sigma(level))
