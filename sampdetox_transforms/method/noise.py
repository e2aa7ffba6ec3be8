"""Where the noise comes from: torch's own generator, or a seed and the image itself."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor


def fresh_noise(like: Tensor) -> Tensor:
    """Standard normal noise from torch's own generator, shaped like ``like``."""
    return torch.randn_like(like)


class SeededNoise:
    """Noise of an image keyed by (seed, the image's content, pass, draw), whatever batch it is in.

    One CPU generator an image, seeded by its key; draws follow each other in it. Content is the image rounded to 8
    bits, so that neither device nor dtype changes the key. Equal images get equal noise.

    Args:
        x0: the images that the noise is for, in [-1, 1].
        seed: any whole number.
        pass_index: the number of the purification, where an image is purified several times.
    """

    def __init__(self, x0: Float[Tensor, "b c h w"], seed: int, pass_index: int = 0):
        pixels = ((x0.detach().float() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8).contiguous()
        prefix = f"{seed}/{pass_index}/{tuple(x0.shape[1:])}/".encode()
        self.generators = []
        for image in pixels:
            key = hashlib.blake2b(prefix + image.numpy().tobytes(), digest_size=8).digest()
            self.generators.append(torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1))

    def __call__(self, like: Tensor) -> Tensor:
        """The next draw, one image after the other: float32, whatever torch's default is, then as ``like``."""
        shape = like.shape[1:]
        draws = [torch.randn(shape, generator=generator, dtype=torch.float32) for generator in self.generators]
        return torch.stack(draws).to(like)

    def subset(self, index: Tensor) -> "SeededNoise":
        """The same noise for the images that ``index`` names, in its order."""
        result = object.__new__(SeededNoise)
        result.generators = [self.generators[i] for i in index.tolist()]
        return result


def subset(noise, index: Tensor):
    """``noise`` for the images that ``index`` names; a noise without a key needs no choice."""
    return noise.subset(index) if hasattr(noise, "subset") else noise
