"""Lite-BD (Miah and Bi 2026), its first stage: the image at half its size, enlarged again by super-resolution."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.lab.defenses.base import Defense
from sampdetox_transforms.lab.defenses.carn import CarnM


class LiteBd(Defense):
    """Each side shrunk to its half (bicubic, antialiased, as in PIL), and doubled again by a network.

    Source: Miah and Bi, "Lite-BD: A Lightweight Black-box Backdoor Defense via Reviving Multi-Stage Image
    Transformations", arXiv 2602.07197, stage 1, and their code, whose scale of .5 this is.
    Departures: the network is CARN-M, not SwinIR; shrinking is bicubic, as CARN-M and SwinIR have learned to undo, not
    bilinear; the result is always used. The authors use it only where the classifier's answer to it is another than
    before, and else go on to stage 2, which filters bands of frequencies by the classifier's hard labels. There is no
    stage 2 here, so that nothing is asked of the model.
    Unverified: what CARN-M in place of SwinIR changes in their numbers.

    An odd side repeats its last row or column and loses it again. Other numbers of channels than 3 go through the
    network channel by channel, each as a grey image.

    Args:
        network: ``load_carn_m(path)``.
        batch_size: see ``Defense``.

    Raises:
        TypeError: a network that is no ``CarnM``.
        ValueError: see ``Defense``.
    """

    title = "Lite-BD, stage 1 (CARN-M for SwinIR)"
    denoiser_calls = 1

    def __init__(self, network: CarnM, *, batch_size: int = 64):
        super().__init__(batch_size=batch_size)
        if not isinstance(network, CarnM):
            raise TypeError(f"network must be a CarnM, got {type(network).__name__}. Load one with load_carn_m(path).")
        self.network = network

    def purify(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        channels, height, width = images.shape[1:]
        if channels != 3:
            grey = images.reshape(-1, 1, height, width).expand(-1, 3, -1, -1)
            return self.purify(grey).mean(1).view_as(images)
        even = functional.pad(images, (0, width % 2, 0, height % 2), mode="replicate")
        size = (even.shape[-2] // 2, even.shape[-1] // 2)
        small = functional.interpolate(even, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.network(small)[..., :height, :width]
