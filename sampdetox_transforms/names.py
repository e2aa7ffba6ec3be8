"""Choices by name: refuse what is not among them, and suggest what may have been meant."""

from collections.abc import Iterable
from difflib import get_close_matches


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
