"""The denoiser: padding, dtype, eval mode, gradients, and users' own networks as one."""

import numpy as np
import pytest
import torch
from checkpoint_tools import predict
from conftest import UnitPrior, tiny_config, write_tiny
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import nn

from sampdetox_transforms import Denoiser, Schedule, load_denoiser
from sampdetox_transforms.networks.checkpoints import read_checkpoint
from sampdetox_transforms.networks.denoiser import adapt
from sampdetox_transforms.networks.tiles import MAX_SIDE
from sampdetox_transforms.networks.unet import UNet

LINEAR = Schedule.named("linear")


class Recorder(nn.Module):
    """Returns what it gets, and keeps it."""

    def forward(self, x_t, t):
        self.seen = x_t
        return x_t


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 16), (9, 8), (3, 33)])
def test_denoiser_pads_symmetrically_and_crops_back(size):
    recorder = Recorder()
    denoiser = Denoiser(recorder, LINEAR, size_multiple=8)
    x_t = torch.randn(2, 3, *size)
    assert torch.equal(denoiser(x_t, torch.tensor([1, 2])), x_t)
    borders = [(-length % 8 // 2, -length % 8 - -length % 8 // 2) for length in size]
    expected = np.pad(x_t.numpy(), [(0, 0), (0, 0), *borders], mode="symmetric")
    assert np.array_equal(recorder.seen.numpy(), expected)
    assert not any(length % 8 for length in expected.shape[2:])


def test_denoiser_computes_in_the_dtype_of_the_network_and_answers_in_that_of_the_image(tiny_denoiser):
    seen = []
    tiny_denoiser.network.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    exact = predict(tiny_denoiser)
    rounded = predict(tiny_denoiser.set_precision(torch.bfloat16))
    assert seen == [torch.float32, torch.bfloat16]
    assert tiny_denoiser.dtype == torch.bfloat16 and rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 0.1


def test_denoiser_stays_in_eval_mode_inside_a_module_that_trains():
    network = UNet(tiny_config(dropout=0.5)).train()
    denoiser = adapt(network, "linear")
    outer = nn.Sequential(nn.Linear(1, 1), denoiser)
    for _ in range(2):
        assert not any(module.training for module in denoiser.modules())
        assert torch.equal(predict(denoiser), predict(denoiser))
        assert outer.train().training


def test_denoiser_parameters_get_no_gradients_and_images_do(tiny_denoiser):
    assert not any(parameter.requires_grad for parameter in tiny_denoiser.parameters())
    x_t = torch.randn(1, 3, 5, 5, requires_grad=True)
    tiny_denoiser(x_t, torch.tensor([9])).square().sum().backward()
    assert x_t.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tiny_denoiser.parameters())


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_denoiser_of_another_channel_count_is_refused(channels):
    with pytest.raises(ValueError, match=f"channels must be 1 or 3, got {channels}"):
        Denoiser(UnitPrior(), LINEAR, channels=channels)


def test_tiles_are_no_larger_than_the_attention_takes():
    denoiser = Denoiser(UnitPrior(), LINEAR, size_multiple=4, attention_scales=(2, 4))
    assert denoiser.largest_side == 256
    assert Denoiser(UnitPrior(), LINEAR).largest_side == MAX_SIDE


def test_attention_scales_are_read_from_the_config(tmp_path):
    config = tiny_config(down_block_types=("AttnDownBlock2D", "DownBlock2D"), add_attention=True)
    denoiser = read_checkpoint(write_tiny(tmp_path, config=config))
    assert denoiser.attention_scales == (1, 2)
    assert denoiser.largest_side == 128


# Users' own networks


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        ("linear", "linear"),
        (LINEAR, "linear"),
        (DDPMScheduler(), "linear"),
        ("squaredcos_cap_v2", "cosine"),
        (DDPMScheduler(beta_schedule="squaredcos_cap_v2"), "cosine"),
    ],
    ids=["name", "Schedule", "scheduler", "alias", "cosine-scheduler"],
)
def test_callable_with_any_kind_of_schedule(schedule, name):
    denoiser = load_denoiser((lambda x_t, t: x_t / 2, schedule))
    torch.testing.assert_close(denoiser.schedule.betas, Schedule.named(name).betas, rtol=1e-4, atol=1e-7)
    assert (denoiser.channels, denoiser.size_multiple, denoiser.max_level, denoiser.device) == (3, 1, 1000, None)
    x_t = torch.randn(1, 3, 5, 7)
    assert torch.equal(denoiser(x_t, torch.tensor([3])), x_t / 2)


@pytest.mark.parametrize("as_pipeline", [False, True])
def test_diffusers_network_object_is_taken_with_its_sizes(as_pipeline):
    network = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
    ).train()
    scheduler = DDPMScheduler()
    denoiser = load_denoiser(DDPMPipeline(network, scheduler) if as_pipeline else (network, scheduler))
    assert (denoiser.channels, denoiser.size_multiple, denoiser.attention_scales) == (1, 4, (2, 4))
    assert not network.training
    with torch.no_grad():
        ours, theirs = predict(denoiser, (2, 1, 8, 12)), predict(network, (2, 1, 8, 12))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert predict(denoiser, (2, 1, 5, 7)).shape == (2, 1, 5, 7)


def test_own_network_object_is_taken_with_its_sizes():
    denoiser = adapt(UNet(tiny_config(1, add_attention=True)), "linear")
    assert (denoiser.channels, denoiser.size_multiple, denoiser.attention_scales) == (1, 2, (2,))
