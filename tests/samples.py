"""Images and generators that the tests of attacks share."""

import numpy as np
import torch


def images(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    """Images of 8-bit values in [0, 1]; black and white pixels among them."""
    values = np.random.default_rng(seed).integers(-20, 276, shape).clip(0, 255)
    return torch.tensor(values / 255, dtype=dtype)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
