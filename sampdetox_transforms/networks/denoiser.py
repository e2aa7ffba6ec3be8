"""``Denoiser``: any network as (x_t, t) -> eps, with padding, tiles and precision."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from sampdetox_transforms.method.schedule import SCHEDULES, Schedule
from sampdetox_transforms.networks.pickling import WeightsAsBytes
from sampdetox_transforms.networks.precision import set_precision
from sampdetox_transforms.networks.tiles import MAX_SIDE, of_any_size
from sampdetox_transforms.networks.unet_config import UNetConfig, brief

# Attention over more positions would need more than 1 GiB of float32 an image where no fused kernel serves.
MAX_ATTENTION_POSITIONS = 128 * 128


class Denoiser(WeightsAsBytes):
    """A network that predicts the noise, with the schedule and the levels that it was trained for.

    Calling it pads images to the size that the network needs (mirrored at the borders, cropped off again), casts to
    the network's dtype, and goes by tiles where images are large (``tiles.py``). It is put in eval mode, and its
    parameters get no gradients.

    Args:
        network: callable (x_t, t) -> eps; diffusers' ``UNet2DModel`` too, whose output holds eps in ``.sample``.
        schedule: the noise schedule that it was trained with.
        channels: 1 or 3.
        size_multiple: height and width that it takes are multiples of this number.
        max_level: the highest noise level that it was trained for; None for all.
        attention_scales: by how much the image is reduced where the network attends.
        source: where it comes from, for display.
    """

    shared = ("schedule",)

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Any],
        schedule: Schedule,
        *,
        channels: int = 3,
        size_multiple: int = 1,
        max_level: int | None = None,
        attention_scales: tuple[int, ...] = (),
        source: str = "custom",
    ):
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}. Wrap the network so that it takes grey or RGB.")
        max_level = schedule.num_levels if max_level is None else max_level
        if isinstance(max_level, bool) or not isinstance(max_level, int) or not 1 <= max_level <= schedule.num_levels:
            raise ValueError(
                f"max_level must be a whole number in [1, {schedule.num_levels}], got {brief(max_level)}. "
                "Leave it out for all levels of the schedule."
            )
        self.network = network
        self.schedule, self.channels, self.size_multiple = schedule, channels, size_multiple
        self.max_level, self.attention_scales, self.source = max_level, attention_scales, source
        self.requires_grad_(False)
        self.train(False)

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are; None for a network without any."""
        return next((p.device for p in self.parameters()), None)

    @property
    def dtype(self) -> torch.dtype:
        """In what the network computes."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    def train(self, mode: bool = True) -> "Denoiser":
        """Stay in eval mode, whatever the module around it does."""
        return super().train(False)

    def set_precision(self, dtype: torch.dtype | None) -> "Denoiser":
        """Convert the parameters; None leaves them. Convolution weights are kept in channels_last order."""
        if isinstance(self.network, nn.Module):
            set_precision(self.network, dtype)
        return self

    @property
    def largest_side(self) -> int:
        """Images of more than its square in pixels go by tiles of this side at most: less with attention."""
        return min([MAX_SIDE, *(int(MAX_ATTENTION_POSITIONS**0.5) * scale for scale in self.attention_scales)])

    def forward(self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Predicted noise, shaped like ``x_t``, at timesteps t = level - 1."""
        return of_any_size(self._predict, x_t, t, self.size_multiple, self.largest_side).to(x_t.dtype)

    def _predict(self, x: Tensor, t: Tensor) -> Tensor:
        eps = self.network(x.to(self.dtype, memory_format=torch.channels_last), t)
        return getattr(eps, "sample", eps)


def adapt(network: Callable, schedule: Any) -> Denoiser:
    """A user's own network as a ``Denoiser``; sizes are read from the config of a diffusers ``UNet2DModel``."""
    if isinstance(schedule, str):
        schedule = Schedule.named(schedule)
    elif hasattr(schedule, "betas") and not isinstance(schedule, Schedule):
        prediction = getattr(getattr(schedule, "config", None), "prediction_type", "epsilon")
        require_epsilon(prediction)
        schedule = Schedule(schedule.betas, name="custom")
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"the schedule must be a Schedule, one of {SCHEDULES} or a diffusers scheduler, "
            f"got {type(schedule).__name__}. Build one with Schedule(betas)."
        )
    config = getattr(network, "config", None)
    widths = getattr(config, "block_out_channels", None)
    if isinstance(config, UNetConfig):
        return denoiser_of(network, config, schedule, None, "custom")
    if config is None or widths is None:
        return Denoiser(network, schedule)
    types = [*config.down_block_types, *reversed(config.up_block_types)]
    scales = {2 ** (i % len(widths)) for i, name in enumerate(types) if "Attn" in name}
    multiple = 2 ** (len(widths) - 1)
    if getattr(config, "add_attention", True):
        scales.add(multiple)
    return Denoiser(
        network,
        schedule,
        channels=config.in_channels,
        size_multiple=multiple,
        attention_scales=tuple(sorted(scales)),
        source=type(network).__name__,
    )


def denoiser_of(network: Callable, config: UNetConfig, schedule: Schedule, max_level, source: str) -> Denoiser:
    denoiser = Denoiser(
        network,
        schedule,
        channels=config.in_channels,
        size_multiple=config.size_multiple,
        max_level=max_level,
        attention_scales=config.attention_scales,
        source=source,
    )
    return denoiser.set_precision(None)


def require_epsilon(prediction_type: str) -> None:
    if prediction_type != "epsilon":
        raise ValueError(
            f"the network must predict the noise (prediction_type 'epsilon'), got {brief(prediction_type)}. "
            "Wrap it in a callable that returns eps."
        )
