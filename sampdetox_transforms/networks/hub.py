"""Checkpoints from the Hugging Face Hub: download, cache, and what to say when it fails."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sampdetox_transforms.networks.checkpoints import CONFIG, LEVELS, PICKLED, SAFETENSORS, SCHEDULER


class DownloadError(OSError):
    """The Hub could not be reached, or does not hold what was asked for."""


@dataclass(frozen=True)
class HubRepo:
    """A repository on the Hub; ``str`` gives the form that ``weights=`` takes."""

    repo: str
    revision: str | None = None
    files: tuple[str, ...] = field(default=(CONFIG, SCHEDULER, SAFETENSORS), compare=False)

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


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
