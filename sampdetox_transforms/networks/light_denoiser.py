"""The denoiser of the light stage for small images: it knows little noise only, for a fifth of the U-Net's time."""

from functools import partial

from jaxtyping import Float, Real
from torch import Tensor

from sampdetox_transforms.method.samplers import Denoiser
from sampdetox_transforms.method.schedule import Schedule, scaled
from sampdetox_transforms.networks.photo_unet import PhotoUNet
from sampdetox_transforms.networks.pickling import WeightsAsBytes
from sampdetox_transforms.networks.tiles import of_any_size

SIGMAS = (0.02, 0.25)  # std of the noise that it was trained on, beside [-1, 1]: levels 2 to 75 of the linear schedule


def light_network() -> PhotoUNet:
    """Image with noise -> that noise, with a standard deviation of 1: 146,000 multiplications and additions a pixel."""
    return PhotoUNet(3, 3, unshuffle=2, widths=(64, 128, 128), down=(2, 2, 2), up=(2, 1), conditions=1)


class LightDenoiser(WeightsAsBytes):
    """A network that is told how much noise there is, as a denoiser at the low levels of any schedule."""

    def __init__(self, network: PhotoUNet | None = None):
        super().__init__()
        self.network = light_network() if network is None else network

    def knows(self, schedule: Schedule, level: float) -> bool:
        """Whether it was trained for the noise of this level, and so of all below."""
        return float(schedule.sigma(level)) <= SIGMAS[1]

    def at(self, schedule: Schedule) -> Denoiser:
        """(x_t, t) -> eps at levels t + 1 of a schedule."""
        return partial(self.noise_in, schedule)

    def noise_in(
        self, schedule: Schedule, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise in ``x_t`` (equation 4 of the paper), with a standard deviation of 1; grey images, or in colour."""
        level = t.double() + 1
        x = scaled(schedule.signal(level)[:, None, None, None].rsqrt(), x_t)  # the image plus noise of std sigma
        noise = self(x.expand(-1, 3, -1, -1), schedule.sigma(level).to(x))
        return noise.mean(dim=1, keepdim=True) if x_t.shape[1] == 1 else noise

    def forward(self, x: Float[Tensor, "b 3 h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """The noise in images in [-1, 1] plus noise of std ``sigma``, divided by it. Very long images go by tiles."""

        def noise(x: Tensor, sigma: Tensor) -> Tensor:
            return self.network(x, told(sigma))

        return of_any_size(noise, x, sigma, self.network.size_multiple)


def told(sigma: Float[Tensor, " b"]) -> Float[Tensor, "b 1"]:
    """What the network is told of each image: its noise on a logarithmic scale, in [-.5, .9] for ``SIGMAS``."""
    return (sigma.clamp(min=SIGMAS[0]).log() / 2 + 1.5)[:, None]
