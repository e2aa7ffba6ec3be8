"""Which of several purifications of the same image it is: with a seed, each draws noise of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

PASS: ContextVar[int] = ContextVar("pass_index", default=0)


@contextmanager
def in_pass(pass_index: int) -> Iterator[None]:
    """Within it, seeded noise is that of another purification of the same images."""
    token = PASS.set(pass_index)
    try:
        yield
    finally:
        PASS.reset(token)
