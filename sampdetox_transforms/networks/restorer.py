"""The networks of the ``restore`` preset: what does not belong to an image, and what the image was without it."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sampdetox_transforms.method.samplers import Denoiser
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.method.search import Answer
from sampdetox_transforms.networks.group_norm import GroupNorm
from sampdetox_transforms.networks.light_denoiser import LightDenoiser
from sampdetox_transforms.networks.pickling import WeightsAsBytes


@dataclass(frozen=True, kw_only=True)
class RestorerConfig:
    """Shape of a ``Restorer``: channels at 1/2, 1/4, ... of the resolution, residual blocks at each, down and up."""

    channels: int = 3
    widths: tuple[int, ...] = (64, 128, 128)
    down_blocks: tuple[int, ...] = (2, 1, 1)
    up_blocks: tuple[int, ...] = (2, 1)
    groups: int = 8


class Restorer(WeightsAsBytes):
    """A U-Net on 2x2 blocks of pixels, with one input plane more than the image: 1 where a pixel is erased.

    Erased pixels are set to 0 (grey) before the first layer, so that nothing in the answer depends on them. One call
    answers all three questions of ``Answer``; sizes are padded to a multiple of ``size_multiple`` with erased pixels.
    """

    def __init__(self, config: RestorerConfig | None = None):
        super().__init__()
        self.config = config = RestorerConfig() if config is None else config
        widths, planes = config.widths, config.channels + 1

        def blocks(width: int, number: int) -> nn.Sequential:
            return nn.Sequential(*[Block(width, config.groups) for _ in range(number)])

        self.stem = nn.Conv2d(4 * planes, widths[0], 3, padding=1)
        self.down = nn.ModuleList([blocks(w, n) for w, n in zip(widths, config.down_blocks, strict=True)])
        self.shrink = nn.ModuleList([nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths)])
        self.grow = nn.ModuleList([nn.Conv2d(b, a, 1) for a, b in pairwise(widths)])
        self.up = nn.ModuleList([blocks(w, n) for w, n in zip(reversed(widths[:-1]), config.up_blocks, strict=True)])
        self.head = nn.Conv2d(widths[0], 4 * planes, 3, padding=1)
        self.dense = nn.Sequential(nn.Linear(2 * sum(widths), 64), nn.ReLU(), nn.Linear(64, 1))

    @property
    def size_multiple(self) -> int:
        """Height and width that the layers take are multiples of this number."""
        return 2 ** len(self.config.widths)

    def forward(self, x: Float[Tensor, "b c h w"], erased: Bool[Tensor, "b 1 h w"] | None = None) -> Answer:
        """``x`` in [-1, 1], grey or in colour, with the pixels that ``erased`` marks left out."""
        if x.shape[1] == 1 != self.config.channels:
            answer = self(x.expand(-1, self.config.channels, -1, -1), erased)
            image = answer.image
            return answer if image is None else answer._replace(image=image.mean(dim=1, keepdim=True))
        height, width = x.shape[-2:]
        if erased is None:
            erased = x.new_zeros((x.shape[0], 1, height, width), dtype=torch.bool)  # not len(x): a trace would keep it
        x = torch.where(erased, 0, x)
        rows, columns = -height % self.size_multiple, -width % self.size_multiple
        x = functional.pad(x, (0, columns, 0, rows))
        plane = functional.pad(erased.to(x), (0, columns, 0, rows), value=1)
        h = self.stem(functional.pixel_unshuffle(torch.cat([x, plane], dim=1), 2).to(self.stem.weight.dtype))
        skips, pooled = [], []
        for i, level in enumerate(self.down):
            h = level(h)
            pooled += [h.mean(dim=(2, 3)), h.amax(dim=(2, 3))]
            if i < len(self.shrink):
                skips.append(h)
                h = self.shrink[i](h)
        dense = self.dense(torch.cat(pooled, dim=1))[:, 0]
        for grow, level in zip(reversed(self.grow), self.up, strict=True):
            h = level(functional.interpolate(grow(h), scale_factor=2.0) + skips.pop())
        out = functional.pixel_shuffle(self.head(h), 2)[..., :height, :width]
        out, dense = out.to(x.dtype), dense.to(x.dtype)
        return Answer(out[:, -1:], dense, out[:, :-1] + x[..., :height, :width])


class Specialists(WeightsAsBytes):
    """Two networks that answer as one: for local triggers and for filling, and for triggers that cover the image.

    They know images of 32 pixels; see ``SearchNetworks`` for the attributes, which were chosen on held-out training
    images for these two. A third, where there is one, is the denoiser of these images at low levels.
    """

    name, calls, finds_dense, suspicious_again = "small", 2, True, False
    as_is, side = 48, 32
    window, certain, possible, margins = 2, -0.5, -1.0, (0, 1)

    def __init__(
        self, local: nn.Module | None = None, dense: nn.Module | None = None, light: LightDenoiser | None = None
    ):
        super().__init__()
        self.local = Restorer() if local is None else local
        self.dense = Restorer(RestorerConfig(down_blocks=(2, 2, 4))) if dense is None else dense
        self.light = light

    def forward(self, x: Float[Tensor, "b c h w"], erased: Bool[Tensor, "b 1 h w"] | None = None) -> Answer:
        """As ``Restorer``; with ``erased`` only the first is asked, and its whole answer returned."""
        answer = self.local(x, erased)
        return answer if erased is not None else self.dense(x)._replace(local=answer.local)

    def look(self, x: Float[Tensor, "b c h w"]) -> Answer:
        """What both say of the images."""
        return self(x)

    def denoiser(self, schedule: Schedule, level: float) -> Denoiser | None:
        """The light one at the levels that it knows; else None, for the one that the algorithm is given."""
        light = self.light
        return light.at(schedule) if light is not None and light.knows(schedule, level) else None

    def estimate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The images as they would be without a trigger that covers all of them."""
        return self.dense(x).image

    def fill(self, x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
        """The masked pixels as the first predicts them from the others; nothing in them is looked at."""
        return torch.where(mask, self.local(x, mask).image.clamp(-1, 1), x)


class Block(nn.Module):
    """x + conv(relu(conv(norm(x)))): two 3x3 convolutions of one width."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(self.norm(x))))
