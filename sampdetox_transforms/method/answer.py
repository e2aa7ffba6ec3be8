"""What the networks of the search say of a batch."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Answer(NamedTuple):
    """What the network says of a batch.

    Attributes:
        image: (b, c, h, w), the image as it would be without a trigger that covers all of it, if it carries one; where
            pixels are erased, these as predicted from those around them.
        local: (b, 1, h, w), logit that a pixel belongs to a trigger that covers a part of the image.
        dense: (b,), logit that the image carries a trigger that covers all of it.
    """

    image: Float[Tensor, "b c h w"]
    local: Float[Tensor, "b 1 h w"]
    dense: Float[Tensor, " b"]
