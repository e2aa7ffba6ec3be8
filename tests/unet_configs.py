"""Configurations of the UNet: a public checkpoint's, and small ones that differ in what they use."""

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
