"""A picture that is mixed into images, and that the purifier leaves there: from their differences of neighbours.

A difference that lies where its image is flat says far more of the picture than one in detail. So their weighted mean
over images tells the picture far better than the images' mean does; it is the least-squares fit where a difference is
normal, with the variance around it.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from sampdetox_transforms.method.shared.differences import mean_differences
from sampdetox_transforms.method.shared.others import Others
from sampdetox_transforms.method.shared.spectrum import restored, smoothed, transformed

USUAL_SHARE = 0.15  # of a picture, where the images do not say how much of it is mixed in


def picture_in(images: Float[Tensor, "m c h w"], others: Others, alpha: float) -> Float[Tensor, "c h w"]:
    """What images that carry a picture have beside the mean of ``others``, alpha (W - mean), as far as it is known.

    Each coefficient is taken as far as it stands above its noise: a picture is taken for an image as the others are,
    and the noise is what two halves of the images disagree by. The result has as much energy as such a picture
    (power spectrum equalisation, Cannon 1974), and not Wiener's smaller share of it, which leaves a classifier enough.

    Args:
        images: in [0, 1], 2 or more.
        others: images without it.
        alpha: share of the picture, 0 where it is not known.
    """

    def beside(some: Tensor) -> Tensor:
        (x, y), (usual_x, usual_y) = mean_differences(some), others.differences
        return integrated(x - usual_x, y - usual_y)

    found, apart = beside(images), beside(images[::2]) - beside(images[1::2])
    mean = transformed((images.mean(dim=0) - others.mean)[None])[0]
    found[:, 0, 0] = mean[:, 0, 0]  # differences do not say how bright it is
    noise = smoothed((apart[None] / 2).square(), 3)[0]
    noise[:, 0, 0] = others.variance[:, 0, 0] / len(images)
    expected = (alpha or USUAL_SHARE) ** 2 * others.variance
    # a colour that is added to all of an image has more than a picture's: what its square has beside the noise's
    expected[:, 0, 0] = expected[:, 0, 0].maximum(found[:, 0, 0].square() - noise[:, 0, 0])
    share = expected / (expected + noise).clamp(min=1e-12)
    return restored((found * share.sqrt())[None])[0]


def integrated(x: Float[Tensor, "c h v"], y: Float[Tensor, "c g w"]) -> Float[Tensor, "c h w"]:
    """The cosine coefficients, of opponent planes, of the image whose differences are nearest to these; its mean is 0.

    Poisson's equation with nothing beyond the border, which the cosine transform solves by a division.
    """
    divergence = pad(x, (1, 0)) - pad(x, (0, 1)) + pad(y, (0, 0, 1, 0)) - pad(y, (0, 0, 0, 1))
    rows, columns = (2 - 2 * (math.pi * torch.arange(n, device=x.device) / n).cos() for n in divergence.shape[-2:])
    eigenvalues = (rows[:, None] + columns).to(x)
    eigenvalues[0, 0] = math.inf
    return transformed(divergence[None])[0] / eigenvalues
