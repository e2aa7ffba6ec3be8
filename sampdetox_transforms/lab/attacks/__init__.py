"""Backdoor attacks: functions on images in [0, 1], the data sets that they poison, and recipes that put both together.

A trigger that needs more than settings takes it as a tensor or as a dictionary of tensors (``picture``, ``pattern``,
``field``, ``trigger``, ``state``), to be saved with the victim; ``recipes.py`` makes it. ``functools.partial`` makes of
a function and its settings the attack that ``PoisonedDataset`` takes.
"""

from sampdetox_transforms.lab.attacks.badnets import badnets
from sampdetox_transforms.lab.attacks.blended import blended
from sampdetox_transforms.lab.attacks.bpp import bpp, bpp_negative
from sampdetox_transforms.lab.attacks.color_style import color_style
from sampdetox_transforms.lab.attacks.composite import CompositeDataset, CompositePairs, composite
from sampdetox_transforms.lab.attacks.datasets import PoisonedDataset, load_trigger
from sampdetox_transforms.lab.attacks.input_aware import input_aware, input_aware_cross, train_input_aware
from sampdetox_transforms.lab.attacks.issba import issba, load_residuals
from sampdetox_transforms.lab.attacks.label_consistent import label_consistent, pgd
from sampdetox_transforms.lab.attacks.low_frequency import load_pattern, low_frequency, optimise_pattern
from sampdetox_transforms.lab.attacks.pictures import cartoon, reflections, sunrise
from sampdetox_transforms.lab.attacks.preparation import Preparation
from sampdetox_transforms.lab.attacks.recipes import RECIPES, TEN_ATTACKS, Recipe, get_recipe
from sampdetox_transforms.lab.attacks.refool import refool
from sampdetox_transforms.lab.attacks.sig import sig
from sampdetox_transforms.lab.attacks.stega import bit_accuracy, stega, train_stega
from sampdetox_transforms.lab.attacks.triggered import TriggeredDataset
from sampdetox_transforms.lab.attacks.trojannn import apple_mask, apple_stamp, optimise_trigger, trojannn
from sampdetox_transforms.lab.attacks.wanet import wanet, wanet_noise, warp_field

__all__ = [
    "RECIPES",
    "TEN_ATTACKS",
    "CompositeDataset",
    "CompositePairs",
    "PoisonedDataset",
    "Preparation",
    "Recipe",
    "TriggeredDataset",
    "apple_mask",
    "apple_stamp",
    "badnets",
    "bit_accuracy",
    "blended",
    "bpp",
    "bpp_negative",
    "cartoon",
    "color_style",
    "composite",
    "get_recipe",
    "input_aware",
    "input_aware_cross",
    "issba",
    "label_consistent",
    "load_pattern",
    "load_residuals",
    "load_trigger",
    "low_frequency",
    "optimise_pattern",
    "optimise_trigger",
    "pgd",
    "reflections",
    "refool",
    "sig",
    "stega",
    "sunrise",
    "train_input_aware",
    "train_stega",
    "trojannn",
    "wanet",
    "wanet_noise",
    "warp_field",
]
