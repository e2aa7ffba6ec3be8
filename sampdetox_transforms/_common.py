"""What every room needs: choices by name, errors in one line, files that appear whole or not at all."""

import os
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def suggest(value: object, allowed: Iterable[object]) -> str:
    """The remedy for a name that is not allowed: the nearest ones, case and "_" for "-" aside."""
    names = [name for name in allowed if isinstance(name, str)]
    text = str(value).lower()
    near = get_close_matches(text.replace("_", "-"), names, cutoff=0.4) or get_close_matches(text, names, cutoff=0.4)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else "Choose one of these."


def check_choice(name: str, value: object, allowed: tuple) -> None:
    """Raise ValueError unless ``value`` is one of the allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}. {suggest(value, allowed)}")


def is_whole(value: object, low: int, high: int) -> bool:
    """Whether it is a whole number in [low, high], and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float, high: float) -> bool:
    """Whether it is a number in [low, high], and no truth value; NaN is in no range."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


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


def one_line(error: BaseException) -> str:
    """The message of an error on one line; of an error in a DataLoader worker the message at its end."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else " ".join(" ".join(lines).split())
