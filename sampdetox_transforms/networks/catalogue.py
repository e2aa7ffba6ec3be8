"""Named weights, and whatever else ``weights=`` may be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any

from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.networks.checkpoints import CONFIG, LEVELS, SAFETENSORS, SCHEDULER, read_checkpoint
from sampdetox_transforms.networks.denoiser import Denoiser, adapt
from sampdetox_transforms.networks.hub import HubRepo, fetch
from sampdetox_transforms.networks.unet_config import UNetConfig

BUNDLED_FOLDER = Path(__file__).parent / "weights" / "bundled"


@dataclass(frozen=True)
class WeightsMeta:
    """What is known of named weights.

    Attributes:
        repo, revision: repository on the Hub and the commit it is pinned to; empty for the bundled weights.
        sha256: of each file that is read, by its name.
        architecture, schedule: what config.json and scheduler_config.json say, where their hashes are not known.
    """

    repo: str
    revision: str
    sha256: Mapping[str, str] = field(hash=False)
    licence: str
    size_mb: float
    description: str
    architecture: UNetConfig | None = None
    schedule: Schedule | None = None


class DetoxWeights(Enum):
    """Named weights; ``.value`` (or ``.meta``) says where they come from."""

    DDPM_CIFAR10_32 = WeightsMeta(
        repo="google/ddpm-cifar10-32",
        revision="267b167dc01f0e4e61923ea244e8b988f84deb80",
        sha256={SAFETENSORS: "1558dbe3fb093b0857d473e376b711eeda1b186c557be5e85b3a56300cd49f0f"},
        licence="Apache-2.0",
        size_mb=143.0,
        description="CIFAR-10, 32x32, all 1000 levels (Ho et al. 2020), 35.7 M parameters, 12.4 GFLOP a call",
        architecture=UNetConfig(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            attention_head_dim=None,
            norm_eps=1e-6,
        ),
        schedule=Schedule.named("linear"),
    )
    BUNDLED = WeightsMeta(
        repo="",
        revision="",
        sha256={
            SAFETENSORS: "86bc0a319ce052bb947c596094776bc1fb6d1ad73c349003df854d1b78a7d852",
            CONFIG: "1df4b324ecaae38fa26a7097e5dc929ef1d3550e23831013523e8418018231f1",
            SCHEDULER: "f9d76990d3f6b8693c2de0a299bf9301938dc6677c84b5743d1213265ea51f16",
            LEVELS: "24e35fde94d1ccfa550f4adf1ced3bcb420dd8a15f0cbf48e21aaab663280e55",
        },
        licence="Apache-2.0",
        size_mb=6.5,
        description="GTSRB and CIFAR-10, 32x32, levels 1 to 160, 3.2 M parameters, 1.2 GFLOP a call; in the package",
    )
    DEFAULT = DDPM_CIFAR10_32

    @property
    def meta(self) -> WeightsMeta:
        """Where the weights come from, their hash and licence."""
        return self.value


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
    repo, at, revision = text.partition("@")
    if HubRepo.is_name(repo) and bool(at) == bool(revision):
        return HubRepo(repo, revision or None)
    near = get_close_matches(name, names, n=2, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else "weights='bundled' needs no network."
    raise ValueError(
        f"weights must be one of {list(names)}, an existing folder or 'user/repo[@revision]', got {text!r}. {hint}"
    )


def read_named(weights: DetoxWeights, folder: Path) -> Denoiser:
    """Read the folder that named weights were fetched to; every file must be the pinned one."""
    meta = weights.meta
    source = meta.repo or weights.name.lower()
    return read_checkpoint(
        folder, source=source, sha256=meta.sha256, architecture=meta.architecture, schedule=meta.schedule
    )


def _load_named(weights: DetoxWeights, cache_dir, local_files_only: bool, token) -> Denoiser:
    meta = weights.meta
    if not meta.repo:
        return read_named(weights, BUNDLED_FOLDER)
    repo = HubRepo(meta.repo, meta.revision)
    return read_named(weights, fetch(repo, cache_dir=cache_dir, local_files_only=local_files_only, token=token))
