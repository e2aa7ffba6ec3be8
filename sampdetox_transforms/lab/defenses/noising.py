"""Noising: noise that is to drown the trigger (the paper's appendix C.3)."""

from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.lab.defenses.base import Defense, check_number


class Noising(Defense):
    """x' = clip(x + sigma z), z standard normal.

    Source: appendix C.3, which gives no sigma ("a large amount of noise"); .1 is our choice.
    Unverified: the paper's sigma; its clean accuracy of about 68 % on CIFAR-10 hints at less than .1.

    Args:
        sigma: noise std beside an image in [0, 1], above 0.
        seed: see ``Defense``.

    Raises:
        ValueError: a setting out of range.
    """

    title = "Noising"

    def __init__(self, *, sigma: float = 0.1, seed: int | None = None):
        super().__init__(seed=seed)
        check_number("sigma", sigma, "Divide a sigma in grey levels by 255.")
        self.sigma = sigma

    def purify(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return images + self.sigma * self.noise(images)(images)
