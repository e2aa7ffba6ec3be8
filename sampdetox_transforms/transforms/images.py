"""Images as users send them: kinds, ranges and normalisation, in, out and refused."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors

IMAGE_TYPES = (PIL.Image.Image, tv_tensors.Image, tv_tensors.Video)

PIL_MODES = ("L", "RGB")


def is_pure_tensor(item: Any) -> bool:
    """Whether it is a tensor that torchvision does not know the meaning of."""
    return isinstance(item, Tensor) and not isinstance(item, tv_tensors.TVTensor)


class Normalisation(NamedTuple):
    """What ``v2.Normalize`` did to images in [0, 1]: (x - mean) / std, with one value or one a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def undo(self, x: Tensor) -> Tensor:
        return x * _channels(self.std, x) + _channels(self.mean, x)

    def redo(self, x: Tensor) -> Tensor:
        return (x - _channels(self.mean, x)) / _channels(self.std, x)

    def check_channels(self, channels: int) -> None:
        """Raise ValueError unless there is one value, or one for each channel."""
        if len(self.mean) not in (1, channels):
            raise ValueError(
                f"mean and std must have one value, or one a channel, got {len(self.mean)} for {channels} channels. "
                "Give as many as the images have channels."
            )


def check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalisation | None:
    """Both or neither, equally long, std above 0: raise ValueError otherwise."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError(f"mean and std must be given together, got mean={mean}, std={std}. Give both or neither.")
    means, stds = (tuple(torch.as_tensor(values).flatten().tolist()) for values in (mean, std))
    if len(means) != len(stds) or not all(
        0 < s < math.inf and math.isfinite(m) for m, s in zip(means, stds, strict=True)
    ):
        raise ValueError(
            f"mean and std must be equally long, finite, and std above 0, got {means} and {stds}. Correct them."
        )
    return Normalisation(means, stds)


def check_device(device: str | torch.device | None) -> torch.device | None:
    """Raise ValueError for a device that is not there."""
    if device is None:
        return None
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one that is available, got {str(device)!r}: {reason}. Use 'cpu'.") from error
    return device


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None]
