"""diffusers' config.json: read, written, and refused where the network does not implement it."""

import pytest
import torch
from diffusers import UNet2DModel

from sampdetox_transforms.networks.unet import UNet
from sampdetox_transforms.networks.unet_config import UNetConfig

# The config.json of google/ddpm-cifar10-32
DDPM_CIFAR10 = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SMALL = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "layers_per_block": 1,
}
THREE_BLOCKS = {
    "block_out_channels": [8, 16, 24],
    "down_block_types": ["AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}
CONFIGS = {
    "defaults": SMALL,
    "scale-shift": SMALL | {"resnet_time_scale_shift": "scale_shift", "layers_per_block": 2},
    "no-mid-attention": SMALL | {"add_attention": False, "norm_eps": 1e-3},
    "one-channel": SMALL | {"in_channels": 1, "out_channels": 1, "downsample_padding": 0, "flip_sin_to_cos": False},
    "head-dim-8": THREE_BLOCKS | {"attention_head_dim": 8, "freq_shift": 1},
    "one-head": THREE_BLOCKS | {"attention_head_dim": None, "time_embedding_dim": 20},
    "heads-that-do-not-divide": SMALL | {"block_out_channels": [16, 24], "attention_head_dim": 7},
}


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
        ({"norm_num_groups": 0}, "norm_num_groups must be a whole number above 0, got 0"),
        ({"norm_num_groups": None}, "norm_num_groups must be a whole number above 0, got None"),
        ({"layers_per_block": -1}, "layers_per_block must be a whole number above 0, got -1"),
        ({"block_out_channels": [16, 32.5]}, r"block_out_channels\[1\] must be a whole number above 0, got 32.5"),
        ({"in_channels": 6, "out_channels": 6}, "in_channels must be 1 or 3"),
        ({"out_channels": 6}, "out_channels must be equal to it .*got 3 and 6"),
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
