"""Backdoor attacks that need no trained network: pure functions on images in [0, 1], and the data sets they poison.

A trigger that needs more than settings takes it as a tensor (``picture``, ``pattern``, ``field``), to be saved with
the victim. ``functools.partial`` makes of a function and its settings the attack that ``PoisonedDataset`` takes.
"""

from sampdetox_transforms.attacks.badnets import badnets
from sampdetox_transforms.attacks.blended import blended
from sampdetox_transforms.attacks.bpp import bpp, bpp_negative
from sampdetox_transforms.attacks.low_frequency import load_pattern, low_frequency
from sampdetox_transforms.attacks.poisoning import PoisonedDataset, TriggeredDataset, load_trigger
from sampdetox_transforms.attacks.sig import sig
from sampdetox_transforms.attacks.wanet import wanet, wanet_noise, warp_field

__all__ = [
    "PoisonedDataset",
    "TriggeredDataset",
    "badnets",
    "blended",
    "bpp",
    "bpp_negative",
    "load_pattern",
    "load_trigger",
    "low_frequency",
    "sig",
    "wanet",
    "wanet_noise",
    "warp_field",
]
