"""The settings of a training run. Importing it loads no torch."""

from dataclasses import dataclass, field

from sampdetox_transforms.networks.unet_config import UNetConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that a training run depends on; saved beside the checkpoint.

    Attributes:
        data: image folders, searched at any depth; one that is named twice counts twice.
        size: height and width of the training crops, in pixels.
        max_level: noise levels 1...max_level are trained (160 covers sigma up to .55 on the linear schedule).
        steps: optimiser steps in all.
        learning_rate: reached after ``warmup`` steps, and taken linearly to 0 over the last ``cooldown`` share.
        ema: decay of the moving average of the weights, which is what is saved; 0 turns it off.
        zoom: the smallest share of an image's area that a crop takes; 1 takes whole images.
        bf16: None uses bfloat16 where the processor or card has it.
        half: store the weights in float16, half the size; they are read back as float32.
        network: further keys of ``UNetConfig``.
    """

    data: tuple[str, ...]
    size: int = 32
    max_level: int = 160
    schedule: str = "linear"
    channels: int = 3
    block_out_channels: tuple[int, ...] = (64, 64, 128)
    layers_per_block: int = 1
    steps: int = 10_000
    batch_size: int = 32
    learning_rate: float = 6e-4
    warmup: int = 200
    cooldown: float = 0.3
    ema: float = 0.999
    zoom: float = 0.35
    seed: int = 0
    workers: int = 1
    bf16: bool | None = None
    save_every: int = 500
    half: bool = False
    network: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        from sampdetox_transforms.method.schedule import Schedule  # here: the command line reads the defaults above

        levels = Schedule.named(self.schedule).num_levels
        if isinstance(self.data, str):
            raise TypeError(f"data must be a tuple of folders, got the string {self.data!r}. Write ({self.data!r},).")
        if not self.data:
            raise ValueError("data must name one folder of images or more, got none. Give the folder's path.")
        for name in ("size", "steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}. Give a larger number.")
        if not 1 <= self.max_level <= levels:
            raise ValueError(f"max_level must be in [1, {levels}], got {self.max_level}. 160 suits the defaults.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}. 0.999 is usual, 0 turns it off.")
        if not 0 < self.zoom <= 1:
            raise ValueError(f"zoom must be in (0, 1], got {self.zoom}. 1 takes whole images.")
        if self.size % self.unet_config().size_multiple:
            raise ValueError(
                f"size must be a multiple of {self.unet_config().size_multiple} for this network, got {self.size}. "
                "Change the size, or give fewer block_out_channels."
            )

    def unet_config(self) -> UNetConfig:
        """The network: no attention, so that any height and width can be restored."""
        depth = len(self.block_out_channels)
        return UNetConfig.from_dict(
            {
                "sample_size": self.size,
                "in_channels": self.channels,
                "out_channels": self.channels,
                "block_out_channels": tuple(self.block_out_channels),
                "layers_per_block": self.layers_per_block,
                "down_block_types": ("DownBlock2D",) * depth,
                "up_block_types": ("UpBlock2D",) * depth,
                "norm_num_groups": 8,
                "resnet_time_scale_shift": "scale_shift",
                "add_attention": False,
                **self.network,
            }
        )
