"""Fixtures for the tests of the command line: a tiny network, and none at all."""

import pytest

from sampdetox_transforms.transforms import transform


@pytest.fixture
def weights(tiny) -> str:
    """A checkpoint folder with a tiny random network that knows the levels up to 160."""
    return str(tiny)


@pytest.fixture
def no_weights(monkeypatch):
    """Fail where weights are loaded before the error that is expected."""

    def refuse(*args, **kwargs):
        raise AssertionError("the weights were loaded first")

    monkeypatch.setattr(transform, "load_denoiser", refuse)
