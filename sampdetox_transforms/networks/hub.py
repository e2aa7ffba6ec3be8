"""Checkpoints from the Hugging Face Hub: download, cache, and what to say when it fails.

What a server says of a file is looked at before huggingface_hub acts upon it: the commit and the etag become names in
the cache, and the size is how much is written there.
"""

import inspect
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sampdetox_transforms.networks.checkpoints import CONFIG, LEVELS, PICKLED, SAFETENSORS, SCHEDULER
from sampdetox_transforms.networks.safe_files import MAX_JSON_BYTES, MAX_WEIGHTS_BYTES

LOG = logging.getLogger("sampdetox_transforms")

NAME = re.compile(r"(?![./-])[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)

REVISION = re.compile(r"(?!.*(\.\.|//|/\.))[A-Za-z0-9][\w./-]{0,199}(?<![/.])", re.ASCII)

COMMIT = re.compile(r"[0-9a-f]{40}")

ETAG = re.compile(r"(?!\.)[\w.:+=-]{1,128}", re.ASCII)

WAITS = (0.5, 1.5)  # seconds before the second and the third attempt, where the server fails

PATIENCE = 5.0  # seconds after which no further attempt is made

BUSY = (408, 429, 500, 502, 503, 504)  # HTTP: another attempt may do


class DownloadError(OSError):
    """The Hub could not be reached, or does not hold what was asked for."""


class _Refused(Exception):
    """What the server says cannot be, or is not what was asked for."""


class _Unreachable(Exception):
    """The server did not answer, or said that it cannot, and the cache does not hold the file."""


@dataclass(frozen=True)
class HubRepo:
    """A repository on the Hub; ``str`` gives the form that ``weights=`` takes.

    Raises:
        ValueError: a name or a revision that the Hub cannot have; a revision becomes a path in the cache.
    """

    repo: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if not self.is_name(self.repo):
            raise ValueError(f"a repository must be named 'user/repo', got {self.repo!r:.200}. Copy it from its page.")
        if self.revision is not None and not REVISION.fullmatch(self.revision):
            raise ValueError(
                "a revision must be a branch, a tag or a commit of letters, digits and '.', '_', '-', '/', without "
                f"'..' and at most 200 long, got {self.revision!r:.300}. Copy it from the repository's page."
            )

    @staticmethod
    def is_name(text: str) -> bool:
        """Whether it has the form user/repo."""
        return NAME.fullmatch(text) is not None

    @property
    def commit(self) -> str:
        """The revision where it is a commit, which does not change; empty for a branch or a tag."""
        return self.revision if self.revision and COMMIT.fullmatch(self.revision) else ""

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
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    files = _Files(repo, cache_dir, local_files_only or constants.HF_HUB_OFFLINE, token)

    def get_optional(name: str, *others: str) -> Path | None:
        """None where the repository does not have the file; one of ``others`` in the cache shows that it does not."""
        known_absent = files.cached(name) is not None and not isinstance(files.cached(name), str)
        if known_absent and repo.commit:
            return None  # a commit does not change
        try:
            return files.get(name)
        except (LocalEntryNotFoundError, _Unreachable):
            if known_absent or any(isinstance(files.cached(other), str) for other in others):
                return None
            raise
        except EntryNotFoundError:
            return None

    try:
        config = get_optional(CONFIG, f"unet/{CONFIG}")
        if config is not None:
            folder, prefix = config.parent, ""
            files.get(SCHEDULER)
        else:  # the layout of a diffusers pipeline
            folder, prefix = files.get(f"unet/{CONFIG}").parent.parent, "unet/"
            files.get(f"scheduler/{SCHEDULER}")
        get_optional(LEVELS, prefix + SAFETENSORS, prefix + PICKLED)
        if get_optional(prefix + SAFETENSORS, prefix + PICKLED) is None:
            files.get(prefix + PICKLED)
    except Exception as error:
        cache = Path(cache_dir) if cache_dir else Path(constants.HF_HUB_CACHE)
        cause = error.__cause__ or error if isinstance(error, _Unreachable) else error
        reason = next(iter(str(cause).strip().splitlines()), "")
        kind = "" if isinstance(cause, _Refused) else f"{type(cause).__name__}: "
        raise DownloadError(
            f"could not fetch the weights {repo.repo}: use weights='bundled', which needs no network, or fetch them "
            f"where there is one, with 'sampdetox weights fetch {repo}' (HF_HOME names the cache to carry over). "
            f"Revision {repo.revision or 'main'} was asked of {constants.ENDPOINT}, for {cache}: {kind}{reason}"
        ) from None  # ninety lines of the HTTP library would hide it
    return folder


class _Files:
    """The files of one repository, each asked for once before huggingface_hub downloads it."""

    def __init__(self, repo: HubRepo, cache_dir: str | Path | None, offline: bool, token: str | bool | None):
        from sampdetox_transforms import __version__

        self.repo, self.cache_dir, self.offline, self.token = repo, cache_dir, offline, token
        self.library: dict[str, Any] = {"library_name": "sampdetox-transforms", "library_version": __version__}
        self.commit = repo.commit  # of the first file that was got; all others must be of the same

    def cached(self, name: str) -> Any:
        """Its path; or a mark that the repository does not have it; or None."""
        from huggingface_hub import try_to_load_from_cache

        return try_to_load_from_cache(self.repo.repo, name, cache_dir=self.cache_dir, revision=self.repo.revision)

    def get(self, name: str) -> Path:
        """Download it, or find it in the cache: where it has been before and the server does not answer."""
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

        known = self.cached(name)
        here = isinstance(known, str)
        if self.offline or (here and self.repo.commit):
            return self._download(name, local=True)
        try:
            self._check_answer(name, attempts=1 if known is not None else 1 + len(WAITS))
        except (EntryNotFoundError, RevisionNotFoundError):  # huggingface_hub notes it in the cache
            return self._download(name)
        except _Refused:
            raise
        except Exception as error:  # of the HTTP library, which is another in other versions of huggingface_hub
            if not here and isinstance(error, RepositoryNotFoundError):
                raise
            if not here:
                raise _Unreachable from error
            LOG.warning("the Hub does not answer for %s (%s): the file in the cache is taken", name, error)
            return self._download(name, local=True)
        return self._download(name)

    def _check_answer(self, name: str, attempts: int) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError

        url = hf_hub_url(self.repo.repo, name, revision=self.repo.revision)
        start = time.monotonic()
        for attempt in range(1, attempts + 1):
            try:
                found = get_hf_file_metadata(url, token=self.token, **self.library)
                break
            except HfHubHTTPError as error:
                response = error.response
                status = getattr(response, "status_code", None)
                if status == 404:
                    self._check_commit(name, getattr(response, "headers", {}).get("X-Repo-Commit") or self.commit)
                if status not in BUSY or attempt == attempts or time.monotonic() - start > PATIENCE:
                    raise
                wait = WAITS[attempt - 1]
                LOG.warning(
                    "the Hub answers %s for %s: again in %.1f s (attempt %d of %d)",
                    status,
                    url,
                    wait,
                    attempt,
                    attempts,
                )
                time.sleep(wait)
        self._check_commit(name, found.commit_hash)
        if not ETAG.fullmatch(found.etag or ""):
            raise _Refused(f"the server must name {name} by an etag of letters and digits, got {found.etag!r:.200}.")
        if found.size is None or found.size > largest(name):
            raise _Refused(f"{name} must have {largest(name)} bytes or fewer, got {found.size} from the server.")

    def _check_commit(self, name: str, commit: str | None) -> None:
        if (commit and not COMMIT.fullmatch(commit)) or (self.commit and commit != self.commit):
            raise _Refused(
                f"the server must answer for {name} with the commit {self.commit or 'of 40 hex digits'}, "
                f"got {commit!r:.200}. Do not trust it, unless the branch has moved just now: then start again."
            )

    def _download(self, name: str, *, local: bool = False) -> Path:
        from huggingface_hub import hf_hub_download

        guard: dict[str, Any] = {}
        if "tqdm_class" in inspect.signature(hf_hub_download).parameters:
            guard = {"tqdm_class": _bounded_progress(name)}
        path = Path(
            hf_hub_download(
                self.repo.repo,
                name,
                revision=self.repo.revision,
                cache_dir=self.cache_dir,
                local_files_only=local,
                token=self.token,
                **self.library,
                **guard,
            )
        )
        snapshot = path.parents[name.count("/")]
        self._check_commit(name, snapshot.name)
        self.commit = snapshot.name
        return path


def largest(name: str) -> int:
    """How many bytes a file may have."""
    return MAX_JSON_BYTES if name.endswith(".json") else MAX_WEIGHTS_BYTES


def _bounded_progress(name: str) -> Callable[..., Any]:
    """huggingface_hub's progress bar, which ends the download of a body that does not end itself."""
    from huggingface_hub.utils import tqdm

    class Bounded(tqdm):
        received = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += n or 0
            if self.received > largest(name):
                raise _Refused(f"{name} must have {largest(name)} bytes or fewer, got more from the server.")
            return super().update(n)

    return Bounded
