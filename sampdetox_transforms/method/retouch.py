"""Dense triggers that need no network: colour casts, warps, waves. Pure functions on (b, c, h, w) tensors in [-1, 1].

Each takes away what one kind of trigger needs and a classifier hardly does. All of them are differentiable, look at
each image alone, and clamp their result to [-1, 1].
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.method.windows import gaussian_window, local_mean

GREY_LEVELS = 127.5  # to one of [-1, 1]

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
    return (x - amount * smooth_colour(x, sigma)).clamp(-1, 1)


def smooth_colour(x: Float[Tensor, "b c h w"], sigma: float = 8.0) -> Float[Tensor, "b c h w"]:
    """What each channel has beside the mean of them, blurred by ``sigma`` pixels of an image of 32; 0 for grey ones."""
    return smooth(x - x.mean(dim=1, keepdim=True), sigma)


def colour_amount(
    x: Float[Tensor, "b c h w"], estimate: Float[Tensor, "b c h w"] | None, least: float = 0.0, gain: float = 1.6
) -> Float[Tensor, " b"]:
    """How much of its smooth colour each image loses: ``least``, and all where the estimate takes much of it.

    least + (1 - least) min(1, (gain r)^2), with r the root mean square of the smooth colour that the estimate of the
    image without its dense trigger takes, in grey levels.

    Args:
        estimate: None for none; then every image loses the least.
        least: share that every image loses, in [0, 1].
        gain: all of it is taken from an r of 1 / gain grey levels on; 0 takes the least from every image.
    """
    if estimate is None or gain == 0:
        return x.new_full((len(x),), least)
    taken = energy(smooth_colour(estimate - x)) * (GREY_LEVELS * gain) ** 2
    return least + (1 - least) * taken.clamp(max=1)


def mostly_colour(
    x: Float[Tensor, "b c h w"], estimate: Float[Tensor, "b c h w"], share: float = 0.15
) -> Bool[Tensor, " b"]:
    """Whether what an estimate of the image without its dense trigger changes is, for this share, a colour cast.

    Then ``without_colour_cast`` alone is the better answer: it leaves the details that an estimate and a high noise
    level would cost. The share is of the change's energy; an estimate that changes nothing has none.
    """
    if x.shape[1] == 1:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    change = estimate - x
    rest = change - smooth_colour(change)
    return energy(change) - energy(rest) > share * energy(change)


def mostly_fine(
    x: Float[Tensor, "b c h w"], estimate: Float[Tensor, "b c h w"], sigma: float = 1.0, share: float = 0.2
) -> Bool[Tensor, " b"]:
    """Whether what an estimate changes is, for this share of its energy, detail finer than a blur of ``sigma`` pixels.

    What is left of noise and of waves drowns in little noise; of a picture or a smooth pattern it does not.
    """
    change = estimate - x
    return energy(change - blurred(change, sigma)) > share * energy(change)


def faint(x: Float[Tensor, "b c h w"], estimate: Float[Tensor, "b c h w"], rms: float = 0.035) -> Bool[Tensor, " b"]:
    """Whether what an estimate changes is small, by its root mean square beside [-1, 1]: 4.5 grey levels.

    Steganography is; what is left of it drowns in little noise.
    """
    return energy(estimate - x) < rms**2


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


def jittered(x: Float[Tensor, "b c h w"], amount: float, noise: Callable[[Tensor], Tensor]) -> Float[Tensor, "b c h w"]:
    """Each pixel taken from a place beside it (bicubic), drawn from a normal distribution for each image and pixel.

    A backdoor that answers to a smooth warp was taught not to answer to one that is disturbed (the noise mode of Nguyen
    and Tran 2021, section 3.3), or every warp would be its trigger; so this takes it away, and costs no sharpness.

    Args:
        amount: standard deviation of the shift along each side, in pixels; 0 changes nothing.
        noise: standard normal noise shaped like what it is given.
    """
    if not amount:
        return x
    exact = x if x.dtype == torch.float64 else x.float()
    shift = noise(exact.new_empty(len(x), 2, *x.shape[-2:])).permute(0, 2, 3, 1)
    still = torch.eye(2, 3, dtype=exact.dtype, device=x.device).expand(len(x), 2, 3)
    size = torch.tensor([x.shape[-1], x.shape[-2]], dtype=exact.dtype, device=x.device)
    grid = functional.affine_grid(still, list(x.shape), align_corners=False) + shift * (2 * amount / size)
    moved = functional.grid_sample(exact, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return moved.clamp(-1, 1).to(x.dtype)


def sharpened(x: Float[Tensor, "b c h w"], amount: float, sigma: float = 0.8) -> Float[Tensor, "b c h w"]:
    """Unsharp mask: x' = x + amount * (x - blur(x)), sigma in pixels; an amount of 0 changes nothing.

    It gives back what diffusion and resampling blur; blur itself is what the backdoor of a warp answers to.
    """
    return (x + amount * (x - blurred(x, sigma))).clamp(-1, 1) if amount else x


def smooth(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
    """``blurred`` by ``sigma`` pixels of an image whose shorter side is 32, as products of matrices.

    A window this wide has hundreds of pixels in a photograph; two products cost less than one network layer.
    """
    rows, columns = (_blur_matrix(side, sigma * min(x.shape[-2:]) / SIDE, x) for side in x.shape[-2:])
    return rows @ x @ columns.mT


def _blur_matrix(size: int, sigma: float, like: Tensor) -> Float[Tensor, "n n"]:
    """(size, size), what each pixel of a line gives to each pixel of the blurred line, with mirrored borders."""
    radius = max(1, round(3 * sigma))
    window = gaussian_window(sigma, radius, device=like.device)
    position = torch.arange(size, device=like.device)[:, None] + torch.arange(-radius, radius + 1, device=like.device)
    position = position % (2 * size)
    position = torch.minimum(position, 2 * size - 1 - position)
    matrix = torch.zeros(size, size, dtype=window.dtype, device=like.device)
    return matrix.scatter_add(1, position, window.expand_as(position)).to(like.dtype)


def blurred(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
    """Gaussian blur of every plane, cut off at 3 sigma, with mirrored borders."""
    return local_mean(x, gaussian_window(sigma, max(1, round(3 * sigma)), device=x.device).to(x.dtype))


def energy(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Mean square of each image."""
    return x.square().mean(dim=(1, 2, 3))
