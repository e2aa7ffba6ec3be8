"""The networks for images of 64 pixels and more: one that finds triggers, and one that restores.

The second is asked in three ways, by what it gets beside the image: the noise that was added (it is a denoiser), a
hole (it fills it), or that a trigger covers the image (it gives the image as it would be without).
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Real
from safetensors.torch import save_file
from torch import Tensor, nn

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.calibration import Calibrations
from sampdetox_transforms.method.schedule import Schedule, scaled
from sampdetox_transforms.method.search import Answer
from sampdetox_transforms.method.windows import symmetric_pad
from sampdetox_transforms.networks.photo_unet import PhotoUNet
from sampdetox_transforms.networks.push_pull import push_pull
from sampdetox_transforms.networks.restorer_files import RESTORER_FOLDER, load_calibrations, save_calibrations
from sampdetox_transforms.networks.safe_files import (
    WeightsFileError,
    filled,
    read_state,
)
from sampdetox_transforms.networks.tiles import of_any_size

PHOTOGRAPHS, CALIBRATION = "photographs.safetensors", "photographs.json"
PHOTOGRAPHS_SHA256 = {
    PHOTOGRAPHS: "d8c21b7a542cd661b0a3d957ff4b58e61399a9c052b1ceb3c4ed1960d4667eb2",
    CALIBRATION: "4826ceacf288965680e28e40a87c05fa1a476b568e495f167a3612a3a579b499",
}
LEAST_SIGMA = 0.01  # of the noise that the restoring network is told of


def search_network() -> PhotoUNet:
    """Image -> the logit of each pixel, and one of the image: 81,000 multiplications and additions a pixel."""
    return PhotoUNet(3, 1, down=(2, 4, 4, 4), up=(2, 2, 1), image_logit=True)


def restoring_network() -> PhotoUNet:
    """Image and mask -> what to add to the image: 128,000 multiplications and additions a pixel."""
    return PhotoUNet(
        4, 3, unshuffle=2, widths=(32, 80, 128, 160), down=(1, 2, 2, 2), up=(2, 2, 1), conditions=3
    )  # fmt: skip


class Photographs(nn.Module):
    """Both networks as ``SearchNetworks``, which says what the attributes are; chosen on held-out training images.

    ``border`` is how many pixels an image is mirrored by at each side before the look.
    """

    name, calls, finds_dense, suspicious_again = "large", 1, False, True
    least, as_is, side, border = 160, 320, 256, 0
    window, certain, possible, margins = 4, 1.0, 0.0, (0, 0)

    def __init__(self, search: PhotoUNet | None = None, restoring: PhotoUNet | None = None):
        super().__init__()
        self.search = search_network() if search is None else search
        self.restoring = restoring_network() if restoring is None else restoring

    def look(self, x: Float[Tensor, "b c h w"]) -> Answer:
        """Where triggers are; no estimate, which is asked for separately."""
        border, (height, width) = self.border, x.shape[-2:]
        local, dense = self.search(symmetric_pad(in_colour(x), border, border, border, border))
        return Answer(local[..., border : border + height, border : border + width], dense)

    def of_enlarged(self) -> "Photographs":
        """The same networks for images that are enlarged before the look: under a name of their own, and mirrored.

        A patch in a corner has all of its edges then. Of squares of .9 % in the corner of an image of 64 pixels .87 are
        found instead of .38, of others fewer (docs/notes/photograph-search.md). Larger images gain nothing by it.
        """
        view = copy.copy(self)
        view.name, view.border = "medium", 16
        return view

    def estimate(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The images as they would be without a trigger that covers all of them."""
        return self.restored(x, x.new_zeros(len(x)), dense=True)

    def fill(self, x: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
        """The masked pixels as predicted from the others; nothing in them is looked at."""
        return torch.where(mask, self.restored(x, x.new_zeros(len(x)), mask=mask).clamp(-1, 1), x)

    def denoiser(self, schedule: Schedule, level: float) -> Callable[[Tensor, Tensor], Tensor]:
        """(x_t, t) -> eps at levels t + 1 of a schedule, the same from whatever level the walk starts."""
        return partial(self.noise_in, schedule)

    def noise_in(
        self, schedule: Schedule, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise in ``x_t``, from the image that the network takes it for (equation 4 of the paper, solved)."""
        level = t.double() + 1
        signal, sigma = (part[:, None, None, None] for part in (schedule.signal(level), schedule.sigma(level)))
        x = scaled(signal.rsqrt(), x_t)  # the image plus noise of std sigma
        return scaled(1 / sigma, x - self.restored(x, sigma.flatten().to(x)))

    def restored(
        self,
        x: Float[Tensor, "b c h w"],
        sigma: Float[Tensor, " b"],
        *,
        mask: Bool[Tensor, "b 1 h w"] | None = None,
        dense: bool = False,
    ) -> Float[Tensor, "b c h w"]:
        """The image without noise of std ``sigma`` beside [-1, 1], without the hole, without a dense trigger.

        Large images go by tiles.
        """
        image = in_colour(x)
        if mask is not None:
            image = push_pull(image, mask)

        def change(image: Tensor, sigma: Tensor) -> Tensor:
            return self.restoring(torch.cat([image, image.new_zeros(image[:, :1].shape)], dim=1), told(sigma, dense))

        if mask is None:
            image = image + of_any_size(change, image, sigma, self.restoring.size_multiple)
        else:  # never large: holes are filled at the size at which they were looked for
            image = image + self.restoring(torch.cat([image, mask.to(image)], dim=1), told(sigma, dense))
        return image.mean(dim=1, keepdim=True) if x.shape[1] == 1 else image


def told(sigma: Float[Tensor, " b"], dense: bool) -> Float[Tensor, "b 3"]:
    """What the restoring network is told of each image: the noise, whether there is any, and of a dense trigger."""
    level = sigma.clamp(min=LEAST_SIGMA).log() / 2 + 1.5
    return torch.stack([level, (sigma > 0).to(sigma), torch.full_like(sigma, float(dense))], dim=1)


def in_colour(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
    """Grey images with their plane three times."""
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def load_photographs(folder: str | Path = RESTORER_FOLDER) -> tuple[Photographs | None, Calibrations]:
    """The networks that ``save_photographs`` wrote, with their thresholds; None where the folder holds none.

    Raises:
        WeightsFileError: a file is damaged, not finite, not the pinned one, or without the other.
        ValueError: weights of other networks.
    """
    folder = Path(folder)
    path = folder / PHOTOGRAPHS
    if not path.exists():
        return None, Calibrations()
    try:
        pins = PHOTOGRAPHS_SHA256 if folder == RESTORER_FOLDER else {}
        state = read_state(path, _unfilled, fitting="the networks for photographs", sha256=pins.get(PHOTOGRAPHS, ""))
        networks = filled(_unfilled(state), state)
        calibrations = load_calibrations(folder / CALIBRATION, sha256=pins.get(CALIBRATION, ""))
    except WeightsFileError:
        raise
    except OSError as error:
        message = f"{folder} must hold {PHOTOGRAPHS} and {CALIBRATION} of the same networks, got: {error}."
        raise WeightsFileError(f"{message} Write both anew.") from error
    networks.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return networks.eval().requires_grad_(False), calibrations


def _unfilled(names: Iterable[str]) -> Photographs:
    """The networks without values."""
    with torch.device("meta"):  # no random weights that others would replace
        return Photographs()


def save_photographs(folder: str | Path, networks: Photographs, calibrations: Calibrations) -> Path:
    """Write networks, in float16, and thresholds into one folder; those of small images are kept elsewhere."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().half().contiguous() for name, value in networks.state_dict().items()}
    write_atomically(folder / PHOTOGRAPHS, lambda path: save_file(state, path))
    save_calibrations(folder / CALIBRATION, replace(calibrations, small=None))
    return folder
