"""Checks of settings, and of where a transform runs."""

import multiprocessing
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (  # pyright: ignore[reportMissingImports]
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
)
from torch.utils.data import get_worker_info

from sampdetox_transforms.method.authors_code import AuthorsCode
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.networks.denoiser import Denoiser
from sampdetox_transforms.transforms.presets import Preset


def check_batch_size(batch_size: Any) -> int:
    """The number of images at once; ValueError unless it is a whole number of 1 or more, 64 for None."""
    whole = as_whole(64 if batch_size is None else batch_size)
    if whole is None or whole < 1:
        raise ValueError(f"batch_size must be a whole number of 1 or more, got {batch_size}. Leave it out for 64.")
    return whole


def check_seed(seed: Any) -> int | None:
    """The seed as an int; TypeError unless it is a whole number or None."""
    whole = None if seed is None else as_whole(seed)
    if seed is not None and whole is None:
        raise TypeError(f"seed must be a whole number or None, got {seed!r}. None draws fresh noise each call.")
    return whole


def as_whole(value: Any) -> int | None:
    """A whole number of any integer type as an int; None for all else, bool too."""
    if isinstance(value, (bool, Tensor)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_levels(settings: Preset, denoiser: Denoiser, schedule: Schedule) -> None:
    """Raise ValueError unless the network knows the levels that the settings ask for."""
    needed = settings.highest_level
    known = float(denoiser.schedule.sigma(denoiser.max_level))
    own = float(schedule.level(min(known, float(schedule.sigma(schedule.num_levels)))))
    limit = int(own + 1e-6)
    if needed > own + 1e-6:
        extra = ", one more than t for the authors' code" if isinstance(settings, AuthorsCode) else ""
        raise ValueError(
            f"t1 and t2 must be in [0, {limit}] on the {schedule.name} schedule for the weights "
            f"{denoiser.source!r}, which know noise up to sigma {known:.3g}, got t1={settings.t1}, "
            f"t2={settings.t2} (level {needed:g} is needed{extra}). Lower them, or use weights that know more."
        )


def check_worker(devices: Sequence[torch.device | None]) -> None:
    """Raise RuntimeError in a forked worker of a ``DataLoader`` where CUDA would be used."""
    if get_worker_info() is None:
        return
    # None for a process of the default context, which is how a loader without multiprocessing_context starts it
    method = getattr(multiprocessing.current_process(), "_start_method", None) or multiprocessing.get_start_method()
    if method == "fork" and any(device is not None and device.type == "cuda" for device in devices):
        raise RuntimeError(
            "CUDA cannot be used in a forked DataLoader worker, got SampDetox on a CUDA device in one. Apply it "
            "after the loader, wrap the classifier in DetoxWrapper, give the loader "
            "multiprocessing_context='spawn', or use device='cpu'."
        )


def check_not_traced(inputs: Sequence[Any]) -> None:
    """Raise RuntimeError where a trace is recorded: what is found in one image would be built into the program.

    A program traced on a clean image would leave every other image as it is.
    """
    found = None
    if torch.jit.is_tracing() or torch.jit.is_scripting():
        found = "torch.jit"
    elif torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        found = "torch.export or torch.onnx"
    elif torch.compiler.is_compiling():
        found = "torch.compile(fullgraph=True), or another program that is traced"
    elif any(isinstance(x, Tensor) and is_mapped(x) for x in inputs):
        found = "vmap, which takes images one by one"
    if found:
        raise tracing_error(found)


def is_mapped(x: Tensor) -> bool:
    """Whether ``vmap`` hands it over, also inside of another transformation, as for a gradient of each image."""
    while not is_batchedtensor(x):
        if not is_functorch_wrapped_tensor(x):
            return False
        x = get_unwrapped(x)
    return True


class NotScripted:
    """A module that ``torch.jit.script`` refuses, alone and as a part of others."""

    def __prepare_scriptable__(self) -> None:
        raise tracing_error("torch.jit.script")


def tracing_error(found: str) -> RuntimeError:
    """What to raise where a program is made of a transform."""
    return RuntimeError(
        "SampDetox decides by what it finds in each image and cannot be traced, exported or mapped as a whole, got "
        f"a call under {found}. Export or compile its networks (detox.denoiser, detox.restorer) and the classifier "
        "instead, keep the call of SampDetox in Python, and give it whole batches."
    )
