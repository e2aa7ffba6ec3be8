"""The UNet against diffusers' UNet2DModel with the same weights, and the configurations that it refuses."""

import os
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file
from unet_configs import CONFIGS, DDPM_CIFAR10, SMALL

from sampdetox_transforms.networks.unet import UNet, rename_old_attention
from sampdetox_transforms.networks.unet_config import UNetConfig


def pair(config: dict) -> tuple[UNet, UNet2DModel]:
    """Ours and diffusers', with equal random weights, in evaluation mode."""
    torch.manual_seed(0)
    theirs = UNet2DModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms start at 1 and 0, where a swap of them would not show
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours = UNet(UNetConfig.from_dict(config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def assert_equal_outputs(ours: UNet, theirs: UNet2DModel, x_t: torch.Tensor, t: torch.Tensor) -> None:
    with torch.no_grad():
        out, expected = ours(x_t, t), theirs(x_t, t).sample
    assert out.shape == x_t.shape
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 1e-2


def test_equals_diffusers_at_the_config_of_ddpm_cifar10():
    ours, theirs = pair(DDPM_CIFAR10)
    x_t = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert_equal_outputs(ours, theirs, x_t, torch.tensor([119]))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("t", [[0, 119], [3.25, 57.9]], ids=["whole", "fractional"])
def test_equals_diffusers(name, t):
    ours, theirs = pair(CONFIGS[name])
    channels = CONFIGS[name].get("in_channels", 3)
    x_t = torch.randn(2, channels, 8, 12, generator=torch.Generator().manual_seed(1))
    assert_equal_outputs(ours, theirs, x_t, torch.tensor(t))


def test_fractional_timesteps_are_not_rounded():
    ours, _ = pair(SMALL)
    x_t = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = [ours(x_t, torch.tensor([t])) for t in (3.0, 3.5, 4.0)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-5
    assert (outputs[1] - outputs[2]).abs().max() > 1e-5


def test_mid_attention_has_a_norm_unless_the_time_embedding_scales_and_shifts():
    for name, expected in (("defaults", True), ("scale-shift", False)):
        ours, theirs = pair(CONFIGS[name])
        for network in (ours, theirs):
            assert ("mid_block.attentions.0.group_norm.weight" in network.state_dict()) == expected


def test_no_mid_attention_leaves_the_other_attention():
    keys = UNet(UNetConfig.from_dict(CONFIGS["no-mid-attention"])).state_dict()
    assert not any(key.startswith("mid_block.attentions") for key in keys)
    assert any(key.startswith("down_blocks.1.attentions") for key in keys)


def test_equals_diffusers_on_a_trained_checkpoint():
    data = os.environ.get("SAMPDETOX_DATA")
    if not data:
        pytest.skip("needs SAMPDETOX_DATA, a folder that contains models/denoiser-lownoise-32")
    folder = Path(data) / "models" / "denoiser-lownoise-32"
    if not (folder / "config.json").exists():
        pytest.skip(f"needs models/denoiser-lownoise-32 in SAMPDETOX_DATA, not found in {data}")
    theirs = UNet2DModel.from_pretrained(folder).eval()
    ours = UNet(UNetConfig.from_dict(dict(theirs.config))).eval()
    ours.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"), strict=True)
    x_t = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert_equal_outputs(ours, theirs, x_t, torch.tensor([5, 119]))


# Old checkpoints


def with_old_names(state: dict[str, torch.Tensor], *, as_convolutions: bool) -> dict[str, torch.Tensor]:
    """The state dict as diffusers wrote it before version 0.15."""
    old = {}
    for key, value in state.items():
        for new_name, old_name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if f".attentions.0.{new_name}." in key:
                key = key.replace(new_name, old_name)
                value = value[:, :, None, None] if as_convolutions and value.ndim == 2 else value
        old[key] = value
    return old


@pytest.mark.parametrize("as_convolutions", [False, True])
@pytest.mark.parametrize("name", ["defaults", "head-dim-8"])
def test_old_attention_weights_load_under_their_present_names(name, as_convolutions):
    config = CONFIGS[name] | {"layers_per_block": 1}
    _, theirs = pair(config)
    state = theirs.state_dict()
    up_attention = {key: value for key, value in state.items() if ".attentions.1." in key}
    old = with_old_names(state, as_convolutions=as_convolutions)
    assert "mid_block.attentions.0.proj_attn.weight" in old
    assert set(old) != set(state)
    assert up_attention.keys() <= old.keys()  # a file with both kinds of names loads too

    renamed = rename_old_attention(old)
    assert renamed.keys() == state.keys()
    assert all(torch.equal(renamed[key], state[key]) for key in state)
    ours = UNet(UNetConfig.from_dict(config)).eval()
    ours.load_state_dict(renamed, strict=True)
    assert_equal_outputs(ours, theirs, torch.ones(1, 3, 8, 8), torch.tensor([7]))


def test_other_weights_keep_their_names_and_shapes():
    state = {"conv_in.weight": torch.zeros(4, 3, 1, 1), "query.weight": torch.zeros(2, 2)}
    renamed = rename_old_attention(state)
    assert renamed.keys() == state.keys()
    assert all(renamed[key] is state[key] for key in state)
