"""The noise-predicting UNet, in the parameter layout of diffusers' ``UNet2DModel``.

Names of modules and config keys are those of the checkpoint format, so that a state dict loads as it is.
Sources: Ho et al. 2020 (DDPM), section 4 and appendix B, for the network; Nichol and Dhariwal 2021,
section 3.2, for the scale-and-shift time embedding.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor, nn

from sampdetox_transforms.networks.group_norm import GroupNorm
from sampdetox_transforms.networks.unet_config import DOWN_BLOCKS, UP_BLOCKS, UNetConfig

OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def timestep_embedding(
    t: Real[Tensor, " b"], dim: int, *, flip_sin_to_cos: bool, freq_shift: int
) -> Float[Tensor, "b dim"]:
    """Sinusoidal embedding of (also fractional) timesteps: DDPM's code, after Vaswani et al. 2017, section 3.5."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * exponent)
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return F.pad(torch.cat(parts, dim=1), (0, dim % 2))


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoidal embedding: (b, c) -> (b, d)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, out_dim)
        self.linear_2 = nn.Linear(out_dim, out_dim)

    def forward(self, emb: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(emb)))


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with the time embedding in between: (b, c, h, w) -> (b, d, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, config: UNetConfig):
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.norm1 = GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, out_channels * (2 if self.scale_shift else 1))
        self.norm2 = GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        time = self.time_emb_proj(F.silu(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(F.silu(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Self-attention over all pixels, with a residual connection: (b, c, h, w) -> (b, c, h, w)."""

    def __init__(self, channels: int, head_dim: int | None, eps: float, groups: int | None):
        super().__init__()
        self.heads = channels // (head_dim or channels)
        inner = self.heads * (head_dim or channels)
        self.group_norm = GroupNorm(groups, channels, eps) if groups else None
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        pixels = (x if self.group_norm is None else self.group_norm(x)).flatten(2).transpose(1, 2)
        q, k, v = (
            layer(pixels).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out[0](out).transpose(1, 2).reshape(b, c, h, w)


class Downsample(nn.Module):
    """Halve height and width with a strided convolution; padding 0 pads right and bottom only, as DDPM did."""

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.asymmetric = padding == 0
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Block(nn.Module):
    """One resolution of the UNet: ResNet blocks, each followed by attention where the block type has it."""

    def __init__(self, in_channels: list[int], channels: int, time_dim: int, attention: bool, config: UNetConfig):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(width, channels, time_dim, config) for width in in_channels)
        if attention:
            self.attentions = nn.ModuleList(
                Attention(channels, config.attention_head_dim, config.norm_eps, config.norm_num_groups)
                for _ in in_channels
            )

    def layer(self, i: int, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnets[i](x, emb)
        return self.attentions[i](x) if hasattr(self, "attentions") else x


class DownBlock(Block):
    """Returns the halved image and the skip connections that it leaves for the way up."""

    def __init__(self, in_channels: list[int], channels: int, time_dim: int, attention: bool, config, downsample: bool):
        super().__init__(in_channels, channels, time_dim, attention, config)
        if downsample:
            self.downsamplers = nn.ModuleList([Downsample(channels, config.downsample_padding)])

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, emb)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class UpBlock(Block):
    """Takes one skip connection for each of its ResNet blocks, from the end of ``skips``."""

    def __init__(self, in_channels: list[int], channels: int, time_dim: int, attention: bool, config, upsample: bool):
        super().__init__(in_channels, channels, time_dim, attention, config)
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample(channels)])

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat([x, skips.pop()], dim=1), emb)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class MidBlock(nn.Module):
    """ResNet block, attention (optional), ResNet block, at the lowest resolution."""

    def __init__(self, channels: int, time_dim: int, config: UNetConfig):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, time_dim, config) for _ in range(2))
        if config.add_attention:
            # diffusers leaves the norm out here, and here only, when the time embedding scales and shifts.
            groups = config.norm_num_groups if config.resnet_time_scale_shift == "default" else None
            self.attentions = nn.ModuleList([Attention(channels, config.attention_head_dim, config.norm_eps, groups)])

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnets[0](x, emb)
        x = self.attentions[0](x) if hasattr(self, "attentions") else x
        return self.resnets[1](x, emb)


class UNet(nn.Module):
    """Predicts the noise in ``x_t``.

    Height and width must be multiples of ``config.size_multiple``; values are in [-1, 1] plus noise.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        time_dim = config.time_embedding_dim or widths[0] * 4
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], time_dim)

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]  # channels of the skip connections, in the order in which the way down leaves them
        width = widths[0]
        for i, name in enumerate(config.down_block_types):
            inputs = [width] + [widths[i]] * (config.layers_per_block - 1)
            width = widths[i]
            self.down_blocks.append(DownBlock(inputs, width, time_dim, DOWN_BLOCKS[name], config, i < last))
            skips += [width] * (config.layers_per_block + (i < last))

        self.mid_block = MidBlock(width, time_dim, config)

        self.up_blocks = nn.ModuleList()
        for i, name in enumerate(config.up_block_types):
            inputs = []
            for _ in range(config.layers_per_block + 1):
                inputs.append(width + skips.pop())
                width = widths[last - i]
            self.up_blocks.append(UpBlock(inputs, width, time_dim, UP_BLOCKS[name], config, i < last))

        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    @classmethod
    def unfilled(cls, config: UNetConfig) -> "UNet":
        """The network without memory for its weights: on the device "meta", until ``filled`` gives it some."""
        with torch.device("meta"):
            return cls(config)

    def forward(self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Return the predicted noise, shaped like ``x_t``; ``t`` are timesteps 0...T-1, fractions allowed."""
        config = self.config
        emb = timestep_embedding(
            t, config.block_out_channels[0], flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift
        )
        emb = self.time_embedding(emb.to(x_t.dtype))
        x = self.conv_in(x_t)
        skips = [x]
        for block in self.down_blocks:
            x, left = block(x, emb)
            skips += left
        x = self.mid_block(x, emb)
        for block in self.up_blocks:
            x = block(x, skips, emb)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def rename_old_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the attention keys of old checkpoints (query, key, value, proj_attn) their present names.

    Some old checkpoints hold the projections as 1x1 convolutions, (d, c, 1, 1); they become (d, c).
    """
    renamed = {}
    for key, value in state.items():
        module, _, rest = key.rpartition("attentions.")
        parts = rest.split(".")
        if module and len(parts) == 3 and parts[1] in OLD_ATTENTION_NAMES:
            key = f"{module}attentions.{parts[0]}.{OLD_ATTENTION_NAMES[parts[1]]}.{parts[2]}"
            value = value[:, :, 0, 0] if value.shape[2:] == (1, 1) else value
        renamed[key] = value
    return renamed
