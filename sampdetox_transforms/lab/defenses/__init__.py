"""Baseline defenses: callables that take images in [0, 1] and give images back, as ``SampDetox`` does.

``access`` says what a defense asks of the suspected model, ``denoiser_calls`` and ``classifier_calls`` how often it
calls the networks for each image; the network that Lite-BD has in a denoiser's place counts as one.
"""

from sampdetox_transforms.lab.defenses.base import Defense
from sampdetox_transforms.lab.defenses.bdmae import Bdmae
from sampdetox_transforms.lab.defenses.blur import Blur
from sampdetox_transforms.lab.defenses.carn import CarnM, load_carn_m
from sampdetox_transforms.lab.defenses.inpainting import DiffusionInpainter, fill
from sampdetox_transforms.lab.defenses.lite_bd import LiteBd
from sampdetox_transforms.lab.defenses.noising import Noising
from sampdetox_transforms.lab.defenses.sancdifi import Sancdifi
from sampdetox_transforms.lab.defenses.shrink_pad import ShrinkPad
from sampdetox_transforms.lab.defenses.zip import Zip

__all__ = [
    "Bdmae",
    "Blur",
    "CarnM",
    "Defense",
    "DiffusionInpainter",
    "LiteBd",
    "Noising",
    "Sancdifi",
    "ShrinkPad",
    "Zip",
    "fill",
    "load_carn_m",
]
