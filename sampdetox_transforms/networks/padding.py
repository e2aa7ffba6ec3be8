"""Images of any size for networks that take multiples of a number: mirrored at the borders, cropped off again."""

from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.method.windows import symmetric_pad

Window = tuple[slice, slice]


def pad_to_multiple(x: Float[Tensor, "... h w"], multiple: int) -> tuple[Float[Tensor, "... y x"], Window]:
    """Mirror ``x`` until height and width are multiples, the image in the middle.

    Returns:
        The larger image, itself where nothing is missing; and the rows and columns where the image is:
        ``padded[..., rows, columns]``.
    """
    height, width = x.shape[-2:]
    missing_rows, missing_columns = -height % multiple, -width % multiple
    top, left = missing_rows // 2, missing_columns // 2
    padded = symmetric_pad(x, left, missing_columns - left, top, missing_rows - top)
    return padded, (slice(top, top + height), slice(left, left + width))
