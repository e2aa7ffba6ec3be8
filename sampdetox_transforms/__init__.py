"""SampDetox: take backdoor triggers out of images before a classifier sees them."""

__version__ = "0.1.0"

from sampdetox_transforms.checkpoints import Denoiser, DetoxWeights, DownloadError, WeightsFileError, load_denoiser
from sampdetox_transforms.presets import PRESETS, Preset
from sampdetox_transforms.sampdetox import Purified, purify
from sampdetox_transforms.schedule import Schedule
from sampdetox_transforms.transforms import DetoxWrapper, Explanation, SampDetox

__all__ = [
    "PRESETS",
    "Denoiser",
    "DetoxWeights",
    "DetoxWrapper",
    "DownloadError",
    "Explanation",
    "Preset",
    "Purified",
    "SampDetox",
    "Schedule",
    "WeightsFileError",
    "load_denoiser",
    "purify",
]
