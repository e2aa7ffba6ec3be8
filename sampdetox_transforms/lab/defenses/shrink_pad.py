"""ShrinkPad (Li et al. 2021): the image, a little smaller, at a random place on black."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.lab.defenses.base import Defense, check_whole, crop, uniform


class ShrinkPad(Defense):
    """Resize (h, w) to (h - pad, w - pad), and put zeros around at one of (pad + 1)^2 places, all equally likely.

    Source: Li et al., "Backdoor Attack in the Physical World", 2021, and BackdoorBox, whose pad of 4 for 32 pixels
    we take; the paper's appendix C.3 gives none (unverified). BackdoorBox draws one place for a whole batch; here
    each image has its own. Resizing is bilinear, antialiased as in PIL.

    Args:
        pad: by how many pixels the image shrinks, less than its shorter side.
        seed: see ``Defense``.

    Raises:
        ValueError: a setting out of range; in a call also images that are not larger than ``pad``.
    """

    title = "ShrinkPad"

    def __init__(self, *, pad: int = 4, seed: int | None = None):
        super().__init__(seed=seed)
        check_whole("pad", pad, "4 is usual for 32 pixels.")
        self.pad = pad

    def purify(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        height, width = images.shape[-2:]
        pad = self.pad
        if min(height, width) <= pad:
            raise ValueError(f"images must be larger than pad = {pad}, got {height}x{width}. Lower pad.")
        size = (height - pad, width - pad)
        small = functional.interpolate(images, size=size, mode="bilinear", antialias=True)
        place = (uniform(self.noise(images), images, 2).double() * (pad + 1)).long()  # below pad + 1 in float64
        return crop(functional.pad(small, (pad,) * 4), place[:, 0], place[:, 1], height, width)
