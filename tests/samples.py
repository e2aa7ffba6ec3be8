"""Images, generators and fakes that several tests share."""

from functools import partial

import numpy as np
import torch
from torch import nn

from sampdetox_transforms import Schedule
from sampdetox_transforms.method.answer import Answer
from sampdetox_transforms.method.calibration import Calibration
from sampdetox_transforms.method.restore import purify_and_restore


def images(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    """Images of 8-bit values in [0, 1]; black and white pixels among them."""
    values = np.random.default_rng(seed).integers(-20, 276, shape).clip(0, 255)
    return torch.tensor(values / 255, dtype=dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The default algorithm with networks whose answers are known ---------------------------------------------------------

CALIBRATION = Calibration(*[tuple(i / 40 - 10 for i in range(401))] * 2, 0.05)  # clean: -10 to 0


class WhiteIsForeign(nn.Module):
    """A restorer that is known: white pixels belong to a trigger, a blue image carries a dense one; fills with red."""

    def __init__(self):
        super().__init__()
        self.calls, self.images = 0, 0

    def forward(self, x, erased=None) -> Answer:
        self.calls, self.images = self.calls + 1, self.images + len(x) * (2 if erased is None else 1)
        white = (x > 0.9).all(dim=1, keepdim=True)
        local = torch.where(white, 8.0, -8.0)
        dense = torch.where(x[:, 2].mean(dim=(1, 2)) > x[:, 0].mean(dim=(1, 2)) + 0.5, 8.0, -8.0)
        return Answer(torch.tensor([0.5, -0.5, -0.5])[:, None, None].expand_as(x), local, dense)


def flat(*colour: float, n: int = 1) -> torch.Tensor:
    return torch.tensor(colour).float()[:, None, None].expand(n, 3, 16, 16).clone()


def patched(x: torch.Tensor, size: int = 3) -> torch.Tensor:
    x = x.clone()
    x[..., 2 : 2 + size, 4 : 4 + size] = 1
    return x


def silent(x_t, t):
    """A denoiser that finds no noise."""
    return torch.zeros_like(x_t)


run = partial(
    purify_and_restore,
    denoiser=silent,
    schedule=Schedule.named("linear"),
    calibration=CALIBRATION,
    t1=0,
    t2=0,
    stride=20,
)
as_it_is = partial(run, estimate=False)  # WhiteIsForeign's estimate is red all over
