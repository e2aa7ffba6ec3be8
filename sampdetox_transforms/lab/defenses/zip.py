"""ZIP (Shi et al. 2023): degrade the image linearly, and let a diffusion model restore what is lost."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.defenses.base import Defense, check_denoiser, check_fit, check_number, check_whole
from sampdetox_transforms.method.samplers import Level, Noise, ddim_step, denoise
from sampdetox_transforms.method.schedule import Schedule, scaled
from sampdetox_transforms.networks.denoiser import Denoiser

DEGRADATIONS = ("grey", "pool")

Projection = Callable[[Tensor], Tensor]  # A+ A: an image without what the degradation A loses


class Zip(Defense):
    """ZIP, image by image: reverse diffusion from pure noise, held to the degraded image.

    Source: Shi et al., "Black-box Backdoor Defense via Zero-shot Image Purification", NeurIPS 2023, and their code,
    whose steps these are: t = 950, 900, ..., 0. ``lam`` is the power of its ``at_threshold``: 10 in the code, .98 to 1
    in its examples. SampDetox (appendix A.2) writes of "its hyperparameter" of 2 and does not say which: it is the
    default of ``lam`` and of ``scale`` here. The authors take grey and pool for CIFAR-10, pool alone for GTSRB.
    Departures: the authors tile 64 images of one class into a mosaic of 256 x 256, here each image is restored alone,
    at its own size, by a denoiser for that size; no label is used. Where the size is no multiple of ``scale``, the
    blocks at the right and lower border are smaller.
    Unverified: ``lam`` of SampDetox's comparison; results with denoisers for small images.

    Args:
        denoiser: knows all noise levels up to ``start`` + 1.
        degradations: "grey" (mean of the channels), "pool" (mean of blocks), or both, averaged.
        scale: side of the blocks in pixels, 2 or more.
        lam: how long the degraded image guides: the guided image has the weight 1 - alphas_cumprod^lam.
        start, step: the first timestep, and timesteps between two network calls.
        seed, batch_size: see ``Defense``.

    Raises:
        ValueError: a setting out of range, a denoiser that does not know the levels; in a call also images whose
            channels are not the denoiser's, or grey images with the degradation "grey", which would keep all.
        TypeError: a denoiser that is none.
    """

    title = "ZIP"

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        degradations: Sequence[str] = DEGRADATIONS,
        scale: int = 2,
        lam: float = 2.0,
        start: int = 950,
        step: int = 50,
        seed: int | None = None,
        batch_size: int = 64,
    ):
        super().__init__(seed=seed, batch_size=batch_size)
        if isinstance(degradations, str) or not degradations:
            raise ValueError(
                f"degradations must be a tuple with one name at least, got {degradations!r}. Use ('pool',)."
            )
        for name in degradations:
            check_choice("degradations", name, DEGRADATIONS)
        check_whole("scale", scale, "The authors take 2 or 4.", low=2)
        check_number("lam", lam, "2 is the default.")
        check_whole("start", start, "The authors start at 950.", low=0)
        check_whole("step", step, "The authors take 50.")
        check_denoiser(denoiser, start + 1, f"ZIP from timestep {start}")
        self.denoiser = denoiser
        self.degradations, self.scale, self.lam, self.start, self.step = tuple(degradations), scale, lam, start, step
        self._levels = [t + 1.0 for t in range(start, -1, -step)] + [0.0]  # timestep t is noise level t + 1
        self.denoiser_calls = len(self._levels) - 1

    def purify(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        check_fit(self.denoiser, images)
        if images.shape[1] == 1 and "grey" in self.degradations:
            raise ValueError(
                f"grey images need other degradations than 'grey', got {self.degradations}. Use degradations=('pool',)."
            )
        x0, noise = images * 2 - 1, self.noise(images)
        projections = [
            mean_colour if name == "grey" else partial(mean_block, scale=self.scale) for name in self.degradations
        ]
        step = partial(guided_step, projections=projections, restored=[p(x0) for p in projections], lam=self.lam)
        x0 = denoise(noise(x0), self.denoiser, self.denoiser.schedule, self._levels, step, noise)
        return (x0 + 1) / 2


def guided_step(
    x_t: Float[Tensor, "b c h w"],
    eps: Float[Tensor, "b c h w"],
    schedule: Schedule,
    level: Level,
    next_level: float,
    noise: Noise,
    *,
    projections: Sequence[Projection],
    restored: Sequence[Float[Tensor, "b c h w"]],
    lam: float,
) -> Float[Tensor, "b c h w"]:
    """One step of ZIP, a ``Step`` of ``samplers.py``: what A keeps of x_t is replaced by what A keeps of the image.

    h_k = sqrt(ab) A+y + x_t - A+A x_t + sqrt(1 - ab) A+A eps, averaged over k; then (1 - ab^lam) h + ab^lam x_t goes
    into DDIM's step with eta 1. ``restored`` are the A+y = A+A x0.
    """
    log_signal = schedule.log_signal(level)
    signal_root, noise_root = (log_signal / 2).exp(), (-torch.expm1(log_signal)).sqrt()
    pairs = zip(projections, restored, strict=True)
    replaced = torch.stack([scaled(signal_root, y) - p(x_t - scaled(noise_root, eps)) for p, y in pairs])
    guided = x_t + scaled(-torch.expm1(lam * log_signal), replaced.mean(0))
    return ddim_step(guided, eps, schedule, level, next_level, noise, eta=1.0)


def mean_colour(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """A+A of "grey": each pixel's mean over the channels, in all of them."""
    return x.mean(dim=1, keepdim=True).expand_as(x)


def mean_block(x: Float[Tensor, "b c h w"], *, scale: int) -> Float[Tensor, "b c h w"]:
    """A+A of "pool": the mean over each block of ``scale`` x ``scale`` pixels, in all of them."""
    height, width = x.shape[-2:]
    pooled = functional.avg_pool2d(x, scale, ceil_mode=True)
    return pooled.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)[..., :height, :width]
