"""Where denoisers come from: the Hub, a folder, the package itself, or the user's own network.

Weights are untrusted input: only safetensors are read (a ``.bin`` with ``weights_only=True``), into a network that is
built here from a checked ``config.json``; named weights are pinned to a commit and a sha256. The Hub also holds
copies of these models that were backdoored on purpose: take ``user/repo@<commit>`` from those whom you trust.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.networks.denoiser import Denoiser, denoiser_of, require_epsilon
from sampdetox_transforms.networks.unet import UNet, rename_old_attention
from sampdetox_transforms.networks.unet_config import UNetConfig

CONFIG, SCHEDULER, LEVELS = "config.json", "scheduler_config.json", "sampdetox.json"

SAFETENSORS, PICKLED = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"


class WeightsFileError(OSError):
    """A weights file is missing, truncated, or not the one that its hash stands for."""


def read_checkpoint(folder: str | Path, *, source: str = "", sha256: str = "") -> Denoiser:
    """Read a folder in the format of diffusers' ``UNet2DModel`` (or of a pipeline: ``unet/`` and ``scheduler/``).

    Args:
        sha256: what the safetensors file must have; empty to take any.

    Raises:
        WeightsFileError: a file that is missing, unreadable, truncated, or has another hash.
        ValueError: a config or weights that do not fit the network.
    """
    folder = Path(folder)
    unet, scheduler = folder, folder
    if not (folder / CONFIG).exists() and (folder / "unet" / CONFIG).exists():
        unet, scheduler = folder / "unet", folder / "scheduler"
    config = UNetConfig.from_dict(_read_json(unet / CONFIG))
    schedule = schedule_from_config(_read_json(scheduler / SCHEDULER))
    about = _read_json(folder / LEVELS) if (folder / LEVELS).exists() else {}
    state = _read_state(unet, sha256)
    network = UNet(config)
    _check_state(network, state, source or str(folder))
    network.load_state_dict(state)
    return denoiser_of(network, config, schedule, about.get("max_level"), source or str(folder))


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule of a ``scheduler_config.json``; its prediction type must be the noise."""
    require_epsilon(config.get("prediction_type", "epsilon"))
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(
            "scheduler_config.json: rescale_betas_zero_snr must be false, got true. Hand the network over with its own "
            "betas: weights=(network, Schedule(betas))."
        )
    betas = config.get("trained_betas")
    if betas is not None:
        return Schedule(betas, name="custom")
    return Schedule.named(
        config.get("beta_schedule", "linear"),
        num_levels=config.get("num_train_timesteps", 1000),
        beta_start=config.get("beta_start", 1e-4),
        beta_end=config.get("beta_end", 0.02),
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsFileError(
            f"a checkpoint folder must hold {CONFIG}, {SCHEDULER} and {SAFETENSORS}, got none at {path}. "
            "Save the network with diffusers' save_pretrained or 'sampdetox train'."
        ) from error
    except ValueError as error:
        raise WeightsFileError(f"{path} must be a JSON file, got: {error}. Fetch the checkpoint anew.") from error
    if not isinstance(content, dict):
        raise WeightsFileError(f"{path} must hold a JSON object, got {type(content).__name__}. Fetch it anew.")
    return content


def _read_state(folder: Path, sha256: str) -> dict[str, Tensor]:
    path = folder / SAFETENSORS
    if path.exists():
        if sha256:
            verify_sha256(path, sha256)
        try:
            return rename_old_attention(load_file(path))
        except (SafetensorError, OSError) as error:
            raise WeightsFileError(
                f"{path} must be a whole safetensors file, got: {error}. Remove it and fetch it anew."
            ) from error
    path = folder / PICKLED
    if not path.exists():
        raise WeightsFileError(f"a checkpoint folder must hold {SAFETENSORS}, got none in {folder}. Fetch it anew.")
    if sha256:
        verify_sha256(path, sha256)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("it holds no state dict of tensors")
        return rename_old_attention(state)
    except Exception as error:  # torch.load raises many kinds on a damaged or unsafe file
        raise WeightsFileError(
            f"{path} must be readable with torch.load(weights_only=True), got: {type(error).__name__}. "
            "Use a safetensors file from a source that you trust."
        ) from error


def verify_sha256(path: Path, sha256: str) -> None:
    """Raise WeightsFileError unless the file has this sha256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise WeightsFileError(
            f"{path} must have the sha256 {sha256}, got {found}: it is truncated or not the pinned file. "
            "Remove it and fetch it anew, from a source that you trust."
        )


def _check_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} of shape {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f", and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(
            f"the weights of {source} must fit their config.json, got {'; '.join(problems[:4])}{more}. "
            "Fetch both files from the same revision."
        )
