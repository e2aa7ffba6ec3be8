"""The figure of shared triggers."""

import pytest
import torch
from PIL import Image

from sampdetox_transforms import SharedTrigger
from sampdetox_transforms.lab.drawing.shared import draw_shared_triggers, shared_trigger_row
from sampdetox_transforms.method.shared.match import Filter


def trigger() -> SharedTrigger:
    pattern = 0.2 * torch.eye(8).expand(3, 8, 8).contiguous()
    known = Filter(torch.full((3, 8, 8), 0.5), torch.ones(3, 8, 8), "own", 1.0, 0.5, 0.02)
    return SharedTrigger(pattern, torch.zeros(1, 8, 8), 0.01, 9, 0.01, known)


def test_row_shows_the_trigger_and_what_is_left():
    clean = torch.full((2, 3, 8, 8), 0.5)
    tiles = shared_trigger_row(trigger(), clean + trigger().pattern, clean=clean, shown=2)
    assert [tile.title for tile in tiles] == [
        "true trigger", "recovered", "its opacity", "before", "after", "before", "after",
    ]  # fmt: skip
    true, recovered, _, before, after = (torch.as_tensor(tile.image) for tile in tiles[:5])
    torch.testing.assert_close(true, recovered, atol=1e-5, rtol=0)
    assert recovered[0, 0, 0] == 1 and recovered[0, 1, 0] == 0.5
    assert before[0, 0, 0] == pytest.approx(0.7) and after[0, 0, 0] == pytest.approx(0.5)


def test_figure(tmp_path):
    images = torch.full((1, 3, 8, 8), 0.5) + trigger().pattern
    draw_shared_triggers({"eye": (trigger(), images, None)}, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert min(picture.size) > 100
