"""Hidden bits: residuals of small networks that learnt to hide a message, as the encoders of StegaStamp and ISSBA do.

Random filters make residuals that look alike from one image to the next. An encoder that was trained hides its message
where an image is full of detail, and in each image by another residual. A few dozen small encoders are trained, each
with a decoder of its own, and each under other terms: how much a change costs, where it costs most, in which
frequencies, grey or in colour.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional

from sampdetox_transforms.training.triggers.draw import Every, Images, uniform

BITS, GRID, PLANES = 24, 8, 4  # a message becomes PLANES x GRID x GRID values
FINE, COARSE = 16, 32  # channels at the images' resolution, and at half of it
LIMIT = 0.12  # the largest change
BATCH = 24  # images in a step
READABLE, RISE = 0.9, 0.3  # share of the bits from which on a change costs something; share of the steps of its rise


class Terms(NamedTuple):
    """What an encoder is trained under.

    Attributes:
        grey: whether all channels change alike.
        place: where the message goes in: 0 at half of the resolution, 1 at the whole, 2 at both.
        price: of a change's mean square.
        flat: how much more a change costs where the image is flat.
        smooth: how much more its smooth part costs; below 0 its fine part.
    """

    grey: bool
    place: int
    price: float
    flat: float
    smooth: float


def drawn_terms(generator: Generator) -> Terms:
    """Four in ten grey, prices from 20 to 400; where and in which frequencies changes cost more varies."""
    grey, place, price, flat, smooth = torch.rand(5, generator=generator).tolist()
    return Terms(grey < 0.4, int(place * 3), 20 * 20**price, max(0.0, 2 * flat - 1), 6 * smooth - 2)


class Encoder(nn.Module):
    """Images and bits to the residual that hides them: convolutions at the images' resolution and at half of it."""

    def __init__(self, terms: Terms):
        super().__init__()
        self.terms = terms
        self.planes = nn.Linear(BITS, PLANES * GRID * GRID)
        self.first = nn.Conv2d(3 + PLANES, FINE, 3, padding=1)
        self.down = nn.Conv2d(FINE, COARSE, 3, 2, padding=1)
        self.join = nn.Conv2d(COARSE + PLANES, COARSE, 3, padding=1)
        self.up = nn.Conv2d(COARSE + FINE, FINE, 3, padding=1)
        self.last = nn.Conv2d(FINE, 1 if terms.grey else 3, 3, padding=1)

    def forward(self, images: Images, bits: Float[Tensor, "n k"]) -> Images:
        def planes(like: Tensor, used: bool) -> Tensor:
            grid = self.planes(bits * 2 - 1).view(-1, PLANES, GRID, GRID)
            return functional.interpolate(grid * used, size=like.shape[-2:], mode="bilinear")

        place = self.terms.place
        fine = self.first(torch.cat([images * 2 - 1, planes(images, place > 0)], dim=1)).relu()
        coarse = self.down(fine).relu()
        coarse = self.join(torch.cat([coarse, planes(coarse, place != 1)], dim=1)).relu()
        grown = functional.interpolate(coarse, size=fine.shape[-2:])
        residual = self.last(self.up(torch.cat([grown, fine], dim=1)).relu())
        return LIMIT * residual.float().tanh().expand_as(images)


def decoder() -> nn.Module:
    """Images to a logit for each bit."""
    return nn.Sequential(
        nn.Conv2d(3, FINE, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(FINE, COARSE, 3, 2, padding=1),
        nn.ReLU(),
        nn.Conv2d(COARSE, COARSE, 3, 2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(COARSE * 16, BITS),
    )


def hidden_bits(images: Images, every: Every, generator: Generator, encoders: Sequence[Encoder]) -> Images:
    """Plus what one of the encoders hides in each image, at 60 to 160 % of the strength that it learnt."""
    n = len(images)
    index = torch.randint(len(encoders), (n,), generator=generator, device=images.device)
    bits = torch.randint(2, (n, BITS), generator=generator, device=images.device).to(images)
    residual = torch.zeros_like(images)
    with torch.no_grad():
        for k in index.unique().tolist():
            residual[index == k] = encoders[k](images[index == k], bits[index == k])
    return images + residual * uniform((n, 1, 1, 1), 0.6, 1.6, images, generator)


def train_encoder(
    images: Callable[[int, Generator], Images],
    steps: int,
    generator: Generator,
    *,
    learning_rate: float = 2e-3,
    bf16: bool = False,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Encoder:
    """An encoder under drawn terms.

    Loss: binary cross-entropy of the bits, plus what the change costs, once nine bits of ten are read.

    Args:
        images: draws n images in [0, 1].
        progress: called after each step with the steps done and the loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        encoder, reader = Encoder(drawn_terms(generator)), decoder()
    adam = torch.optim.Adam([*encoder.parameters(), *reader.parameters()], learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    read_at = None
    for step in range(steps):
        x = images(BATCH, generator)
        bits = torch.randint(2, (BATCH, BITS), generator=generator).to(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            residual = encoder(x, bits)
            logits = reader((x + residual).clamp(0, 1) * 2 - 1).float()
        if read_at is None and float(((logits > 0) == bits.bool()).float().mean()) > READABLE:
            read_at = step
        share = 0.0 if read_at is None else min(1.0, (step - read_at) / (RISE * steps))
        loss = functional.binary_cross_entropy_with_logits(logits, bits) + share * cost(x, residual, encoder.terms)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        cosine.step()
        progress(step + 1, float(loss.detach()))
    return encoder.eval().requires_grad_(False)


def cost(x: Images, residual: Images, terms: Terms) -> Tensor:
    """The price of a change: its mean square, where and in what it costs more."""
    contrast = (averaged(x.square()) - averaged(x).square()).clamp(min=0).mean(dim=1, keepdim=True).sqrt()
    smooth = averaged(residual)
    square = residual.square() + max(0.0, terms.smooth) * smooth.square()
    square = square + max(0.0, -terms.smooth) * (residual - smooth).square()
    return terms.price * ((0.05 / (contrast + 0.02)) ** terms.flat * square).mean()


def averaged(x: Images) -> Images:
    """The mean of 5 x 5 pixels around each."""
    return functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
