"""Where denoisers come from: the Hub, a folder, the package itself, or the user's own network.

Weights are untrusted input: only safetensors are read (a ``.bin`` with ``weights_only=True``), into a network that is
built here from a checked ``config.json``; named weights are pinned to a commit and a sha256. The Hub also holds
copies of these models that were backdoored on purpose: take ``user/repo@<commit>`` from those whom you trust.
"""

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sampdetox_transforms._common import is_number, is_whole, write_atomically
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.networks.denoiser import Denoiser, denoiser_of, require_epsilon
from sampdetox_transforms.networks.safe_files import (
    Shapes,
    WeightsFileError,
    filled,
    read_json,
    read_pickled,
    require_finite,
    require_shapes,
    safetensors_shapes,
    verify_sha256,
)
from sampdetox_transforms.networks.unet import UNet, rename_old_attention
from sampdetox_transforms.networks.unet_config import UNetConfig, brief

CONFIG, SCHEDULER, LEVELS = "config.json", "scheduler_config.json", "sampdetox.json"

SAFETENSORS, PICKLED = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"

LONGEST_NAME = 100  # of a schedule

MAX_LEVELS = 100_000  # of a schedule; the usual number is 1000


def read_checkpoint(
    folder: str | Path,
    *,
    source: str = "",
    sha256: Mapping[str, str] | None = None,
    architecture: UNetConfig | None = None,
    schedule: Schedule | None = None,
) -> Denoiser:
    """Read a folder in the format of diffusers' ``UNet2DModel`` (or of a pipeline: ``unet/`` and ``scheduler/``).

    Nothing is built before the weights file is known to hold the weights of the network in ``config.json``.

    Args:
        source: what messages and the denoiser call it; the folder if empty.
        sha256: what each file must have, by its name. Where one is pinned, every file that is read must be.
        architecture, schedule: what ``config.json`` and ``scheduler_config.json`` must say; this pins them as well.

    Raises:
        WeightsFileError: a file that is missing, unreadable, truncated, not finite, or not the pinned one.
        ValueError: a config or weights that do not fit the network.
    """
    folder, source, pins = Path(folder), source or str(folder), sha256 or {}
    unet, scheduler = folder, folder
    if not (folder / CONFIG).exists() and (folder / "unet" / CONFIG).exists():
        unet, scheduler = folder / "unet", folder / "scheduler"
    config = UNetConfig.from_dict(_read_pinned(unet / CONFIG, pins, architecture is not None))
    found = schedule_from_config(_read_pinned(scheduler / SCHEDULER, pins, schedule is not None))
    about = _read_pinned(folder / LEVELS, pins, False) if (folder / LEVELS).exists() else {}
    for name, value, expected in ((CONFIG, config, architecture), (SCHEDULER, found, schedule)):
        if expected is not None and value != expected:
            raise WeightsFileError(
                f"{name} of {source} must say {expected!r}, got {value!r}: it is not the pinned file. "
                "Remove it and fetch it anew, from a source that you trust."
            )
    network = UNet.unfilled(config)
    state = _read_state(unet, pins, {name: tuple(value.shape) for name, value in network.state_dict().items()}, source)
    return denoiser_of(filled(network, state), config, found, about.get("max_level"), source)


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule of a ``scheduler_config.json``; its prediction type must be the noise.

    Raises:
        ValueError: what is no schedule, or one with more than ``MAX_LEVELS`` levels.
    """
    require_epsilon(config.get("prediction_type", "epsilon"))
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(
            "scheduler_config.json: rescale_betas_zero_snr must be false, got true. Hand the network over with its own "
            "betas: weights=(network, Schedule(betas))."
        )
    betas = config.get("trained_betas")
    if betas is not None:
        if not isinstance(betas, list) or len(betas) > MAX_LEVELS or not all(is_number(beta, 0, 1) for beta in betas):
            raise _scheduler_error("trained_betas", f"a list of at most {MAX_LEVELS} numbers in (0, 1)", betas)
        return Schedule(betas, name="custom")
    name, levels = config.get("beta_schedule", "linear"), config.get("num_train_timesteps", 1000)
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise _scheduler_error("beta_schedule", "a name", name)
    if not is_whole(levels, 1, MAX_LEVELS):
        raise _scheduler_error("num_train_timesteps", f"a whole number in [1, {MAX_LEVELS}]", levels)
    ends = {"beta_start": config.get("beta_start", 1e-4), "beta_end": config.get("beta_end", 0.02)}
    for key, value in ends.items():
        if not is_number(value, 0, 1):
            raise _scheduler_error(key, "a number in (0, 1)", value)
    return Schedule.named(name, num_levels=levels, **ends)


def _scheduler_error(key: str, rule: str, value: object) -> ValueError:
    short = list(islice(value, 3)) if isinstance(value, list) else value
    more = f"... ({len(value)} of them)" if isinstance(value, list) and len(value) > 3 else ""
    return ValueError(
        f"scheduler_config.json: {key} must be {rule}, got {brief(short)}{more}. "
        "Correct the file, or take it from a source that you trust."
    )


def save_checkpoint(
    folder: str | Path,
    config: UNetConfig,
    state: Mapping[str, Tensor],
    schedule: Schedule,
    about: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Write a checkpoint that ``read_checkpoint`` and diffusers read; each file appears whole or not at all.

    Args:
        about: what goes into ``sampdetox.json``: ``max_level``, and notes on training.
        dtype: what the weights are stored in; None leaves them as they are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scheduler: dict[str, Any] = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.num_levels,
        "variance_type": "fixed_small",
        "clip_sample": True,
        "prediction_type": "epsilon",
    }
    if schedule == Schedule.named("linear", num_levels=schedule.num_levels):
        scheduler |= {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    elif schedule == Schedule.named("cosine", num_levels=schedule.num_levels):
        scheduler |= {"beta_schedule": "squaredcos_cap_v2"}
    else:
        scheduler |= {"trained_betas": schedule.betas.tolist()}
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in state.items()}
    for name, content in ((CONFIG, config.to_dict()), (SCHEDULER, scheduler), (LEVELS, dict(about))):
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(folder / name, lambda path, text=text: path.write_text(text))
    write_atomically(folder / SAFETENSORS, lambda path: save_file(tensors, path, {"format": "pt"}))


def _read_pinned(path: Path, pins: Mapping[str, str], by_content: bool) -> dict[str, Any]:
    if not path.exists():
        raise WeightsFileError(
            f"a checkpoint folder must hold {CONFIG}, {SCHEDULER} and {SAFETENSORS}, got none at {path}. "
            "Save the network with diffusers' save_pretrained or 'sampdetox train'."
        )
    if not by_content:
        _require_pin(path, pins)
    return read_json(path, pins.get(path.name, ""))


def _require_pin(path: Path, pins: Mapping[str, str]) -> None:
    if pins and path.name not in pins:
        raise WeightsFileError(
            f"pinned weights may hold only {', '.join(sorted(pins))}, got {path} as well, of which no hash is known. "
            "Remove it and fetch the weights anew, from a source that you trust."
        )


def _read_state(folder: Path, pins: Mapping[str, str], expected: Shapes, source: str) -> dict[str, Tensor]:
    """The weights, float32 and finite, with the expected names and shapes."""
    path = folder / SAFETENSORS if (folder / SAFETENSORS).exists() else folder / PICKLED
    if not path.exists():
        raise WeightsFileError(f"a checkpoint folder must hold {SAFETENSORS}, got none in {folder}. Fetch it anew.")
    _require_pin(path, pins)
    if pins:
        verify_sha256(path, pins[path.name])
    if path.name == PICKLED:
        state = read_pickled(path)
        require_shapes(_shapes(rename_old_attention(state)), expected, source)
    else:
        header = {name: torch.empty(shape, device="meta") for name, shape in safetensors_shapes(path).items()}
        require_shapes(_shapes(rename_old_attention(header)), expected, source)
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsFileError(f"{path} must be a whole safetensors file, got: {error}. Fetch it anew.") from error
    state = {name: value.float() for name, value in rename_old_attention(state).items()}
    require_finite(state, source)
    return state


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}
