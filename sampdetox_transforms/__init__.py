"""SampDetox: take backdoor triggers out of images before a classifier sees them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sampdetox_transforms.method.sampdetox import Purified, purify
    from sampdetox_transforms.method.schedule import Schedule
    from sampdetox_transforms.networks.catalogue import DetoxWeights, load_denoiser
    from sampdetox_transforms.networks.checkpoints import WeightsFileError
    from sampdetox_transforms.networks.denoiser import Denoiser
    from sampdetox_transforms.networks.hub import DownloadError
    from sampdetox_transforms.transforms.arrays import DetoxArrays, DetoxBatches
    from sampdetox_transforms.transforms.explanation import Explanation
    from sampdetox_transforms.transforms.loader import DetoxLoader
    from sampdetox_transforms.transforms.presets import PRESETS, Preset
    from sampdetox_transforms.transforms.shared_recovery import recover_trigger, recover_triggers
    from sampdetox_transforms.transforms.shared_trigger import SharedTrigger
    from sampdetox_transforms.transforms.transform import SampDetox
    from sampdetox_transforms.transforms.trigger_memory import TriggerMemory
    from sampdetox_transforms.transforms.wrapper import DetoxWrapper

__all__ = [
    "PRESETS",
    "Denoiser",
    "DetoxArrays",
    "DetoxBatches",
    "DetoxLoader",
    "DetoxWeights",
    "DetoxWrapper",
    "DownloadError",
    "Explanation",
    "Preset",
    "Purified",
    "SampDetox",
    "Schedule",
    "SharedTrigger",
    "TriggerMemory",
    "WeightsFileError",
    "load_denoiser",
    "purify",
    "recover_trigger",
    "recover_triggers",
]

_MODULES = {
    "method.sampdetox": ("Purified", "purify"),
    "method.schedule": ("Schedule",),
    "networks.catalogue": ("DetoxWeights", "load_denoiser"),
    "networks.checkpoints": ("WeightsFileError",),
    "networks.denoiser": ("Denoiser",),
    "networks.hub": ("DownloadError",),
    "transforms.arrays": ("DetoxArrays", "DetoxBatches"),
    "transforms.explanation": ("Explanation",),
    "transforms.loader": ("DetoxLoader",),
    "transforms.presets": ("PRESETS", "Preset"),
    "transforms.shared_recovery": ("recover_trigger", "recover_triggers"),
    "transforms.shared_trigger": ("SharedTrigger",),
    "transforms.transform": ("SampDetox",),
    "transforms.trigger_memory": ("TriggerMemory",),
    "transforms.wrapper": ("DetoxWrapper",),
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
