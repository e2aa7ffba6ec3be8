"""Plots: whole files or none."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from cli_pictures import files

from sampdetox_transforms.lab.drawing import plots


def test_a_drawing_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(plots.Figure, "savefig", full)
    with pytest.raises(OSError, match=r"No space"):
        plots.draw_loss_curve([1.0], tmp_path / "loss.png")
    assert files(tmp_path) == []


@pytest.mark.parametrize("losses", [[0.5], [0.5, float("nan")], list(np.geomspace(1, 0.01, 400)), [-1.0, 2.0, 3.0]])
def test_loss_curves(tmp_path, losses):
    plots.draw_loss_curve(losses, tmp_path / "loss.png")
    assert files(tmp_path) == ["loss.png"]
    with pytest.raises(ValueError, match="a step at least"):
        plots.draw_loss_curve([], tmp_path / "none.png")
