"""What the commands share: devices, settings, checks before any work, and how things are said."""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from sampdetox_transforms.transforms.transform import SampDetox

LOG = logging.getLogger("sampdetox_transforms")


# What is said


class ToStderr(logging.Handler):
    """Log records as lines on stderr, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = f"sampdetox: {printable(self.format(record))}"
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Within it, what the library logs goes to stderr; ``listen`` says how much of it."""
    handler, level = ToStderr(), LOG.level
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)


def listen(verbose: int, quiet: bool) -> None:
    """Set what is logged by -v and --quiet; ValueError for both."""
    if verbose and quiet:
        raise ValueError("-v and --quiet must not be given together, got both. Leave one out.")
    LOG.setLevel(logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])


def printable(text: object) -> str:
    """Text in which line ends and what else a terminal would obey, or cannot show, is written out.

    File names are untrusted, and need not be UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def say(text: str, *, quiet: bool = False) -> None:
    """Print lines, unless ``quiet``."""
    if not quiet:
        print("\n".join(printable(line) for line in text.split("\n")), flush=True)


def say_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object; paths become text, NaN becomes null."""
    print(json.dumps(_plain(content), indent=1, default=str), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def say_facts(facts: Mapping[str, object]) -> None:
    """Print one ``name  value`` a line, the values aligned."""
    size = max(map(len, facts))
    say("\n".join(f"{name.ljust(size)}  {printable(value)}" for name, value in facts.items()))


def bar_off(quiet: bool) -> bool | None:
    """What tqdm takes as ``disable``: drawn on terminals only, and not where it is to be quiet."""
    return True if quiet else None


def keyed_progress(bar: Any) -> Callable[[str, int, int], None]:
    """A function of (what, done, total) that moves one tqdm bar, begun anew for each ``what``."""
    now = None

    def progress(what: str, done: int, total: int) -> None:
        nonlocal now
        if what != now:
            now = what
            bar.reset(total)
            bar.set_description(what)
        bar.n = done
        bar.update(0)

    return progress


# Settings


def choose_device(device: str | None) -> str:
    """The device that was asked for, or CUDA where there is one; ValueError where it is not there."""
    import torch

    from sampdetox_transforms.transforms.images import check_device

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    return device


def read_dtype(name: str) -> "torch.dtype | None":
    """The dtype of a name of ``flags.Dtype``; None is the fastest one."""
    import torch

    return None if name == "auto" else getattr(torch, str(name))


def given(**settings: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in settings.items() if value is not None}


def make_detox(*, device: str | None, dtype: str = "auto", seed: int | None = None, **settings: Any) -> "SampDetox":
    """``SampDetox`` with the settings that were given, by the names of its parameters; the others are its own."""
    from sampdetox_transforms.transforms.transform import SampDetox

    return SampDetox(**given(**settings), device=choose_device(device), dtype=read_dtype(dtype), seed=seed)


def settings_of(detox: "SampDetox") -> dict[str, str]:
    """The weights and the settings in words."""
    from sampdetox_transforms.method.restore import SMALL

    s: Any = detox.settings
    local = "search and fill" if detox.restorer is not None else f"map {getattr(s, 'map', 'ssim')}"
    others = {f"above {SMALL} pixels": getattr(s, "t1_large", None), "in doubt": getattr(s, "t1_doubt", None)}
    own = ", ".join(f"{level} {where}" for where, level in others.items() if level is not None)
    own = own and f" ({own})"
    walk = f"{s.sampler}, stride {s.stride}" if hasattr(s, "sampler") else "ddpm, stride 1"
    return {
        "weights": f"{detox.denoiser.source}, levels 1 to {detox.denoiser.max_level}",
        "settings": f"t1={s.t1}{own}, t2={s.t2}, {walk}, {local}, {detox.schedule.name} levels",
    }


# Checks before any work


def check_writable(folder: Path) -> None:
    """Raise OSError now where files in ``folder``, which need not exist yet, could not be written. Makes nothing."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"results must go where files can be written, got {folder}: {reason}. Give another.") from error


def check_json(out: Path | None, remedy: str = "The table goes beside it as .md.") -> None:
    """Raise ValueError or OSError now where ``--out`` is not a JSON file that can be written; None is fine."""
    if out is not None:
        if out.suffix != ".json":
            raise ValueError(f"--out must end in .json, got {out}. {remedy}")
        check_writable(out.parent)


def check_at_least(least: int, **values: int) -> None:
    """Raise ValueError for the first that is less; the names are those of flags."""
    for name, value in values.items():
        if value < least:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} must be {least} or more, got {value}. Leave it out for the default.")
