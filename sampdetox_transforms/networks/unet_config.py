"""The shape of a ``UNet``: the settings of diffusers' ``config.json``, checked."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sampdetox_transforms._common import is_number, is_whole

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

# What bounds a network that is made of untrusted numbers: about four times the largest that is known.
MAX_WIDTH, MAX_DEPTH, MAX_LAYERS, MAX_SIDE = 4096, 10, 16, 2**16

CORRECT = "Correct the file, or take it from a source that you trust."

# What each value must be, on its own: the test and the rule in words.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sample_size": (
        lambda v: v is None or all(is_whole(side, 1, MAX_SIDE) for side in (v if isinstance(v, tuple) else (v,))),
        f"a whole number in [1, {MAX_SIDE}], two of them, or null",
    ),
    "in_channels": (lambda v: is_whole(v, 1, 3) and v != 2, "1 or 3"),
    "time_embedding_dim": (
        lambda v: v is None or is_whole(v, 1, 4 * MAX_WIDTH),
        f"a whole number in [1, {4 * MAX_WIDTH}] or null",
    ),
    "freq_shift": (lambda v: is_whole(v, 0, MAX_WIDTH), "a whole number of 0 or more"),
    "flip_sin_to_cos": (lambda v: isinstance(v, bool), "true or false"),
    "layers_per_block": (lambda v: is_whole(v, 1, MAX_LAYERS), f"a whole number in [1, {MAX_LAYERS}]"),
    "downsample_padding": (lambda v: is_whole(v, 0, 1), "0 or 1"),
    "dropout": (lambda v: is_number(v, 0, 1), "a number in [0, 1]"),
    "attention_head_dim": (
        lambda v: v is None or is_whole(v, 1, MAX_WIDTH),
        f"a whole number in [1, {MAX_WIDTH}] or null",
    ),
    "norm_num_groups": (lambda v: is_whole(v, 1, MAX_WIDTH), f"a whole number in [1, {MAX_WIDTH}]"),
    "norm_eps": (lambda v: is_number(v, 1e-12, 1), "a number in [1e-12, 1]"),
    "resnet_time_scale_shift": (
        lambda v: isinstance(v, str) and v in ("default", "scale_shift"),
        "'default' or 'scale_shift'",
    ),
    "add_attention": (lambda v: isinstance(v, bool), "true or false"),
}


def brief(value: object) -> str:
    """A value for a message: what a hostile file holds may be long."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} in lists without end"
    return text if len(text) <= 100 else text[:100] + "..."


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
                f"config.json may hold only keys of diffusers' UNet2DModel, got the unknown {brief(unknown)}. "
                "Hand the network over as a module or callable if it is of another kind."
            )
        for key, only in FIXED_CONFIG.items():
            value = given.pop(key, only)
            value = "silu" if key == "act_fn" and value == "swish" else value
            if value != only:
                raise ValueError(
                    f"config.json: {key} must be {only!r}, got {brief(value)}. "
                    "Load such a network with diffusers and hand the UNet2DModel over instead."
                )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
        }
        result = cls(**values)
        result.check()
        return result

    def check(self) -> None:
        """Raise ValueError for the first value that no network can have, or that asks for one without bounds."""
        self._check_lists()
        for name, (allowed, rule) in RULES.items():
            if not allowed(getattr(self, name)):
                raise ValueError(f"config.json: {name} must be {rule}, got {brief(getattr(self, name))}. {CORRECT}")
        for i, width in enumerate(self.block_out_channels):
            if not is_whole(width, 1, MAX_WIDTH):
                raise ValueError(
                    f"config.json: block_out_channels[{i}] must be a whole number in [1, {MAX_WIDTH}], "
                    f"got {brief(width)}. {CORRECT}"
                )
            if width % self.norm_num_groups:
                raise ValueError(
                    f"config.json: block_out_channels must be multiples of norm_num_groups ({self.norm_num_groups}), "
                    f"got {width}. {CORRECT}"
                )
        if not is_whole(self.out_channels, 1, 3) or self.out_channels != self.in_channels:
            raise ValueError(
                "config.json: in_channels must be 1 or 3 and out_channels must be equal to it (a network that predicts "
                f"the noise), got {self.in_channels} and {brief(self.out_channels)}. Use a checkpoint of that kind."
            )
        first, narrowest, head_dim = self.block_out_channels[0], min(self.block_out_channels), self.attention_head_dim
        if self.freq_shift >= first // 2:
            raise ValueError(
                f"config.json: freq_shift must be less than {first // 2}, half of block_out_channels[0], "
                f"got {self.freq_shift}. {CORRECT}"
            )
        if self.attention_scales and head_dim is not None and head_dim > narrowest:
            raise ValueError(
                f"config.json: attention_head_dim must be in [1, {narrowest}], the width of the narrowest block, "
                f"or null, got {head_dim}. {CORRECT}"
            )

    def _check_lists(self) -> None:
        for name in ("block_out_channels", "down_block_types", "up_block_types"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"config.json: {name} must be a list, got {brief(getattr(self, name))}. {CORRECT}")
        depth = len(self.block_out_channels)
        if depth == 0 or len(self.down_block_types) != depth or len(self.up_block_types) != depth:
            raise ValueError(
                "config.json: block_out_channels, down_block_types and up_block_types must be equally long and not "
                f"empty, got {depth}, {len(self.down_block_types)} and {len(self.up_block_types)}. {CORRECT}"
            )
        if depth > MAX_DEPTH:
            raise ValueError(
                f"config.json: block_out_channels must have at most {MAX_DEPTH} entries, got {depth}. {CORRECT}"
            )
        for kind, types, known in (
            ("down", self.down_block_types, DOWN_BLOCKS),
            ("up", self.up_block_types, UP_BLOCKS),
        ):
            unknown = [name for name in types if not isinstance(name, str) or name not in known]
            if unknown:
                raise ValueError(
                    f"config.json: {kind}_block_types must be among {sorted(known)}, got {brief(unknown)}. "
                    "Load such a network with diffusers and hand the UNet2DModel over instead."
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
