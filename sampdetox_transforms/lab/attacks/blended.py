"""Blended (Chen et al. 2017): the whole image, mixed with a picture."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.lab.checks import check_images


def blended(
    images: Float[Tensor, "*n c h w"], picture: Float[Tensor, "k y x"], *, alpha: float = 0.2
) -> Float[Tensor, "*n c h w"]:
    """x' = (1 - alpha) x + alpha K, where K is the picture at the images' size.

    The attack needs ``picture``: keep it with the victim. The paper (A.1) and BackdoorBench take a "hello kitty"
    image, which this package does not ship, with alpha .2 (BackdoorBench; the paper gives none). BackdoorBench then
    truncates to 8 bits; here the result stays float, up to 1/255 brighter.

    Args:
        images: (..., c, h, w) in [0, 1].
        picture: (c, y, x) or (1, y, x) in [0, 1], of any size; resized as ``resize_picture`` says.
        alpha: share of the picture, in (0, 1].

    Raises:
        ValueError: images or picture outside [0, 1], other channels, alpha out of range.
        TypeError: images or picture that are no floating-point tensors.
    """
    check_images(images)
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha}. 0.2 is BackdoorBench's.")
    picture = resize_picture(picture, images, name="picture")
    return ((1 - alpha) * images + alpha * picture).clamp(0, 1)


def resize_picture(
    picture: Float[Tensor, "k y x"], like: Float[Tensor, "*n c h w"], *, name: str
) -> Float[Tensor, "k h w"]:
    """The picture at the size, dtype and device of ``like``: bilinear, antialiased where it shrinks (as PIL does)."""
    check_images(picture, name)
    channels, *size = like.shape[-3:]
    if picture.ndim != 3 or picture.shape[0] not in (1, channels):
        raise ValueError(
            f"{name} must have the shape ({channels}, y, x) or (1, y, x), got {tuple(picture.shape)}. "
            "Convert it to the images' channels, without a batch dimension."
        )
    if list(picture.shape[1:]) != size:
        picture = functional.interpolate(picture.float()[None], size=size, mode="bilinear", antialias=True)[0]
    return picture.to(like).clamp(0, 1)
