"""Where denoisers come from: the Hub, a folder, the package itself, or the user's own network.

Weights are untrusted input: only safetensors are read (a ``.bin`` with ``weights_only=True``), into a network that is
built here from a checked ``config.json``; named weights are pinned to a commit and a sha256. The Hub also holds
copies of these models that were backdoored on purpose: take ``user/repo@<commit>`` from those whom you trust.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Real
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sampdetox_transforms.precision import set_precision
from sampdetox_transforms.schedule import SCHEDULES, Schedule
from sampdetox_transforms.ssim import symmetric_pad
from sampdetox_transforms.tiles import MAX_SIDE, in_parts
from sampdetox_transforms.unet import UNet, UNetConfig, rename_old_attention

CONFIG, SCHEDULER, LEVELS = "config.json", "scheduler_config.json", "sampdetox.json"
SAFETENSORS, PICKLED = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
BUNDLED_FOLDER = Path(__file__).parent / "weights" / "bundled"
# Attention over more positions would need more than 1 GiB of float32 an image where no fused kernel serves.
MAX_ATTENTION_POSITIONS = 128 * 128


class DownloadError(OSError):
    """The Hub could not be reached, or does not hold what was asked for."""


class WeightsFileError(OSError):
    """A weights file is missing, truncated, or not the one that its hash stands for."""


@dataclass(frozen=True)
class WeightsMeta:
    """What is known of named weights.

    Attributes:
        repo, revision: repository on the Hub and the commit it is pinned to; empty for the bundled weights.
        sha256: of the safetensors file.
    """

    repo: str
    revision: str
    sha256: str
    licence: str
    size_mb: float
    description: str


class DetoxWeights(Enum):
    """Named weights; ``.value`` (or ``.meta``) says where they come from."""

    DDPM_CIFAR10_32 = WeightsMeta(
        repo="google/ddpm-cifar10-32",
        revision="267b167dc01f0e4e61923ea244e8b988f84deb80",
        sha256="1558dbe3fb093b0857d473e376b711eeda1b186c557be5e85b3a56300cd49f0f",
        licence="Apache-2.0",
        size_mb=143.0,
        description="CIFAR-10, 32x32, all 1000 levels (Ho et al. 2020), 35.7 M parameters, 12.4 GFLOP a call",
    )
    BUNDLED = WeightsMeta(
        repo="",
        revision="",
        sha256="86bc0a319ce052bb947c596094776bc1fb6d1ad73c349003df854d1b78a7d852",
        licence="Apache-2.0",
        size_mb=6.5,
        description="GTSRB and CIFAR-10, 32x32, levels 1 to 160, 3.2 M parameters, 1.2 GFLOP a call; in the package",
    )
    DEFAULT = DDPM_CIFAR10_32

    @property
    def meta(self) -> WeightsMeta:
        """Where the weights come from, their hash and licence."""
        return self.value


class Denoiser(nn.Module):
    """A network that predicts the noise, with the schedule and the levels that it was trained for.

    Calling it pads images to the size that the network needs (mirrored at the borders, cropped off again), casts to
    the network's dtype, and goes by tiles where images are large (``tiles.py``). It is put in eval mode, and its
    parameters get no gradients.

    Args:
        network: callable (x_t, t) -> eps; diffusers' ``UNet2DModel`` too, whose output holds eps in ``.sample``.
        schedule: the noise schedule that it was trained with.
        channels: 1 or 3.
        size_multiple: height and width that it takes are multiples of this number.
        max_level: the highest noise level that it was trained for; None for all.
        attention_scales: by how much the image is reduced where the network attends.
        source: where it comes from, for display.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Any],
        schedule: Schedule,
        *,
        channels: int = 3,
        size_multiple: int = 1,
        max_level: int | None = None,
        attention_scales: tuple[int, ...] = (),
        source: str = "custom",
    ):
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}. Wrap the network so that it takes grey or RGB.")
        max_level = schedule.num_levels if max_level is None else max_level
        if isinstance(max_level, bool) or not isinstance(max_level, int) or not 1 <= max_level <= schedule.num_levels:
            raise ValueError(
                f"max_level must be a whole number in [1, {schedule.num_levels}], got {max_level!r}. "
                "Leave it out for all levels of the schedule."
            )
        self.network = network
        self.schedule, self.channels, self.size_multiple = schedule, channels, size_multiple
        self.max_level, self.attention_scales, self.source = max_level, attention_scales, source
        self.requires_grad_(False)
        self.train(False)

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are; None for a network without any."""
        return next((p.device for p in self.parameters()), None)

    @property
    def dtype(self) -> torch.dtype:
        """In what the network computes."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    def train(self, mode: bool = True) -> "Denoiser":
        """Stay in eval mode, whatever the module around it does."""
        return super().train(False)

    def set_precision(self, dtype: torch.dtype | None) -> "Denoiser":
        """Convert the parameters; None leaves them. Convolution weights are kept in channels_last order."""
        if isinstance(self.network, nn.Module):
            set_precision(self.network, dtype)
        return self

    @property
    def largest_side(self) -> int:
        """Images of more than its square in pixels go by tiles of this side at most: less with attention."""
        return min([MAX_SIDE, *(int(MAX_ATTENTION_POSITIONS**0.5) * scale for scale in self.attention_scales)])

    def forward(self, x_t: Float[Tensor, "b c h w"], t: Real[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Predicted noise, shaped like ``x_t``, at timesteps t = level - 1."""
        height, width = x_t.shape[-2:]
        rows, columns = -height % self.size_multiple, -width % self.size_multiple
        top, left = rows // 2, columns // 2
        padded = symmetric_pad(x_t, left, columns - left, top, rows - top)
        eps = in_parts(self._predict, padded, t, side=self.largest_side, multiple=self.size_multiple)
        return eps[..., top : top + height, left : left + width].to(x_t.dtype)

    def _predict(self, x: Tensor, t: Tensor) -> Tensor:
        eps = self.network(x.to(self.dtype, memory_format=torch.channels_last), t)
        return getattr(eps, "sample", eps)


def load_denoiser(
    weights: Any = DetoxWeights.DEFAULT,
    *,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Denoiser:
    """Make a denoiser of whatever ``weights`` is.

    Args:
        weights: a ``DetoxWeights`` member or its name in any case; ``"user/repo"`` or ``"user/repo@revision"`` on the
            Hub; a folder in diffusers' format, which comes first where both exist; a ``Denoiser``; or a pair
            (network, schedule) of a callable and a ``Schedule``, a schedule's name or a diffusers scheduler.
        cache_dir, local_files_only, token: passed on to huggingface_hub.

    Raises:
        DownloadError: the Hub cannot be reached, or does not hold the files.
        WeightsFileError: a file is missing, truncated or has another hash than the pinned one.
        ValueError: an unknown name, an unsupported config, or weights that do not fit it.
        TypeError: anything else than listed above.
    """
    if isinstance(weights, Denoiser):
        return weights
    if isinstance(weights, str):
        weights = parse_weights(weights)
    if isinstance(weights, DetoxWeights):
        return _load_named(weights, cache_dir, local_files_only, token)
    if isinstance(weights, HubRepo):
        folder = fetch(weights, cache_dir=cache_dir, local_files_only=local_files_only, token=token)
        return read_checkpoint(folder, source=str(weights))
    if isinstance(weights, Path):
        return read_checkpoint(weights, source=str(weights))
    if hasattr(weights, "unet") and hasattr(weights, "scheduler"):  # diffusers' DDPMPipeline
        weights = (weights.unet, weights.scheduler)
    if isinstance(weights, tuple) and len(weights) == 2 and callable(weights[0]):
        return adapt(*weights)
    if callable(weights):
        raise TypeError(
            f"a network must come with the schedule that it was trained with, got {type(weights).__name__} alone. "
            "Pass weights=(network, 'linear'), or a Denoiser(network, schedule)."
        )
    raise TypeError(
        "weights must be a DetoxWeights member, a name, 'user/repo[@revision]', a folder or (network, schedule), "
        f"got {type(weights).__name__}. weights='bundled' needs no network."
    )


def adapt(network: Callable, schedule: Any) -> Denoiser:
    """A user's own network as a ``Denoiser``; sizes are read from the config of a diffusers ``UNet2DModel``."""
    if isinstance(schedule, str):
        schedule = Schedule.named(schedule)
    elif hasattr(schedule, "betas") and not isinstance(schedule, Schedule):
        prediction = getattr(getattr(schedule, "config", None), "prediction_type", "epsilon")
        _require_epsilon(prediction)
        schedule = Schedule(schedule.betas, name="custom")
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"the schedule must be a Schedule, one of {SCHEDULES} or a diffusers scheduler, "
            f"got {type(schedule).__name__}. Build one with Schedule(betas)."
        )
    config = getattr(network, "config", None)
    widths = getattr(config, "block_out_channels", None)
    if isinstance(config, UNetConfig):
        return _denoiser_of(network, config, schedule, None, "custom")
    if config is None or widths is None:
        return Denoiser(network, schedule)
    types = [*config.down_block_types, *reversed(config.up_block_types)]
    scales = {2 ** (i % len(widths)) for i, name in enumerate(types) if "Attn" in name}
    multiple = 2 ** (len(widths) - 1)
    if getattr(config, "add_attention", True):
        scales.add(multiple)
    return Denoiser(
        network,
        schedule,
        channels=config.in_channels,
        size_multiple=multiple,
        attention_scales=tuple(sorted(scales)),
        source=type(network).__name__,
    )


@dataclass(frozen=True)
class HubRepo:
    """A repository on the Hub; ``str`` gives the form that ``weights=`` takes."""

    repo: str
    revision: str | None = None
    files: tuple[str, ...] = field(default=(CONFIG, SCHEDULER, SAFETENSORS), compare=False)

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


def parse_weights(text: str) -> DetoxWeights | HubRepo | Path:
    """Tell a name, a folder and a repository on the Hub apart.

    Raises:
        ValueError: none of the three; the nearest names are suggested.
    """
    names = DetoxWeights.__members__
    name = text.upper().replace("-", "_")
    if name in names:
        return names[name]
    if text and Path(text).is_dir():
        return Path(text)
    for member in DetoxWeights:
        if text and text == member.meta.repo:
            return member
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", text) and not text.startswith((".", "/")):
        repo, _, revision = text.partition("@")
        return HubRepo(repo, revision or None)
    near = get_close_matches(name, names, n=2, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else "weights='bundled' needs no network."
    raise ValueError(
        f"weights must be one of {list(names)}, an existing folder or 'user/repo[@revision]', got {text!r}. {hint}"
    )


def fetch(
    repo: HubRepo,
    *,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Download a checkpoint into the Hub's cache, or find it there, and return its folder.

    Raises:
        DownloadError: saying what was wanted, from where, and how to fetch it beforehand.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from sampdetox_transforms import __version__

    def get(name: str) -> Path:
        path = hf_hub_download(
            repo.repo,
            name,
            revision=repo.revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            library_name="sampdetox-transforms",
            library_version=__version__,
        )
        return Path(path)

    def cached(name: str) -> Any:
        return try_to_load_from_cache(repo.repo, name, cache_dir=cache_dir, revision=repo.revision)

    def get_optional(name: str, *others: str) -> Path | None:
        """None where the repository does not have the file; one of ``others`` in the cache shows that it does not."""
        known_absent = cached(name) is not None and not isinstance(cached(name), str)
        if known_absent and re.fullmatch(r"[0-9a-f]{40}", repo.revision or ""):
            return None  # a commit does not change
        try:
            return get(name)
        except LocalEntryNotFoundError:
            if known_absent or any(isinstance(cached(other), str) for other in others):
                return None
            raise
        except EntryNotFoundError:
            return None

    try:
        config = get_optional(CONFIG, f"unet/{CONFIG}")
        if config is not None:
            folder, prefix = config.parent, ""
            get(SCHEDULER)
        else:  # the layout of a diffusers pipeline
            folder, prefix = get(f"unet/{CONFIG}").parent.parent, "unet/"
            get(f"scheduler/{SCHEDULER}")
        get_optional(LEVELS, prefix + SAFETENSORS, prefix + PICKLED)
        if get_optional(prefix + SAFETENSORS, prefix + PICKLED) is None:
            get(prefix + PICKLED)
    except Exception as error:
        cache = Path(cache_dir) if cache_dir else Path(constants.HF_HUB_CACHE)
        reason = next(iter(str(error).strip().splitlines()), "")
        raise DownloadError(
            f"could not fetch the weights {repo.repo} (revision {repo.revision or 'main'}) from {constants.ENDPOINT} "
            f"into {cache}: {type(error).__name__}: {reason} "
            f"Fetch them beforehand, where there is a network, with 'sampdetox weights fetch {repo}' (HF_HOME names "
            "the cache to carry over), or use weights='bundled', which needs no network."
        ) from error
    return folder


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
    return _denoiser_of(network, config, schedule, about.get("max_level"), source or str(folder))


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule of a ``scheduler_config.json``; its prediction type must be the noise."""
    _require_epsilon(config.get("prediction_type", "epsilon"))
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


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file beside ``path`` and rename it: the file appears whole, or not at all (OSError)."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # what the umask gives; safetensors would leave the file to its owner only
        write(part)
        part.chmod(mode)
        os.replace(part, path)
    except SafetensorError as error:  # a full disk, while weights are written
        raise OSError(f"{path} could not be written: {error}. Make room, then start again.") from error
    finally:
        part.unlink(missing_ok=True)


def _load_named(weights: DetoxWeights, cache_dir, local_files_only: bool, token) -> Denoiser:
    meta = weights.meta
    if not meta.repo:
        return read_checkpoint(BUNDLED_FOLDER, source=weights.name.lower(), sha256=meta.sha256)
    repo = HubRepo(meta.repo, meta.revision)
    folder = fetch(repo, cache_dir=cache_dir, local_files_only=local_files_only, token=token)
    return read_checkpoint(folder, source=meta.repo, sha256=meta.sha256)


def _denoiser_of(network: Callable, config: UNetConfig, schedule: Schedule, max_level, source: str) -> Denoiser:
    denoiser = Denoiser(
        network,
        schedule,
        channels=config.in_channels,
        size_multiple=config.size_multiple,
        max_level=max_level,
        attention_scales=config.attention_scales,
        source=source,
    )
    return denoiser.set_precision(None)


def _require_epsilon(prediction_type: str) -> None:
    if prediction_type != "epsilon":
        raise ValueError(
            f"the network must predict the noise (prediction_type 'epsilon'), got {prediction_type!r}. "
            "Wrap it in a callable that returns eps."
        )


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
