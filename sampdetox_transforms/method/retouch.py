"""Dense triggers that need no network: colour casts, warps, waves. Pure functions on (b, c, h, w) tensors in [-1, 1].

Each takes away what one kind of trigger needs and a classifier hardly does. All of them are differentiable, look at
each image alone, and clamp their result to [-1, 1].
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.method.windows import gaussian_window, local_mean

SIDE = 32  # the shorter side, in pixels, that sizes of casts are given for


def without_colour_cast(
    x: Float[Tensor, "b c h w"], sigma: float = 8.0, amount: float | Float[Tensor, " b"] = 1.0
) -> Float[Tensor, "b c h w"]:
    """The image without the low frequencies of its colour; grey images stay as they are.

    y is the mean of the channels, c = x - y the colour: x' = y + c - amount * blur(c). A smooth additive trigger (Zeng
    et al. 2021) is mostly such a cast. The mean colour goes too: this is grey world (Buchsbaum 1980) at each place.

    Args:
        x: images in [-1, 1].
        sigma: width of the Gaussian blur, in pixels of an image whose shorter side is 32.
        amount: share of the blurred colour that is taken away, one for all or one for each image; 0 changes nothing, 1
            takes all of it.
    """
    if x.shape[1] == 1 or (not isinstance(amount, Tensor) and amount == 0):
        return x
    if isinstance(amount, Tensor):
        amount = amount.to(x)[:, None, None, None]
    colour = x - x.mean(dim=1, keepdim=True)
    return (x - amount * blurred(colour, sigma * min(x.shape[-2:]) / SIDE)).clamp(-1, 1)


def resampled(x: Float[Tensor, "b c h w"], factor: float) -> Float[Tensor, "b c h w"]:
    """Shrunk by a factor in (0, 1] and enlarged again (bicubic, antialiased): 1 changes nothing.

    A backdoor that is tied to where each pixel lies, as that of a warp (Nguyen and Tran 2021), does not survive it.
    """
    size = list(x.shape[-2:])
    small = [max(1, round(side * factor)) for side in size]
    if small == size:
        return x
    shrunk = functional.interpolate(x, size=small, mode="bicubic", antialias=True)
    return functional.interpolate(shrunk, size=size, mode="bicubic").clamp(-1, 1)


def sharpened(x: Float[Tensor, "b c h w"], amount: float, sigma: float = 0.8) -> Float[Tensor, "b c h w"]:
    """Unsharp mask: x' = x + amount * (x - blur(x)), sigma in pixels; an amount of 0 changes nothing.

    It gives back what diffusion and resampling blur; blur itself is what the backdoor of a warp answers to.
    """
    return (x + amount * (x - blurred(x, sigma))).clamp(-1, 1) if amount else x


def blurred(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
    """Gaussian blur of every plane, cut off at 3 sigma, with mirrored borders."""
    return local_mean(x, gaussian_window(sigma, max(1, round(3 * sigma)), device=x.device).to(x.dtype))
