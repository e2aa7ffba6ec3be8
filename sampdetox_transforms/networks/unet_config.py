"""The shape of a ``UNet``: the settings of diffusers' ``config.json``, checked."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

# Keys of diffusers' config.json that this network fixes, with the only value that it implements.
FIXED_CONFIG = {
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_type": "conv",
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}

DOWN_BLOCKS = {"DownBlock2D": False, "AttnDownBlock2D": True}

UP_BLOCKS = {"UpBlock2D": False, "AttnUpBlock2D": True}


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The keys of diffusers' ``config.json`` that shape the network, with diffusers' default values."""

    sample_size: int | None = None
    in_channels: int = 3
    out_channels: int = 3
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    downsample_padding: int = 1
    dropout: float = 0.0
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "UNetConfig":
        """Read a parsed ``config.json``; keys that begin with "_" are diffusers' own notes and are skipped.

        Raises:
            ValueError: an unknown key, a value that this network does not implement, or sizes that do not fit.
        """
        known = {field.name for field in fields(cls)}
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        unknown = sorted(set(given) - known - set(FIXED_CONFIG))
        if unknown:
            raise ValueError(
                f"config.json may hold only keys of diffusers' UNet2DModel, got the unknown {unknown}. "
                "Hand the network over as a module or callable if it is of another kind."
            )
        for key, only in FIXED_CONFIG.items():
            value = given.pop(key, only)
            value = "silu" if key == "act_fn" and value == "swish" else value
            if value != only:
                raise ValueError(
                    f"config.json: {key} must be {only!r}, got {value!r}. "
                    "Load such a network with diffusers and hand the UNet2DModel over instead."
                )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
        }
        result = cls(**values)
        result._check()
        return result

    def _check(self) -> None:
        for name in ("block_out_channels", "down_block_types", "up_block_types"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"config.json: {name} must be a list, got {getattr(self, name)!r}. Correct the file.")
        depth = len(self.block_out_channels)
        if depth == 0 or len(self.down_block_types) != depth or len(self.up_block_types) != depth:
            raise ValueError(
                "config.json: block_out_channels, down_block_types and up_block_types must be equally long and not "
                f"empty, got {depth}, {len(self.down_block_types)} and {len(self.up_block_types)}. Correct the file."
            )
        for kind, types, known in (
            ("down", self.down_block_types, DOWN_BLOCKS),
            ("up", self.up_block_types, UP_BLOCKS),
        ):
            unknown = sorted(set(types) - set(known))
            if unknown:
                raise ValueError(
                    f"config.json: {kind}_block_types must be among {sorted(known)}, got {unknown}. "
                    "Load such a network with diffusers and hand the UNet2DModel over instead."
                )
        if self.resnet_time_scale_shift not in ("default", "scale_shift"):
            raise ValueError(
                "config.json: resnet_time_scale_shift must be 'default' or 'scale_shift', "
                f"got {self.resnet_time_scale_shift!r}. Use a checkpoint with one of them."
            )
        if self.downsample_padding not in (0, 1):
            raise ValueError(
                f"config.json: downsample_padding must be 0 or 1, got {self.downsample_padding}. Correct the file."
            )
        sizes = {
            "norm_num_groups": self.norm_num_groups,
            "layers_per_block": self.layers_per_block,
            "in_channels": self.in_channels,
            **{f"block_out_channels[{i}]": width for i, width in enumerate(self.block_out_channels)},
        }
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"config.json: {name} must be a whole number above 0, got {size!r}. Correct the file.")
        if self.in_channels not in (1, 3) or self.out_channels != self.in_channels:
            raise ValueError(
                "config.json: in_channels must be 1 or 3 and out_channels must be equal to it (a network that predicts "
                f"the noise), got {self.in_channels} and {self.out_channels}. Use a checkpoint of that kind."
            )
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(
                    f"config.json: block_out_channels must be multiples of norm_num_groups ({self.norm_num_groups}), "
                    f"got {width}. Correct the file."
                )
        head_dim = self.attention_head_dim
        if self.attention_scales and head_dim is not None and not 1 <= head_dim <= min(self.block_out_channels):
            raise ValueError(
                f"config.json: attention_head_dim must be in [1, {min(self.block_out_channels)}], the width of the "
                f"narrowest block, or null, got {head_dim}. Correct the file."
            )

    def to_dict(self) -> dict[str, Any]:
        """The whole ``config.json`` that diffusers' ``UNet2DModel.from_pretrained`` reads."""
        return {"_class_name": "UNet2DModel", **FIXED_CONFIG, **asdict(self)}

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this number: every block but the last halves them."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def attention_scales(self) -> tuple[int, ...]:
        """By how much the height and width are divided where the network attends; empty without attention."""
        depth = len(self.block_out_channels)
        down = [DOWN_BLOCKS[name] for name in self.down_block_types]
        up = [UP_BLOCKS[name] for name in reversed(self.up_block_types)]
        scales = {2**i for i in range(depth) if down[i] or up[i]}
        return tuple(sorted(scales | ({self.size_multiple} if self.add_attention else set())))
