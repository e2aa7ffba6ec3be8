"""Images, generators and fakes that several tests share."""

import numpy as np
import torch
from torch import Tensor, nn

from sampdetox_transforms import Purified, Schedule
from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.method.noise import fresh_noise
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.search import Answer


def images(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    """Images of 8-bit values in [0, 1]; black and white pixels among them."""
    values = np.random.default_rng(seed).integers(-20, 276, shape).clip(0, 255)
    return torch.tensor(values / 255, dtype=dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Killed(BaseException):
    """What stops a run, as Ctrl-C or the kernel would."""


# The default algorithm with networks whose answers are known ---------------------------------------------------------

CALIBRATION = Calibration(*[tuple(round(i / 40 - 10, 3) for i in range(401))] * 2, 0.05)  # clean: -10 to 0
CALIBRATIONS = Calibrations(CALIBRATION, CALIBRATION)
LINEAR = Schedule.named("linear")
RED = (0.5, -0.5, -0.5)


class WhiteIsForeign(nn.Module):
    """Search networks that are known: white is a trigger, a blue image carries a dense one; all is filled with red."""

    name, calls, finds_dense, suspicious_again = "small", 2, True, False
    as_is, side = 48, 32
    window, certain, possible, margins = 2, -0.5, -1.0, (0, 1)

    def __init__(self):
        super().__init__()
        self.looks = self.fills = self.asked = 0  # the last counts images, once a network

    def look(self, x) -> Answer:
        self.looks, self.asked = self.looks + 1, self.asked + self.calls * len(x)
        white = (x > 0.9).all(dim=1, keepdim=True)
        dense = torch.where(x[:, -1].mean(dim=(1, 2)) > x[:, 0].mean(dim=(1, 2)) + 0.5, 8.0, -8.0)
        return Answer(torch.where(white, 8.0, -8.0), dense, self.estimate(x))

    def estimate(self, x):
        red = torch.tensor(RED) if x.shape[1] == 3 else torch.tensor(RED).mean(dim=0, keepdim=True)
        return red[:, None, None].expand_as(x)

    def fill(self, x, mask):
        self.fills, self.asked = self.fills + 1, self.asked + len(x)
        return torch.where(mask, self.estimate(x), x)

    def denoiser(self, schedule, level):
        return None


def flat(*colour: float, n: int = 1) -> torch.Tensor:
    return torch.tensor(colour).float()[:, None, None].expand(n, 3, 16, 16).clone()


def patched(x: torch.Tensor, size: int = 3) -> torch.Tensor:
    x = x.clone()
    x[..., 2 : 2 + size, 4 : 4 + size] = 1
    return x


def silent(x_t, t):
    """A denoiser that finds no noise."""
    return torch.zeros_like(x_t)


# What is done to dense triggers, and to the result, without a network.
PLAIN = {"t2_light": None, "dense_gain": 1, "jitter": 0, "colour_gain": 0, "waves": 0}


def run(
    x0,
    networks,
    *,
    denoiser=silent,
    calibrations=CALIBRATIONS,
    noise=fresh_noise,
    matched=None,
    t1=0,
    t2=0,
    stride=20,
    **settings,
) -> Purified:
    """``Restore`` with these settings, one t1 for all sizes, and nothing retouched unless it is asked for."""
    algorithm = Restore(
        **{"t1": t1, "t1_large": None, "t1_doubt": None, "t2": t2, "stride": stride, **PLAIN} | settings
    )
    search = {"networks": networks, "calibrations": calibrations}
    return algorithm.run(x0, denoiser, LINEAR, noise=noise, matched=matched, **search)


def as_it_is(x0, networks, **settings) -> Purified:
    """The same, with nothing taken from images that are not flagged: the estimate of WhiteIsForeign is red all over."""
    return run(x0, networks, gain=0, **settings)


def dead_leaves(n: int, side: int, seed: int) -> Tensor:
    """Images of overlapping boxes (Mumford and Gidas 2001): their gradients are mostly 0, as those of photographs."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 1, 1, generator=generator).repeat(1, 1, side, side)
    for image in images:
        for _ in range(30):
            top, left, height, width = (torch.rand(4, generator=generator) * side).long().tolist()
            image[:, top : top + height // 2 + 2, left : left + width // 2 + 2] = torch.rand(
                3, 1, 1, generator=generator
            )
    return (images + 0.01 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
