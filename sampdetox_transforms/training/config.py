"""The settings of training runs; their defaults are read without torch."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sampdetox_transforms.networks.unet_config import UNetConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training run depends on.

    Attributes:
        data: image folders, searched at any depth; one that is named twice counts twice.
        steps: optimiser steps in all.
        learning_rate: reached after ``warmup`` steps, and taken linearly to 0 over the last ``cooldown`` share.
        ema: decay of the moving average of the weights, which is what is saved; 0 turns it off.
        workers: processes that make batches; 0 makes them in the run's own.
        bf16: None uses bfloat16 where the processor or card has it.
        save_every: steps from one state that a killed run resumes from to the next.
    """

    data: tuple[str, ...]
    steps: int = 10_000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 200
    cooldown: float = 0.3
    ema: float = 0.999
    seed: int = 0
    workers: int = 1
    bf16: bool | None = None
    save_every: int = 500

    # What a resumed run may change: nothing that is decided before its last step.
    FREE: ClassVar = ("steps", "save_every", "workers", "cooldown")
    WHOLE: ClassVar = ("steps", "batch_size", "save_every")

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            raise TypeError(f"data must be a tuple of folders, got the string {self.data!r}. Write ({self.data!r},).")
        if not self.data:
            raise ValueError("data must name one folder of images or more, got none. Give the folder's path.")
        for name in self.WHOLE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}. Give a larger number.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}. 0.999 is usual, 0 turns it off.")

    def fixed(self) -> str:
        """The settings that a run must share with the one that it goes on from."""
        return json.dumps({k: v for k, v in asdict(self).items() if k not in self.FREE}, sort_keys=True)

    def record(self) -> dict[str, Any]:
        """The settings as they are kept beside a result: of each folder the last two names only."""
        return {**asdict(self), "data": ["/".join(Path(folder).parts[-2:]) for folder in self.data]}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig):
    """Everything that the training of a denoiser depends on; saved beside the checkpoint.

    Attributes:
        size: height and width of the training crops, in pixels.
        max_level: noise levels 1...max_level are trained (160 covers sigma up to .55 on the linear schedule).
        zoom: the smallest share of an image's area that a crop takes; 1 takes whole images.
        half: store the weights in float16, half the size; they are read back as float32.
        network: further keys of ``UNetConfig``.
    """

    size: int = 32
    max_level: int = 160
    schedule: str = "linear"
    channels: int = 3
    block_out_channels: tuple[int, ...] = (64, 64, 128)
    layers_per_block: int = 1
    learning_rate: float = 6e-4
    zoom: float = 0.35
    half: bool = False
    network: dict = field(default_factory=dict)

    WHOLE: ClassVar = ("size", "steps", "batch_size", "save_every")

    def __post_init__(self) -> None:
        from sampdetox_transforms.method.schedule import Schedule  # torch, which the defaults do without

        levels = Schedule.named(self.schedule).num_levels
        super().__post_init__()
        if not 1 <= self.max_level <= levels:
            raise ValueError(f"max_level must be in [1, {levels}], got {self.max_level}. 160 suits the defaults.")
        check_zoom(self.zoom)
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


@dataclass(frozen=True, kw_only=True)
class RestorerTrainingConfig(RunConfig):
    """Everything that the training of the networks of small images and their calibration depend on.

    Attributes:
        data: images without triggers. Small ones must not be JPEG files: a trigger pasted into one gives itself away.
        fill_data: further folders, from which only fills are learnt; these may hold JPEG files.
        blend_data: further folders, whose images are mixed into others as pictures, beside drawings; the same.
        steps: of each of the three networks: two that search, and the light denoiser.
        batch_size: images in a step; some more are filled.
        zoom: the smallest share of an image's area that a crop takes; 1 takes whole images.
        drawn: the share of images that are drawings, made up: signs, logos, icons, text, lines.
        encoders: networks that learn to hide bits in images before all else, whose marks are triggers; 0 for none.
        held_out: the share of each folder's images that thresholds are measured on, and nothing is learnt from.
        false_alarm_rate: the share of clean images that may be taken for triggered ones.
    """

    fill_data: tuple[str, ...] = ()
    blend_data: tuple[str, ...] = ()
    batch_size: int = 72
    learning_rate: float = 1.5e-3
    warmup: int = 300
    cooldown: float = 0.2
    ema: float = 0.9985
    save_every: int = 250
    zoom: float = 0.35
    drawn: float = 0.1
    encoders: int = 24
    held_out: float = 0.05
    false_alarm_rate: float = 0.05

    FREE: ClassVar = (*RunConfig.FREE, "false_alarm_rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 6:
            raise ValueError(f"batch_size must be 6 or more, one of each kind, got {self.batch_size}. 72 is usual.")
        if self.encoders < 0:
            raise ValueError(f"encoders must be 0 or more, got {self.encoders}. 0 draws no learnt triggers.")
        check_zoom(self.zoom)
        check_drawn(self.drawn)
        check_calibration(self)


@dataclass(frozen=True, kw_only=True)
class PhotoTrainingConfig(RunConfig):
    """Everything that the training of the search network for photographs depends on.

    Attributes:
        data: images without triggers, of 64 pixels and more a side for the most part.
        shares: how often each folder is drawn from; alike where it is empty.
        drawn: the share of images that are drawings, screens with text and diagrams, made up.
        sizes: (pixels a side, images in a batch, share of the steps) of the batches.
        held_out: the share of each folder's images that thresholds are measured on, and nothing is learnt from.
        false_alarm_rate: the share of clean images that may be taken for triggered ones.
    """

    shares: tuple[float, ...] = ()
    drawn: float = 0.09
    sizes: tuple[tuple[int, int, float], ...] = (
        (64, 48, 0.1),
        (96, 24, 0.3),
        (128, 15, 0.35),
        (160, 10, 0.15),
        (192, 8, 0.1),
    )
    steps: int = 20_000
    learning_rate: float = 1.5e-3
    ema: float = 0.998
    save_every: int = 100
    held_out: float = 0.05
    false_alarm_rate: float = 0.05

    FREE: ClassVar = (*RunConfig.FREE, "false_alarm_rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_calibration(self)
        if self.shares and len(self.shares) != len(self.data):
            raise ValueError(
                f"shares must have one number for each of {len(self.data)} folders, got {len(self.shares)}. "
                "Give one for each, or none."
            )
        check_drawn(self.drawn)
        if not self.sizes or any(side < 8 or images < 5 or share <= 0 for side, images, share in self.sizes):
            raise ValueError(
                "sizes must hold (8 pixels or more, 5 images or more, a share above 0), "
                f"got {self.sizes}. The default is {PhotoTrainingConfig.sizes}."
            )


def check_calibration(config: "RestorerTrainingConfig | PhotoTrainingConfig") -> None:
    """Raise ValueError unless some images are held out, and a share of the clean ones may be flagged."""
    if not 0 < config.held_out <= 0.5:
        raise ValueError(f"held_out must be in (0, 0.5], got {config.held_out}. 0.05 is one image in twenty.")
    if not 0 < config.false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate must be in (0, 1), got {config.false_alarm_rate}. 0.05 is usual.")


def check_zoom(zoom: float) -> None:
    """Raise ValueError unless it is a share of an image's area."""
    if not 0 < zoom <= 1:
        raise ValueError(f"zoom must be in (0, 1], got {zoom}. 1 takes whole images.")


def check_drawn(drawn: float) -> None:
    """Raise ValueError unless it is a share of the images."""
    if not 0 <= drawn < 1:
        raise ValueError(f"drawn must be in [0, 1), got {drawn}. 0 draws no pictures.")
