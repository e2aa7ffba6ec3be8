"""Waves across the image: a spectral line that stands out, and is the same all over the image, taken out of it.

No network is asked. A sinusoid added to every row (SIG, Barni et al. 2019) has in each strip of the image the same
amplitude and phase; what a photograph has at that frequency changes from strip to strip, and its spectrum falls off
smoothly. Pure functions on (b, c, h, w) tensors in [-1, 1].
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor
from torch.nn import functional

STRIPS = 16  # that an image is cut into along one side; also the smallest side of an image that is searched
LOWEST = 3  # periods across the image from which on a wave can stand out; an object itself is slower
SLANT = 5  # periods across the strips up to which a slanted wave is found
BESIDE = (2, 6)  # the spectral lines that one is compared with: from 2 to 6 beside it
FAINT = 2 / 255  # differences between strips below this are rounding
STEADY = 10.0  # times the spread of the strips from which on a wave is as steady as can be
WAVES = 2  # that are taken out along each side, one after the other


class Wave(NamedTuple):
    """The spectral line that stands out most, in each image, with a phase that turns along the strips or not.

    Attributes:
        score: (b,), its amplitude beside the spread of the strips, times its height above its neighbours.
        along, across: (b,), periods along the strips and across all of them.
        excess: (b,), the share of its amplitude by which it is higher than its neighbours.
    """

    score: Float[Tensor, " b"]
    along: Float[Tensor, " b"]
    across: Float[Tensor, " b"]
    excess: Float[Tensor, " b"]


def without_waves(
    x: Float[Tensor, "b c h w"], least: float = 16.0
) -> tuple[Float[Tensor, "b c h w"], Bool[Tensor, " b"]]:
    """Images without the waves whose score is ``least`` or more, and which images lost one; others untouched.

    Only where that makes the image ``smoother``. A wave is brought down to the lines beside it, in each channel by the
    same share. A ``least`` of 0 looks for none.
    """
    lost = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if not least or min(x.shape[-2:]) < STRIPS:
        return x, lost
    result = x if x.dtype == torch.float64 else x.float()
    left = torch.arange(len(x), device=x.device)
    for _ in range(WAVES):
        for turned in (False, True):
            image = result[left].mT if turned else result[left]
            wave = steadiest(image)
            index = (wave.score >= least).nonzero()[:, 0]
            if len(index):
                drawn = drawing(image[index], Wave(*(part[index] for part in wave)))
                better = smoother(image[index] - drawn, image[index])
                index, drawn = left[index[better]], drawn[better]
                result = result.index_add(0, index, drawn.mT if turned else drawn, alpha=-1)
                lost = lost.index_fill(0, index, True)
        left = left[lost[left]]  # where there was one there may be another
        if not len(left):
            break
    return torch.where(lost[:, None, None, None], result.clamp(-1, 1).to(x.dtype), x), lost


def smoother(x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Bool[Tensor, " b"]:
    """Whether x has less total variation than y (Rudin et al. 1992), as an image has without what was laid over it.

    What belongs to the image lies in a part of it: taken away as a wave it leaves one in all the rest.
    """
    return variation(x) < variation(y)


def variation(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """The mean difference of neighbours."""
    return x.diff(dim=-2).abs().mean(dim=(1, 2, 3)) + x.diff(dim=-1).abs().mean(dim=(1, 2, 3))


def steadiest(x: Float[Tensor, "b c h w"]) -> Wave:
    """The wave along the rows that stands out most of each image's mean of channels."""
    lines = spectrum(strips(x.mean(dim=1)))
    turned = torch.fft.fft(lines, dim=1)[:, [*range(SLANT + 1), *range(-SLANT, 0)]] / STRIPS
    power = turned.abs().square()
    spread = ((lines.abs().square().sum(dim=1, keepdim=True) - STRIPS * power) / (STRIPS - 1)).clamp(min=FAINT**2)
    height = power.sqrt().clamp(min=1e-6)
    usual = beside(height)
    score = (STRIPS * power / spread).sqrt().clamp(max=STEADY) * height / usual
    peak = score[..., LOWEST:].flatten(1).max(dim=1)
    count = score.shape[-1] - LOWEST
    across, along = peak.indices // count, peak.indices % count + LOWEST
    chosen = torch.arange(len(x), device=x.device), across, along
    across = torch.where(across > SLANT, across - 2 * SLANT - 1, across)
    return Wave(peak.values, along.to(x), across.to(x), (1 - usual / height)[chosen].clamp(min=0))


def strips(plane: Float[Tensor, "b h w"]) -> Float[Tensor, "b s w"]:
    """The means of 16 strips of rows, less their common mean; rows that are left over count for none."""
    rows = plane.shape[1] // STRIPS
    means = plane[:, : rows * STRIPS].unflatten(1, (STRIPS, rows)).mean(dim=2)
    return means - means.mean(dim=(1, 2), keepdim=True)


def spectrum(signal: Float[Tensor, "b s w"]) -> Complex[Tensor, "b s f"]:
    """Complex amplitudes of the sinusoids in each strip (Hann window: what does not fit the width leaks little)."""
    width = signal.shape[-1]
    return torch.fft.rfft(signal * hann(signal)) * (4 / width)


def hann(like: Float[Tensor, "*_ w"]) -> Float[Tensor, " w"]:
    """The window of ``spectrum``."""
    return torch.hann_window(like.shape[-1], dtype=like.dtype, device=like.device)


def beside(height: Float[Tensor, "b v f"]) -> Float[Tensor, "b v f"]:
    """What a line would be between those beside it: the geometric mean of the median below it and the median above.

    A spectrum that falls off steeply is no wave.
    """
    near, far = BESIDE
    padded = functional.pad(height, (far, far), mode="reflect")
    windows = padded.unfold(-1, far - near + 1, 1).median(dim=-1).values
    return (windows[..., : height.shape[-1]] * windows[..., far + near :]).sqrt()


def drawing(x: Float[Tensor, "b c h w"], wave: Wave) -> Float[Tensor, "b c h w"]:
    """The wave as it lies in each channel, as far as it is in excess; its frequency is refined between the lines."""
    width, rows = x.shape[-1], x.shape[-2] // STRIPS
    signal = strips(x.flatten(0, 1)).unflatten(0, x.shape[:2]) * hann(x)
    middle = (torch.arange(STRIPS, dtype=x.dtype, device=x.device) + 0.5) * rows - 0.5
    column = torch.arange(width, dtype=x.dtype, device=x.device)
    tilt = turning(wave.across / (STRIPS * rows), middle)
    folded = torch.einsum("bcsw,bs->bcw", signal.to(tilt.dtype), tilt.conj()) / STRIPS
    tries = wave.along[:, None] + torch.linspace(-0.5, 0.5, 11, dtype=x.dtype, device=x.device)
    found = torch.einsum("bcw,btw->btc", folded, turning(tries / width, column).conj()) * (4 / width)
    best = found.detach().abs().square().sum(dim=-1).argmax(dim=1)
    chosen = torch.arange(len(x), device=x.device), best
    flattened = torch.sinc(wave.across / STRIPS)  # what the mean over a strip leaves of a slanted wave
    amplitude = found[chosen] * (wave.excess / flattened)[:, None]
    all_rows = turning(wave.across / (STRIPS * rows), torch.arange(x.shape[-2], dtype=x.dtype, device=x.device))
    left, right = amplitude[:, :, None] * all_rows[:, None], turning(tries[chosen] / width, column)
    left, right = torch.view_as_real(left), torch.view_as_real(right.conj().resolve_conj())
    return left @ right.mT[:, None]  # the real part of a product of two complex numbers


def turning(frequency: Float[Tensor, "*b"], position: Float[Tensor, " n"]) -> Complex[Tensor, "*b n"]:
    """exp(2 pi i f x)."""
    angle = 2 * math.pi * frequency[..., None] * position
    return torch.polar(torch.ones_like(angle), angle)
