"""diffusers' config.json: read, written, and refused where the network does not implement it."""

import pytest
import torch
from diffusers import UNet2DModel
from unet_configs import CONFIGS, SMALL

from sampdetox_transforms.networks.unet import UNet
from sampdetox_transforms.networks.unet_config import UNetConfig


@pytest.mark.parametrize("name", CONFIGS)
def test_to_dict_is_a_config_of_diffusers(name):
    config = UNetConfig.from_dict(CONFIGS[name])
    theirs = UNet2DModel.from_config(config.to_dict())
    ours = UNet(config).state_dict()
    assert {key: value.shape for key, value in theirs.state_dict().items()} == {k: v.shape for k, v in ours.items()}
    assert config.to_dict()["_class_name"] == "UNet2DModel"


@pytest.mark.parametrize("name", CONFIGS)
def test_config_survives_diffusers_and_itself(name):
    config = UNetConfig.from_dict(CONFIGS[name])
    assert UNetConfig.from_dict(config.to_dict()) == config
    assert UNetConfig.from_dict(dict(UNet2DModel.from_config(config.to_dict()).config)) == config


def test_missing_keys_have_the_defaults_of_diffusers():
    theirs = dict(UNet2DModel.from_config(SMALL).config)
    ours = UNetConfig.from_dict(SMALL).to_dict()
    for key, value in ours.items():
        if key != "_class_name":
            expected = theirs[key]
            assert value == (tuple(expected) if isinstance(expected, list) else expected), key


def test_swish_is_silu():
    assert UNetConfig.from_dict(SMALL | {"act_fn": "swish"}) == UNetConfig.from_dict(SMALL)


def test_unknown_key_is_named():
    with pytest.raises(ValueError, match=r"unknown \['cross_attention_dim', 'sample_sise'\]"):
        UNetConfig.from_dict(SMALL | {"sample_sise": 32, "cross_attention_dim": 8})


@pytest.mark.parametrize(
    ("key", "value", "only"),
    [
        ("act_fn", "gelu", "silu"),
        ("center_input_sample", True, "False"),
        ("class_embed_type", "timestep", "None"),
        ("num_class_embeds", 10, "None"),
        ("attn_norm_num_groups", 4, "None"),
        ("time_embedding_type", "fourier", "positional"),
        ("mid_block_scale_factor", 1.4, "1"),
        ("mid_block_type", None, "UNetMidBlock2D"),
        ("downsample_type", "resnet", "conv"),
        ("upsample_type", "resnet", "conv"),
        ("num_train_timesteps", 1000, "None"),
    ],
)
def test_value_that_is_not_implemented_is_named(key, value, only):
    with pytest.raises(ValueError, match=f"{key} must be '?{only}'?, got {value!r}"):
        UNetConfig.from_dict(SMALL | {key: value})


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("down_block_types", "down", ["DownBlock2D", "SkipDownBlock2D"]),
        ("up_block_types", "up", ["AttnDownBlock2D", "UpBlock2D"]),
    ],
)
def test_unknown_block_type_is_named(key, kind, value):
    unknown = next(name for name in value if name not in ("DownBlock2D", "UpBlock2D"))
    with pytest.raises(ValueError, match=rf"{kind}_block_types must be among .*got \['{unknown}'\]"):
        UNetConfig.from_dict(SMALL | {key: value})


@pytest.mark.parametrize(
    "change",
    [
        {"block_out_channels": [16, 32, 32]},
        {"down_block_types": ["DownBlock2D"]},
        {"up_block_types": []},
        {"block_out_channels": [], "down_block_types": [], "up_block_types": []},
    ],
)
def test_blocks_must_be_equally_many(change):
    with pytest.raises(ValueError, match="must be equally long and not empty, got"):
        UNetConfig.from_dict(SMALL | change)


def test_groups_must_divide_every_width():
    with pytest.raises(ValueError, match=r"multiples of norm_num_groups \(8\), got 20"):
        UNetConfig.from_dict(SMALL | {"block_out_channels": [16, 20]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_num_groups": 0}, r"norm_num_groups must be a whole number in \[1, 4096\], got 0"),
        ({"norm_num_groups": None}, r"norm_num_groups must be a whole number in \[1, 4096\], got None"),
        ({"layers_per_block": -1}, r"layers_per_block must be a whole number in \[1, 16\], got -1"),
        (
            {"block_out_channels": [16, 32.5]},
            r"block_out_channels\[1\] must be a whole number in \[1, 4096\], got 32.5",
        ),
        ({"in_channels": 6, "out_channels": 6}, "in_channels must be 1 or 3"),
        ({"out_channels": 6}, "out_channels must be equal to it .*got 3 and 6"),
        ({"freq_shift": 8}, r"freq_shift must be less than 8, half of block_out_channels\[0\], got 8"),
        ({"attention_head_dim": 17}, r"attention_head_dim must be in \[1, 16\].*got 17"),
        ({"attention_head_dim": 0}, r"attention_head_dim must be a whole number in \[1, 4096\] or null, got 0"),
        ({"norm_eps": 0}, r"norm_eps must be a number in \[1e-12, 1\], got 0"),
        ({"sample_size": [32, None]}, r"sample_size must be .*got \(32, None\)"),
        ({"flip_sin_to_cos": 1}, "flip_sin_to_cos must be true or false, got 1"),
        ({"downsample_padding": 2}, "downsample_padding must be 0 or 1, got 2"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift must be .*got 'spatial'"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_dict(SMALL | change)


@pytest.mark.parametrize(
    ("name", "multiple", "scales"),
    [
        ("defaults", 2, (2,)),
        ("no-mid-attention", 2, (2,)),
        ("head-dim-8", 4, (1, 2, 4)),
    ],
)
def test_size_multiple_and_attention_scales(name, multiple, scales):
    config = UNetConfig.from_dict(CONFIGS[name])
    assert config.size_multiple == multiple
    assert config.attention_scales == scales
    smallest = torch.zeros(1, 3, multiple, 3 * multiple)
    assert UNet(config)(smallest, torch.tensor([0])).shape == smallest.shape
