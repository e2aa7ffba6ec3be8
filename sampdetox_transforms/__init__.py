"""SampDetox: take backdoor triggers out of images before a classifier sees them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sampdetox_transforms.checkpoints import Denoiser, DetoxWeights, DownloadError, WeightsFileError, load_denoiser
    from sampdetox_transforms.loader import DetoxLoader
    from sampdetox_transforms.presets import PRESETS, Preset
    from sampdetox_transforms.sampdetox import Purified, purify
    from sampdetox_transforms.schedule import Schedule
    from sampdetox_transforms.transforms import DetoxWrapper, Explanation, SampDetox

__all__ = [
    "PRESETS",
    "Denoiser",
    "DetoxLoader",
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

_MODULES = {
    "checkpoints": ("Denoiser", "DetoxWeights", "DownloadError", "WeightsFileError", "load_denoiser"),
    "loader": ("DetoxLoader",),
    "presets": ("PRESETS", "Preset"),
    "sampdetox": ("Purified", "purify"),
    "schedule": ("Schedule",),
    "transforms": ("DetoxWrapper", "Explanation", "SampDetox"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): torch takes seconds, which ``--help`` need not."""
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = value = getattr(import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
