"""The authors' released program as it runs, kept apart from Algorithm 1: its results differ from the paper's text.

What it does otherwise than the paper (revision 826bd30 of the authors' repository; reimplemented, not copied):
levels 120 and 120 rather than 20 and 120, on the linear schedule; images are noised by one level more than they are
denoised by (array index 120 is level 121); one noise tensor serves all images and both stages; the variance is
beta_t; the map is a similarity on [0, 1] images with data_range 255, its channels weighed with blue's weight on red;
levels are whole numbers; every pixel is noised by at least level 1, and pixels at map level 0 keep that noise.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.method.checks import check_levels
from sampdetox_transforms.method.maps import minmax, ssim_map
from sampdetox_transforms.method.noise import fresh_noise
from sampdetox_transforms.method.result import Purified
from sampdetox_transforms.method.samplers import Denoiser, Noise, ddpm_step
from sampdetox_transforms.method.schedule import Schedule

BGR_WEIGHTS = (0.11, 0.59, 0.30)


@dataclass(frozen=True, kw_only=True)
class AuthorsCode:
    """The settings that the authors' program leaves open: its two levels, whole numbers.

    Raises:
        TypeError, ValueError: levels that are no numbers, below 0 or not whole.
    """

    t1: float = 120
    t2: float = 120
    schedule, sampler, stride = "linear", "ddpm", 1  # what the program fixes

    def __post_init__(self) -> None:
        check_levels(self, "t1", "t2")
        if int(self.t1) != self.t1 or int(self.t2) != self.t2:
            raise ValueError(f"the authors' levels must be whole numbers, got {self.t1} and {self.t2}. Round them.")

    @property
    def highest_level(self) -> float:
        """The highest level at which the network is asked: the program noises one level higher than t."""
        return max(self.t1, self.t2) + 1

    def run(
        self, x0: Float[Tensor, "b c h w"], denoiser: Denoiser, schedule: Schedule, *, noise: Noise = fresh_noise
    ) -> Purified:
        """``purify_authors_code`` with these levels."""
        return purify_authors_code(x0, denoiser, schedule, t1=int(self.t1), t2=int(self.t2), noise=noise)


def purify_authors_code(
    x0: Float[Tensor, "b c h w"],
    denoiser: Denoiser,
    schedule: Schedule,
    *,
    t1: int = 120,
    t2: int = 120,
    noise: Noise = fresh_noise,
) -> Purified:
    """Images in [-1, 1] in and out, t1 + t2 network calls; the denoiser must know level max(t1, t2) + 1.

    Exempt from two rules of ``purify``: the shared noise makes a result depend on its batch, and pixels at level 0
    keep noise of level 1.
    """
    shared = noise(x0)[:1]
    x_t = schedule.add_noise(x0, t1 + 1, shared)
    stage1 = _denoise(x_t, denoiser, schedule, t1, noise, None)
    similarity = ssim_map(x0, stage1, window="gaussian", data_range=255, channel_weights=BGR_WEIGHTS)
    timestep_map = (t2 * (1 - minmax(similarity))).trunc()
    x_t = schedule.add_noise(stage1, timestep_map + 1, shared)
    image = _denoise(x_t, denoiser, schedule, t2, noise, timestep_map)
    calls = torch.full((len(x0),), t1 + t2)
    sigma1, sigma2 = float(schedule.sigma(t1 + 1)), float(schedule.sigma(t2 + 1))
    return Purified(image, stage1, timestep_map, calls, sigma1, sigma2, difference_map=1 - similarity)


def _denoise(
    x_t: Tensor, denoiser: Denoiser, schedule: Schedule, start: int, noise: Noise, timestep_map: Tensor | None
) -> Tensor:
    for level in range(start, 0, -1):
        eps = denoiser(x_t, torch.full((len(x_t),), level - 1, device=x_t.device))
        x = ddpm_step(x_t, eps, schedule, level, level - 1, noise, variance_type="fixed_large")
        x_t = x if timestep_map is None else torch.where(timestep_map > level - 1, x, x_t)
    return x_t.clamp(-1, 1)
