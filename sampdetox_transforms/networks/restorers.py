"""All search networks that the default uses, and which of them an image is for."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.method.restore import is_small
from sampdetox_transforms.method.search import SearchNetworks
from sampdetox_transforms.networks.photographs import Photographs, load_photographs
from sampdetox_transforms.networks.restorer import Specialists
from sampdetox_transforms.networks.restorer_files import RESTORER_FOLDER, load_calibrations, load_restorer


class Restorers(nn.Module):
    """Search networks for small images, and for larger ones where there are any.

    Args:
        small: for images of about 32 pixels; larger ones are shrunk for them where there are no others.
        large: for images with a shorter side above 48 pixels.
    """

    def __init__(self, small: Specialists, large: Photographs | None = None):
        super().__init__()
        self.small, self.large = small, large

    def of(self, x: torch.Tensor) -> SearchNetworks:
        """The networks for images of this size, (..., h, w)."""
        if self.large is None or is_small(x):
            return self.small  # pyright: ignore[reportReturnType]
        return self.medium if min(x.shape[-2:]) < self.large.least else self.large  # pyright: ignore[reportReturnType]

    @property
    def medium(self) -> Photographs | None:
        """The networks of ``large`` for images that they enlarge; they have thresholds of their own."""
        return None if self.large is None else self.large.of_enlarged()


def load_restorers(folder: str | Path = RESTORER_FOLDER) -> tuple[Restorers, Calibrations]:
    """The networks of a folder, or the package's own, with their calibrations.

    Raises:
        WeightsFileError: a file is missing, damaged or not the pinned one.
    """
    small, small_calibration = load_restorer(folder)
    large, calibrations = load_photographs(folder)
    return Restorers(small, large), replace(calibrations, small=small_calibration)


def find_restorers(weights: Any, restorer: Any, calibration: Any) -> tuple[Restorers, Calibrations]:
    """Search networks and thresholds: those that are given, those beside the weights, or the package's own."""
    if isinstance(restorer, Restorers):
        if calibration is None:
            raise ValueError("restorer networks must come with their calibration, got none. Give calibration=, too.")
        networks, calibrations = restorer, None
    elif restorer is not None and not isinstance(restorer, (str, os.PathLike)):
        kind = type(restorer).__name__
        raise TypeError(f"restorer must be a folder or Restorers, got {kind}. Use load_restorers(folder)[0].")
    else:
        own = Path(weights) / "restorer" if isinstance(weights, (str, os.PathLike)) else None
        folder = restorer if restorer is not None else own if own is not None and own.is_dir() else None
        networks, calibrations = load_restorers() if folder is None else load_restorers(Path(folder))
    if isinstance(calibration, (str, os.PathLike)):
        calibration = load_calibrations(Path(calibration))
    if isinstance(calibration, Calibration):
        calibration = replace(calibrations or Calibrations(), small=calibration)
    if calibration is not None and not isinstance(calibration, Calibrations):
        kind = type(calibration).__name__
        raise TypeError(f"calibration must be a file or a Calibrations, got {kind}. Use detox.calibrate(images).")
    return networks, calibration or calibrations  # pyright: ignore[reportReturnType]
