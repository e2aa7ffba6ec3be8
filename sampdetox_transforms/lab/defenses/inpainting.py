"""Restoring masked pixels: from their surroundings, and by reverse diffusion that puts the known pixels back."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sampdetox_transforms.lab.checks import check_images
from sampdetox_transforms.lab.defenses.base import SLACK, check_denoiser, check_fit, check_number, check_whole
from sampdetox_transforms.method.noise import SeededNoise, fresh_noise
from sampdetox_transforms.method.samplers import Level, Noise, ddim_step, denoise, grid
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.method.windows import gaussian_window, local_mean
from sampdetox_transforms.networks.denoiser import Denoiser


class DiffusionInpainter(torch.nn.Module):
    """Stands in for a masked autoencoder: restores masked pixels, without a look at what the mask hides.

    The pixels are filled from their surroundings (``fill``), noised to ``level`` and denoised with DDIM, where after
    each step the known pixels are put back, noised to that step's level (``repaint``). The default is one step from
    level 100: our choice, since on GTSRB's training images it came nearer to the hidden pixels than the fill alone,
    and than more steps. Level 0 leaves the fill as it is and calls no network.

    Args:
        denoiser: knows noise levels up to ``level``.
        level: noise level on the denoiser's schedule.
        stride: levels between two network calls.
        seed: None draws fresh noise; with a seed, noise depends on the seed, the known pixels and the mask alone.
        batch_size: how many images go through the network at once.

    Raises:
        ValueError: a setting out of range, a level that the denoiser does not know; in a call also images outside
            [0, 1] or a mask of another shape.
        TypeError: a denoiser that is none; in a call images that are no floats, or a mask that is not boolean.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        level: int = 100,
        stride: float = 100,
        seed: int | None = None,
        batch_size: int = 64,
    ):
        super().__init__()
        check_whole("level", level, "0 calls no network.", low=0)
        check_number("stride", stride, "100 makes one step of the default level.")
        check_whole("batch_size", batch_size, "Leave it out for the default.")
        check_denoiser(denoiser, level, f"inpainting from level {level}")
        self.denoiser = denoiser
        self.level, self.stride, self.seed, self.batch_size = level, stride, seed, batch_size
        self.denoiser_calls = len(grid(level, stride)) - 1
        self.train(False)

    def train(self, mode: bool = True) -> "DiffusionInpainter":
        """Stay in eval mode, whatever the module around it does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1] whose pixels are restored where ``mask`` is true, and untouched elsewhere."""
        check_images(images, slack=SLACK)
        check_mask(mask, images)
        check_fit(self.denoiser, images)
        pairs = zip(images.float().split(self.batch_size), mask.split(self.batch_size), strict=True)
        return torch.cat([self._restore(*pair) for pair in pairs]).to(images.dtype)

    def _restore(self, images: Tensor, mask: Tensor) -> Tensor:
        filled = fill(images, mask)
        if self.level == 0:
            return filled
        # keyed by what is known only; a filled pixel could round either way
        noise = fresh_noise if self.seed is None else SeededNoise(images.masked_fill(mask, 0) * 2 - 1, self.seed)
        levels = grid(self.level, self.stride)
        restored = repaint(filled * 2 - 1, mask, self.denoiser, self.denoiser.schedule, levels, noise)
        return torch.where(mask, (restored + 1) / 2, images)


def repaint(
    x0: Float[Tensor, "b c h w"],
    mask: Bool[Tensor, "b 1 h w"],
    denoiser: Denoiser,
    schedule: Schedule,
    levels: list[float],
    noise: Noise,
) -> Float[Tensor, "b c h w"]:
    """Noise images in [-1, 1] to the first level and denoise them to 0 inside the mask; the rest stays as it is.

    RePaint (Lugmayr et al. 2022, Algorithm 1) without its resampling (U = 1), and with DDIM: after each step the known
    pixels are drawn from q(x_next | x0). RePaint starts from pure noise, this from the noised image.
    """
    x_t = schedule.add_noise(x0, levels[0], noise(x0))
    step = partial(repaint_step, x0=x0, mask=mask)
    return denoise(x_t, denoiser, schedule, levels, step, noise).clamp(-1, 1)


def repaint_step(
    x_t: Float[Tensor, "b c h w"],
    eps: Float[Tensor, "b c h w"],
    schedule: Schedule,
    level: Level,
    next_level: float,
    noise: Noise,
    *,
    x0: Float[Tensor, "b c h w"],
    mask: Bool[Tensor, "b 1 h w"],
) -> Float[Tensor, "b c h w"]:
    """A ``Step`` of ``samplers.py``: RePaint's lines 4 to 8, with DDIM in place of DDPM."""
    restored = ddim_step(x_t, eps, schedule, level, next_level, noise)
    known = x0 if next_level == 0 else schedule.add_noise(x0, next_level, noise(x0))
    return torch.where(mask, restored, known)


def fill(images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
    """Masked pixels as the Gaussian average of the known ones around, in the smallest window that holds any.

    Normalised convolution (Knutsson and Westin 1993) with windows of radius 1, 2, 4, ...; an image that is masked
    everywhere becomes .5. What the mask hides has no influence.
    """
    known = (~mask).to(images)
    weighted, result, missing = images.masked_fill(mask, 0), images.masked_fill(mask, 0.5), mask
    radius = 1
    while radius < 2 * max(images.shape[-2:]) and bool(missing.any()):
        window = gaussian_window(radius / 2, radius, device=images.device)
        weight = local_mean(known, window)
        found = missing & (weight > (window[0].square() / 2).to(weight))  # one pixel weighs window[0]^2 at least
        mean = local_mean(weighted, window) / torch.where(found, weight, 1.0)
        result, missing = torch.where(found, mean, result), missing & ~found
        radius *= 2
    return result


def check_mask(mask: Tensor, images: Tensor) -> None:
    """Refuse all but booleans (b, 1, h, w) for images (b, c, h, w)."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a boolean tensor, True where a pixel is unknown, got {kind}. Use mask.bool().")
    if images.ndim != 4 or mask.shape != (len(images), 1, *images.shape[-2:]):
        raise ValueError(
            f"mask must have the shape (b, 1, h, w) for images (b, c, h, w), got {tuple(mask.shape)} and "
            f"{tuple(images.shape)}. Give one mask an image."
        )
