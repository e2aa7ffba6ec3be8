"""Baseline defenses: callables that take images in [0, 1] and give images back, as ``SampDetox`` does.

``access`` says what a defense asks of the suspected model, ``denoiser_calls`` and ``classifier_calls`` how often it
calls the networks for each image.
"""

from sampdetox_transforms.lab.defenses.base import Defense
from sampdetox_transforms.lab.defenses.bdmae import Bdmae
from sampdetox_transforms.lab.defenses.blur import Blur
from sampdetox_transforms.lab.defenses.inpainting import DiffusionInpainter, fill
from sampdetox_transforms.lab.defenses.noising import Noising
from sampdetox_transforms.lab.defenses.sancdifi import Sancdifi
from sampdetox_transforms.lab.defenses.shrink_pad import ShrinkPad
from sampdetox_transforms.lab.defenses.zip import Zip

__all__ = [
    "Bdmae",
    "Blur",
    "Defense",
    "DiffusionInpainter",
    "Noising",
    "Sancdifi",
    "ShrinkPad",
    "Zip",
    "fill",
]
