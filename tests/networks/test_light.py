"""The denoiser of the light stage: what it takes away, up to which level, and its file."""

import pytest
import torch
from contract import pixels
from safetensors.torch import load_file, save_file
from torch import nn

from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.networks.light import LIGHT, SIGMAS, Light, load_light, save_light
from sampdetox_transforms.networks.restorer import Specialists
from sampdetox_transforms.networks.safe_files import WeightsFileError

LINEAR = Schedule.named("linear")


class Shrinking(nn.Module):
    """Takes a tenth of the image away, and a tenth of what it is told."""

    def forward(self, x, told):
        assert x.shape[1] == 4 and not x[:, 3].any()
        return -0.1 * x[:, :3] * (1 + told[:, :1, None, None])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_noise_is_what_is_between_the_image_and_what_it_is_taken_for(channels):
    light = Light(Shrinking())
    x, t = pixels(2, channels, 8, 8) * 2 - 1, torch.tensor([7, 19])
    eps = light.denoiser(LINEAR, 20)(x, t)
    for i, level in enumerate((8, 20)):
        signal, sigma = LINEAR.signal(level), LINEAR.sigma(level)
        noisy = x[i : i + 1] / float(signal) ** 0.5
        expected = (noisy - light.restored(noisy, torch.tensor([float(sigma)]))) / float(sigma)
        torch.testing.assert_close(eps[i : i + 1], expected.to(eps), atol=1e-4, rtol=1e-4)


def test_high_levels_are_left_to_the_given_denoiser():
    light = Light(Shrinking())
    known = [level for level in range(1, 200) if light.denoiser(LINEAR, level) is not None]
    assert known == list(range(1, 1 + len(known))) and 20 in known and 60 not in known
    assert float(LINEAR.sigma(known[-1])) <= SIGMAS[1]
    assert Specialists().denoiser(LINEAR, 4) is None
    assert Specialists(light=light).denoiser(LINEAR, 4) is not None


def test_grey_images_stay_grey_and_cost_no_colour():
    light = Light()
    grey = pixels(1, 1, 9, 11) * 2 - 1
    sigma = torch.tensor([0.05])
    expected = light.restored(grey.expand(-1, 3, -1, -1), sigma).mean(dim=1, keepdim=True)
    torch.testing.assert_close(light.restored(grey, sigma), expected)


def test_it_comes_back_from_its_file(tmp_path):
    assert load_light(tmp_path) is None
    light = Light()
    found = load_light(save_light(tmp_path, light))
    assert found is not None and not found.training
    for name, value in light.state_dict().items():
        assert torch.equal(found.state_dict()[name], value.half().float())


def test_broken_files_are_refused(tmp_path):
    save_light(tmp_path, Light())
    with pytest.raises(WeightsFileError, match=r"sha256|SHA-256|hash"):
        load_light(tmp_path, sha256="0" * 64)
    state = load_file(tmp_path / LIGHT)
    save_file({name: torch.full_like(value, float("nan")) for name, value in state.items()}, tmp_path / LIGHT)
    with pytest.raises(WeightsFileError, match="finite"):
        load_light(tmp_path)
    save_file({name: value for name, value in state.items() if "stem" not in name}, tmp_path / LIGHT)
    with pytest.raises((WeightsFileError, ValueError), match="stem"):
        load_light(tmp_path)
    (tmp_path / LIGHT).write_bytes(b"half a file")
    with pytest.raises(WeightsFileError):
        load_light(tmp_path)
