"""The clock that all parts of ``lab/speed`` look at, stopped."""

import pytest
from clockwork import Clock

from sampdetox_transforms.lab.speed import benchmark, clocks, measure, naive


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    for module in (clocks, naive, measure, benchmark):
        monkeypatch.setattr(module, "clock", made)
    return made
