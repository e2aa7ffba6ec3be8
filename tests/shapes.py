"""The shapes in the package's signatures, checked in each call that a test makes: for jaxtyping's import hook.

Only what names a shape is checked: what is no tensor is refused by the package itself, with words of its own.
"""

from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype


def checked(function: Callable) -> Callable:
    """``function`` with its shapes checked by beartype."""
    function.__annotations__ = {
        name: hint if has_shape(hint) else Any for name, hint in function.__annotations__.items()
    }
    return _beartype(function)


def has_shape(hint: Any) -> bool:
    """Whether one of jaxtyping's shapes is a part of a type."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(has_shape(part) for part in get_args(hint) if not isinstance(part, list))


_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float
