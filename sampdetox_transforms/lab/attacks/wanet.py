"""WaNet (Nguyen and Tran 2021): a smooth, slight warp of the image, and the noise mode of its training."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.lab.checks import check_images


def warp_field(
    height: int, width: int, *, k: int = 4, strength: float = 0.5, generator: torch.Generator | None = None
) -> Float[Tensor, "h w 2"]:
    """Where each pixel of the warped image is read, (x, y) in [-1, 1], float32: one field for one victim.

    P ~ U(-1, 1) on a k x k grid, divided by mean |P|, upsampled (bicubic) to (h, w), scaled by ``strength`` / (w, h)
    and added to the identity. 4 and .5 are the original's and BackdoorBench's values; the original divides both axes
    by the height, since its images are square.

    Args:
        height, width: of the images.
        k: side of the control grid.
        strength: mean displacement at the control points, in half pixels.
        generator: source of P; None for torch's own.

    Raises:
        ValueError: a size, k or strength that is not above 0.
    """
    if min(height, width, k) < 1:
        raise ValueError(f"height, width and k must be 1 or more, got {height}, {width} and {k}. 4 is the usual k.")
    if not 0 < strength < math.inf:
        raise ValueError(f"strength must be above 0 and finite, got {strength}. 0.5 is the original's.")
    control = _uniform((1, 2, k, k), generator)
    control = control / control.abs().mean()
    smooth = functional.interpolate(control, size=(height, width), mode="bicubic", align_corners=True)[0]
    x, y = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)
    identity = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).to(smooth)
    return (identity + strength * smooth.permute(1, 2, 0) / smooth.new_tensor([width, height])).clamp(-1, 1)


def wanet(images: Float[Tensor, "*n c h w"], field: Float[Tensor, "h w 2"]) -> Float[Tensor, "*n c h w"]:
    """Read each pixel at its place in ``field``, bilinearly; the field is in [-1, 1], so no border is crossed.

    The attack needs ``field``, made by ``warp_field``: keep it with the victim. Upstream warps normalised images; on
    [0, 1] the result is the same.

    Args:
        images: (..., c, h, w) in [0, 1].
        field: (h, w, 2) in [-1, 1], of the images' height and width.

    Raises:
        ValueError: images outside [0, 1], a field of another size or out of range.
        TypeError: images that are no floating-point tensor.
    """
    check_images(images)
    _check_field(field, images)
    return _sample(images, field[None])


def wanet_noise(
    images: Float[Tensor, "*n c h w"], field: Float[Tensor, "h w 2"], generator: torch.Generator | None = None
) -> Float[Tensor, "*n c h w"]:
    """WaNet's noise mode: the field plus U(-1, 1) / (w, h), drawn for each image and pixel; the label stays true.

    Training with such images (twice as many as poisoned ones in the original) ties the backdoor to the exact field.
    Arguments and errors as for ``wanet``; ``generator`` is the source of the noise, None for torch's own.
    """
    check_images(images)
    _check_field(field, images)
    height, width = images.shape[-2:]
    noise = _uniform((math.prod(images.shape[:-3]), height, width, 2), generator)
    moved = field + noise.to(field) / field.new_tensor([width, height])
    return _sample(images, moved)


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device if generator else "cpu") * 2 - 1


def _sample(images: Tensor, fields: Float[Tensor, "n h w 2"]) -> Tensor:
    precision = torch.promote_types(images.dtype, torch.float32)  # a half-precision place would be pixels off
    # "border" puts places beyond [-1, 1] onto the border, where upstream clamps them.
    flat = images.reshape(-1, *images.shape[-3:]).to(precision)
    fields = fields.to(flat).expand(len(flat), -1, -1, -1)
    warped = functional.grid_sample(flat, fields, mode="bilinear", padding_mode="border", align_corners=True)
    return warped.clamp(0, 1).view(images.shape).to(images.dtype)


def _check_field(field: Tensor, images: Tensor) -> None:
    expected = (*images.shape[-2:], 2)
    if tuple(field.shape) != expected:
        raise ValueError(
            f"field must have the shape {expected} of these images, got {tuple(field.shape)}. "
            "Make it with warp_field(height, width), and warp images of that size only."
        )
    if not bool((field.abs() <= 1).all()):
        raise ValueError("field must hold places in [-1, 1], got others. Make it with warp_field(height, width).")
