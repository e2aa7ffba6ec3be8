"""What all baseline defenses share: checks, batches, seeds, and the promise that an image's result is its own."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sampdetox_transforms.lab.checks import check_images
from sampdetox_transforms.method.noise import SeededNoise, fresh_noise
from sampdetox_transforms.method.samplers import Noise
from sampdetox_transforms.networks.denoiser import Denoiser

SLACK = 1e-5  # what rounding leaves outside [0, 1]

Classifier = Callable[[Tensor], Tensor]  # images (b, c, h, w) in [0, 1] -> logits (b, k)


class Defense(nn.Module):
    """A callable on images in [0, 1] (..., c, h, w), which keeps their shape, dtype, device and range.

    A subclass sets the attributes below and writes ``purify``. It computes in float32, without gradients, and stays
    in eval mode. Without a seed it draws from torch's own generator; with one, an image's result depends on the seed
    and the image alone, whatever its batch (up to rounding).

    Attributes:
        title: the name for tables.
        access: what it asks of the suspected model: "none", "hard labels" or "class scores".
        denoiser_calls, classifier_calls: nominal network calls for each image.
    """

    title: str
    access: str = "none"
    denoiser_calls: int = 0
    classifier_calls: int = 0

    def __init__(self, *, seed: int | None = None, batch_size: int = 64):
        super().__init__()
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError(f"seed must be a whole number or None, got {seed!r}. None draws anew each call.")
        check_whole("batch_size", batch_size, "Leave it out for the default.")
        self.seed, self.batch_size = seed, batch_size

    def purify(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The defense itself, on at most ``batch_size`` float32 images in [0, 1]; the result is clamped to it."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
        """Purified images.

        Raises:
            ValueError: images outside [0, 1], of another shape, or on another device than the networks; a model in
                training mode.
            TypeError: images that are no floating-point tensor.
        """
        self._check(images)
        flat = images.detach().float().reshape(-1, *images.shape[-3:])
        if not len(flat):
            return images.clone()
        result = torch.cat([self.purify(chunk) for chunk in flat.split(self.batch_size)])
        return result.clamp(0, 1).to(images.dtype).reshape(images.shape)

    def noise(self, images: Float[Tensor, "b c h w"]) -> Noise:
        """Where the noise of these images in [0, 1] comes from: the seed and each image, or torch's generator."""
        return fresh_noise if self.seed is None else SeededNoise(images * 2 - 1, self.seed)

    def train(self, mode: bool = True) -> "Defense":
        """Stay in eval mode, whatever the module around it does."""
        return super().train(False)

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if name[0] != "_" and name != "training"}
        settings = ", ".join(f"{name}={value!r}" for name, value in shown.items() if not callable(value))
        return f"{type(self).__name__}({settings})"

    def _check(self, images: Tensor) -> None:
        check_images(images, slack=SLACK)
        for name, module in self.named_children():
            if module.training:
                raise ValueError(f"{name} must be in eval mode, got training mode. Call {name}.eval().")
            device = next((p.device for p in module.parameters()), images.device)
            if device != images.device:
                raise ValueError(
                    f"images must be on the device of {name}, {device}, got {images.device}. "
                    "Move the defense with .to(images.device)."
                )


def uniform(noise: Noise, images: Float[Tensor, "b c h w"], *shape: int) -> Float[Tensor, "b ..."]:
    """Numbers in [0, 1) for each image, (b, *shape), of the image's own generator where the noise has them."""
    if isinstance(noise, SeededNoise):
        draws = [torch.rand(shape, generator=generator) for generator in noise.generators]
        return torch.stack(draws).to(images.device)
    return torch.rand(len(images), *shape, device=images.device)


def crop(
    images: Float[Tensor, "b c y x"], top: Int[Tensor, " b"], left: Int[Tensor, " b"], height: int, width: int
) -> Float[Tensor, "b c h w"]:
    """A window of each image, at a place of its own."""
    device = images.device
    rows = top[:, None] + torch.arange(height, device=device)
    columns = left[:, None] + torch.arange(width, device=device)
    index = torch.arange(len(images), device=device)[:, None, None]
    return images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def check_denoiser(denoiser: Denoiser, level: float, setting: str) -> None:
    """Refuse what is no ``Denoiser``, or one that does not know the noise ``level`` that ``setting`` asks for."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"denoiser must be a Denoiser, got {type(denoiser).__name__}. Load one with load_denoiser(weights)."
        )
    if level > denoiser.max_level:
        raise ValueError(
            f"{setting} needs a denoiser that knows noise levels up to {level:g}, got {denoiser.source!r}, which knows "
            f"up to {denoiser.max_level}. Lower it, or train one with 'sampdetox train --max-level "
            f"{denoiser.schedule.num_levels}'."
        )


def check_fit(denoiser: Denoiser, images: Tensor) -> None:
    """Refuse images of other channels than the denoiser's."""
    channels = images.shape[-3]
    if channels != denoiser.channels:
        raise ValueError(
            f"images must have the denoiser's {denoiser.channels} channels, got {channels}. "
            "Repeat a grey channel with expand, or take a denoiser for such images."
        )


def check_model(model: Classifier) -> None:
    """Refuse what cannot be called."""
    if not callable(model):
        raise TypeError(f"model must be callable on a batch of images, got {type(model).__name__}. Pass the model.")


def check_whole(name: str, value: object, remedy: str, low: int = 1) -> None:
    """Refuse all but whole numbers of ``low`` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a whole number of {low} or more, got {value!r}. {remedy}")


def check_number(name: str, value: float, remedy: str, *, low: float = 0, high: float = math.inf) -> None:
    """Refuse all but finite numbers above ``low`` and up to ``high``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low < value <= high and math.isfinite(value)):
        rule = f"a finite number above {low:g}" if math.isinf(high) else f"in ({low:g}, {high:g}]"
        raise ValueError(f"{name} must be {rule}, got {value!r}. {remedy}")
