"""Waves across the image: a spectral line that stands out of those beside it, taken out of a single image."""

import torch
from jaxtyping import Float
from torch import Tensor

LOWEST = 3  # periods across the image from which on a line can stand out; an object itself is slower


def without_lines(x: Float[Tensor, "b c h w"], ratio: float = 4.0) -> Float[Tensor, "b c h w"]:
    """Images in [-1, 1] without the components constant along columns or rows that stand out; others untouched.

    The mean over the rows is a signal along the row. In a photograph its spectrum falls off smoothly; a sinusoid added
    to every row (SIG, Barni et al. 2019) is one line of it. A line of the channels' mean above ``ratio`` times the
    median of the others from ``LOWEST`` on is brought down to that median, in each channel by the same share; then
    likewise for columns.
    """
    for dim in (-2, -1):
        x = x - _standing_out(x.mean(dim=dim), ratio).unsqueeze(dim)
    return x.clamp(-1, 1)


def _standing_out(signal: Float[Tensor, "b c n"], ratio: float) -> Float[Tensor, "b c n"]:
    """What is to be taken away from signals: the excess of the lines that stand out."""
    size = signal.shape[-1]
    spectrum = torch.fft.rfft(signal)
    if spectrum.shape[-1] < LOWEST + 3:
        return torch.zeros_like(signal)
    height = spectrum.mean(dim=1, keepdim=True).abs()
    usual = height[..., LOWEST:].median(dim=-1, keepdim=True).values
    excess = torch.where(height > ratio * usual, 1 - usual / height.clamp(min=1e-12), 0)
    excess = torch.cat([torch.zeros_like(excess[..., :LOWEST]), excess[..., LOWEST:]], dim=-1)
    return torch.fft.irfft(spectrum * excess, n=size)
