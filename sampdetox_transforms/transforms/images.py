"""Images as users send them: kinds, ranges and normalisation; in, out, and refused."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

IMAGE_TYPES = (PIL.Image.Image, tv_tensors.Image, tv_tensors.Video)
PIL_MODES = ("L", "RGB")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_pure_tensor(item: Any) -> bool:
    """Whether it is a tensor that torchvision does not know the meaning of."""
    return isinstance(item, Tensor) and not isinstance(item, tv_tensors.TVTensor)


class Normalisation(NamedTuple):
    """What ``v2.Normalize`` did to images in [0, 1]: (x - mean) / std, with one value or one a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def undo(self, x: Tensor) -> Tensor:
        """Back to [0, 1]."""
        return x * _channels(self.std, x) + _channels(self.mean, x)

    def redo(self, x: Tensor) -> Tensor:
        """From [0, 1] to what it was."""
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
    try:
        means, stds = (tuple(torch.as_tensor(values).flatten().tolist()) for values in (mean, std))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"mean and std must be numbers, got {mean!r}, {std!r}. Give one, or one a channel.") from error
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
    except (TypeError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one that is available, got {str(device)!r}: {reason}. Use 'cpu'.") from error
    return device


def check_sample(flat_inputs: list[Any], normalisation: Normalisation | None) -> list[Any]:
    """The images of a flattened sample, each of them checked, by torchvision's rule; see ``SampDetox``.

    Raises:
        TypeError: a sample without an image, a dtype or layout that is not an image's.
        ValueError: images out of range, holding NaN, of another shape; a second pure tensor that looks like one.
    """
    images = [item for item in flat_inputs if isinstance(item, IMAGE_TYPES)]
    others: list[Any] = []
    if not images:
        pure = [item for item in flat_inputs if is_pure_tensor(item)]
        if not pure:
            kinds = sorted({type(item).__name__ for item in flat_inputs})
            raise TypeError(
                "a sample must hold an image (PIL, tv_tensors.Image or a tensor), got "
                f"{', '.join(kinds) or 'nothing'}. Convert arrays with v2.ToImage() before this transform."
            )
        images, others = pure[:1], pure[1:]
    for image in images:
        check_image(image, normalisation)
    for other in others:
        if other.is_nested or other.ndim < 3:
            continue
        if other.shape[-3] == 3 and (other.dtype == torch.uint8 or other.is_floating_point()):
            raise ValueError(
                "only the first pure tensor of a sample is taken for an image (torchvision's rule), got a second "
                f"one of shape {tuple(other.shape)}. Stack the images, or wrap each in tv_tensors.Image."
            )
    return images


def check_image(image: Any, normalisation: Normalisation | None) -> None:
    """Raise unless it is a picture of a mode, or a tensor of a kind, shape and range, that can be purified."""
    if isinstance(image, PIL.Image.Image):
        if image.mode not in PIL_MODES:
            raise ValueError(
                f"PIL images must have one of the modes {PIL_MODES}, got {image.mode!r}. "
                "Use image.convert('RGB'); keep an alpha channel aside and put it back."
            )
        if normalisation is not None:
            raise TypeError("with mean and std images must be float tensors, got PIL. Leave mean and std out.")
        if image.width == 0 or image.height == 0:
            raise ValueError(f"images must have a pixel at least, got {image.width}x{image.height}. Leave it out.")
        return
    check_storage(image)
    shape = tuple(image.shape)
    if image.ndim < 3:
        hint = "Is it the labels? Put the image first." if image.ndim < 2 else "Add a channel: image[None]."
        raise ValueError(f"images must have the shape (..., c, h, w), got {shape} of {image.dtype}. {hint}")
    if image.dtype != torch.uint8 and image.dtype not in DTYPES:
        raise TypeError(
            f"image tensors must be uint8, or floating-point in [0, 1], got {image.dtype}. "
            "Convert with v2.ToDtype(torch.float32, scale=True). Labels go after the image."
        )
    if shape[-3] not in (1, 3):
        raise ValueError(
            f"images must have 1 or 3 channels, in the third dimension from the end, got shape {shape}. "
            "Permute (h, w, c) arrays; drop alpha channels."
        )
    if 0 in shape[-2:]:
        raise ValueError(f"images must have a pixel at least, got shape {shape}. Leave empty images out.")
    if normalisation is not None:
        if image.dtype == torch.uint8:
            raise TypeError("with mean and std images must be float tensors, got uint8. Leave mean and std out.")
        normalisation.check_channels(image.shape[-3])
    if image.dtype != torch.uint8 and image.numel():
        check_range(image.detach().as_subclass(Tensor), normalisation)


def check_storage(image: Tensor) -> None:
    """Raise TypeError for tensors whose pixels cannot be read: sparse, quantised, nested, masked and meta ones."""
    kind = type(image).__name__
    if image.is_nested:
        found, remedy = "a nested tensor", "Stack images of one size, and purify each size by itself"
    elif image.layout != torch.strided:
        found, remedy = f"one of layout {image.layout}", "Use image.to_dense()"
    elif image.is_quantized:
        found, remedy = "a quantised tensor", "Use image.dequantize()"
    elif image.is_meta:
        found, remedy = "a meta tensor, which holds no pixels", "Make it on a real device"
    elif kind == "MaskedTensor":
        found, remedy = "a masked tensor", "Use image.to_tensor(0.0)"
    else:
        return
    raise TypeError(f"image tensors must be dense and hold their pixels, got {found}. {remedy}.")


def check_range(image: Tensor, normalisation: Normalisation | None) -> None:
    """Raise ValueError unless a float image is in [0, 1], where that is what it was before ``normalisation``."""
    slack = 1e-5  # what rounding leaves over
    hint = "After Normalize? Give its mean= and std=. In 0...255? Keep uint8, or divide by 255."
    if normalisation is not None:
        image, slack, hint = normalisation.undo(image.float()), 1e-2, "Do mean and std fit the data?"
    low, high = image.amin().item(), image.amax().item()
    if low != low:
        raise ValueError("images must hold finite numbers, got NaN. Find where it comes from before this.")
    if not (low >= -slack and high <= 1 + slack):
        raise ValueError(f"float images must be in [0, 1], got values in [{low:.4g}, {high:.4g}]. {hint}")


def as_tensor(image: Any) -> Tensor:
    """A picture or tensor as a plain tensor, its values as they are."""
    return functional.pil_to_tensor(image) if isinstance(image, PIL.Image.Image) else image.as_subclass(Tensor)


def to_core(tensor: Tensor, normalisation: Normalisation | None, channels: int) -> Tensor:
    """(..., c, h, w) in the input's range -> (n, channels, h, w) in [-1, 1].

    A grey image is repeated for a network of three channels; for one of one channel colours become images.
    """
    x = tensor.flatten(0, -4) if tensor.ndim > 3 else tensor[None]
    if tensor.dtype == torch.uint8:
        x = x.to(torch.float32) / 255
    else:
        x = x.to(torch.float32)
        if normalisation is not None:
            x = normalisation.undo(x).clamp(0, 1)
    x = x * 2 - 1
    if x.shape[1] < channels:
        return x.expand(-1, channels, -1, -1)
    return x.flatten(0, 1)[:, None] if x.shape[1] > channels else x


def from_core(x: Tensor, normalisation: Normalisation | None, image: Any, tensor: Tensor) -> Any:
    """The inverse of ``to_core``: shape, range, dtype, device and type of ``image``, whose values ``tensor`` are."""
    x = unit_like(x, tensor, low=-1)
    if tensor.dtype == torch.uint8:
        x = x.clamp(0, 1).mul_(255).round_().to(torch.uint8)
    else:
        x = x.clamp(0, 1)
        if normalisation is not None:
            x = normalisation.redo(x)
    x = x.to(tensor.device, tensor.dtype)
    if isinstance(image, PIL.Image.Image):
        return functional.to_pil_image(x, mode=image.mode)
    if isinstance(image, tv_tensors.TVTensor):
        return tv_tensors.wrap(x, like=image)  # pyright: ignore[reportCallIssue]
    return x


def unit_like(x: Tensor, tensor: Tensor, low: float = 0) -> Tensor:
    """Values of the core in units of [0, 1], in the shape of ``tensor``: [low, 1] -> [0, 1], a difference for low 0."""
    channels = tensor.shape[-3]
    if channels < x.shape[1]:
        x = x.mean(dim=1, keepdim=True)
    elif channels > x.shape[1]:
        x = x[:, 0].unflatten(0, (-1, channels)) if len(x) else x.expand(-1, channels, -1, -1)
    return ((x - low) / 2).reshape(tensor.shape)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None]
