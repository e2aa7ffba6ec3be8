"""The denoiser of the light stage for images of about 32 pixels: a quarter of the bundled denoiser's cost.

Little noise is taken away well by a small network; only high levels need the large one.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.networks.photo_unet import PhotoUNet
from sampdetox_transforms.networks.photographs import in_colour, noise_in, restoring_network, told
from sampdetox_transforms.networks.safe_files import (
    WeightsFileError,
    require_finite,
    require_shapes,
    safetensors_shapes,
    verify_sha256,
)

LIGHT = "light.safetensors"
SIGMAS = (0.008, 0.13)  # std of the noise that it is trained for, beside [-1, 1]


class Light(nn.Module):
    """A denoiser of low levels.

    Args:
        network: image and a plane of zeros -> what to add to the image, as ``restoring_network``, which it is if None.
    """

    def __init__(self, network: PhotoUNet | None = None):
        super().__init__()
        self.network = restoring_network() if network is None else network

    def denoiser(self, schedule: Schedule, level: float) -> Callable[[Tensor, Tensor], Tensor] | None:
        """(x_t, t) -> eps at levels t + 1 of a schedule; None where ``level`` holds more noise than it knows."""
        return partial(noise_in, self.restored, schedule) if float(schedule.sigma(level)) <= SIGMAS[1] else None

    def restored(self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """The image without noise of std ``sigma`` beside [-1, 1]."""
        change = self.network(torch.cat([in_colour(x), x.new_zeros(x[:, :1].shape)], dim=1), told(sigma, False))
        return x + (change.mean(dim=1, keepdim=True) if x.shape[1] == 1 else change)


def load_light(folder: str | Path, *, sha256: str = "") -> Light | None:
    """The network that ``save_light`` wrote; None where the folder holds none.

    Raises:
        WeightsFileError: a file that is damaged, not finite, or not the pinned one.
        ValueError: weights of another network.
    """
    path = Path(folder) / LIGHT
    if not path.exists():
        return None
    light = Light()
    try:
        if sha256:
            verify_sha256(path, sha256)
        expected = {name: tuple(value.shape) for name, value in light.state_dict().items()}
        require_shapes(safetensors_shapes(path), expected, str(path), "the denoiser of the light stage")
        state = load_file(path)
        require_finite(state, str(path))
    except (OSError, SafetensorError) as error:
        raise WeightsFileError(f"{path} must be a whole safetensors file, got: {error}. Write it anew.") from error
    light.load_state_dict({name: value.float() for name, value in state.items()})
    light.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return light.eval().requires_grad_(False)


def save_light(folder: str | Path, light: Light) -> Path:
    """Write the network, in float16, into a folder of search networks."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().half().contiguous() for name, value in light.state_dict().items()}
    write_atomically(folder / LIGHT, lambda path: save_file(state, path))
    return folder
