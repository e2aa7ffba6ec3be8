"""Refool (Liu et al. 2020): the scene behind glass, on which another scene is reflected."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.lab.checks import check_images

GAMMA = 2.2

GHOST_SHIFT = (3, 8)  # pixels between the reflections of both sides of the glass

BLUR = (1.0, 5.0)  # sigma of the reflection that is out of focus, in pixels

RADIUS = 10  # of the widest blur kernel, 2 sigma

DRAWS = 8  # random numbers for each image


def refool(
    images: Float[Tensor, "*n c h w"],
    reflections: Float[Tensor, "m k y x"],
    *,
    alpha: float | None = 0.4,
    ghost_rate: float = 0.49,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*n c h w"]:
    """Mix each image with a reflection r that is drawn anew at each call, in linear light (gamma 2.2).

    With probability ``ghost_rate`` the glass is thick, which doubles r (a "ghost"): alpha x + (1 - alpha) (g r +
    (1 - g) r'), where r' is r moved by 3 to 8 pixels on each axis and g ~ U(.15, .85). Otherwise r is out of focus:
    alpha x + (1 - alpha / 2) K (blur(r) - e), where e lowers r by what is brighter than white in the sum, and K is a
    spot that fades towards the borders.

    The values are BackdoorBench's, which fixes alpha to .4; the original draws it (``alpha=None``). It resizes with
    cubic splines and then truncates to 8 bits; here the ghost is read bilinearly, and the result stays float. The
    shifts and the blur are in pixels of images of any size. With one ``generator``, batches in order give what images
    one by one give.

    Args:
        images: (..., c, h, w) in [0, 1], 9 pixels or more on both sides.
        reflections: (m, c, y, x) or (m, 1, y, x) in [0, 1], of any size; resized bilinearly, antialiased.
        alpha: share of the image's light, in (0, 1); None for 1 - U(.05, .45), drawn for each image.
        ghost_rate: in [0, 1].
        generator: source of all draws; None for torch's own.

    Raises:
        ValueError: images or reflections outside [0, 1], other channels, too small images, alpha or rate out of range.
        TypeError: images or reflections that are no floating-point tensors.
    """
    check_images(images)
    channels, height, width = images.shape[-3:]
    if min(height, width) <= GHOST_SHIFT[1]:
        raise ValueError(
            f"images must be {GHOST_SHIFT[1] + 1} pixels or more on both sides, got {height} x {width}: a ghost is up "
            f"to {GHOST_SHIFT[1]} pixels off. Resize them."
        )
    if alpha is not None and not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1) or None, got {alpha}. 0.4 is BackdoorBench's.")
    if not 0 <= ghost_rate <= 1:
        raise ValueError(f"ghost_rate must be in [0, 1], got {ghost_rate}. 0.49 is the original's.")
    x = images.reshape(-1, channels, height, width)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    pictures = _resized(reflections, x)
    u = torch.rand((len(x), DRAWS), generator=generator, device=generator.device if generator else "cpu").to(x)
    r = pictures[(u[:, 0] * len(pictures)).long()] ** GAMMA
    x = x**GAMMA
    a = (0.55 + 0.4 * u[:, 7] if alpha is None else torch.full_like(u[:, 7], alpha))[:, None, None, None]
    ghost = a * x + (1 - a) * _ghost(r, u[:, 2:5])
    blurred = a * x + (1 - a / 2) * _spot(x) * _out_of_focus(r, x, u[:, 5:7])
    mixed = torch.where((u[:, 1] < ghost_rate)[:, None, None, None], ghost, blurred)
    return (mixed.clamp(0, 1) ** (1 / GAMMA)).view(images.shape).to(images.dtype)


def _resized(reflections: Tensor, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "m c h w"]:
    check_images(reflections, "reflections")
    channels, *size = x.shape[1:]
    if reflections.ndim != 4 or reflections.shape[1] not in (1, channels) or not len(reflections):
        raise ValueError(
            f"reflections must have the shape (m, {channels}, y, x) or (m, 1, y, x), got {tuple(reflections.shape)}. "
            "Stack the pictures, in the images' channels."
        )
    resized = functional.interpolate(reflections.to(x), size=size, mode="bilinear", antialias=True)
    return resized.clamp(0, 1).expand(-1, channels, -1, -1)


def _ghost(r: Float[Tensor, "b c h w"], u: Float[Tensor, "b 3"]) -> Float[Tensor, "b c h w"]:
    """g r + (1 - g) r', where both are inside the picture, at the picture's size."""
    least, most = GHOST_SHIFT
    down, right = (least + (u[:, :2] * (most - least + 1)).long()).unbind(1)
    g = (0.15 + 0.7 * u[:, 2])[:, None, None, None]
    return g * _read(r, down, right, down, right) + (1 - g) * _read(r, down, right, 0 * down, 0 * right)


def _read(r: Tensor, down: Tensor, right: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """The part of each picture that begins at (top, left) and lacks (down, right) pixels, at the picture's size."""
    height, width = r.shape[-2:]
    rows, columns = _places(height, down, top).to(r), _places(width, right, left).to(r)
    places = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
    return functional.grid_sample(r, places, mode="bilinear", padding_mode="border", align_corners=True)


def _places(n: int, missing: Int[Tensor, " b"], start: Int[Tensor, " b"]) -> Float[Tensor, "b n"]:
    """Where n pixels read a part of n - missing pixels, in [-1, 1]: pixel centres, not beyond the part's ends."""
    kept = (n - missing)[:, None].double()
    place = (torch.arange(n, device=missing.device) + 0.5) * kept / n - 0.5
    place = place.clamp_min(0).minimum(kept - 1)
    return 2 * (start[:, None] + place) / (n - 1) - 1


def _out_of_focus(
    r: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"], u: Float[Tensor, "b 2"]
) -> Float[Tensor, "b c h w"]:
    """The blurred reflection, lowered in each channel by how far the sum with x is above 1 where it is."""
    sigma = BLUR[0] + (BLUR[1] - BLUR[0]) * u[:, 0]
    height, width = r.shape[-2:]
    r = _blur_matrix(sigma, height)[:, None] @ r @ _blur_matrix(sigma, width)[:, None].mT
    light, over = r + x, r + x > 1
    mean = (light * over).sum(dim=(2, 3), keepdim=True) / (over.sum(dim=(2, 3), keepdim=True) + 1e-6)
    excess = (mean.clamp_min(1) - 1) * (1.08 + u[:, 1] / 10)[:, None, None, None]
    return (r - excess).clamp(0, 1)


def _blur_matrix(sigma: Float[Tensor, " b"], n: int) -> Float[Tensor, "b n n"]:
    """For each sigma the matrix that blurs n pixels: a Gaussian cut at ceil(2 sigma), mirrored at the end pixels."""
    offset = torch.arange(-RADIUS, RADIUS + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2) * (offset.abs() <= (2 * sigma[:, None]).ceil())
    weight = weight / weight.sum(dim=1, keepdim=True)
    place = (torch.arange(n, device=sigma.device)[:, None] + offset) % (2 * (n - 1))
    place = place.minimum(2 * (n - 1) - place)
    matrix = torch.zeros(len(sigma), n, n, dtype=sigma.dtype, device=sigma.device)
    shape = (len(sigma), n, len(offset))
    return matrix.scatter_add(2, place.expand(shape), weight[:, None].expand(shape))


def _spot(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "h w"]:
    """1 in the middle; to the borders, sqrt of a normal density to 3 sigma, as mean over each pixel."""
    profiles = []
    for n in x.shape[-2:]:
        edge = torch.linspace(-3 - 3.5 / n, 3 + 3.5 / n, n + 1, dtype=torch.float64, device=x.device)
        mass = torch.special.ndtr(edge).diff().sqrt()
        profiles.append((mass / mass.max()).to(x))
    return profiles[0][:, None] * profiles[1]
