"""The demo's photographs: their sources are named, and each trigger covers what it says."""

import pytest
import torch

from sampdetox_transforms.lab.demo.photographs import BLENDED, FOLDER, NAMES, demo_triggers, photographs


def test_every_picture_has_a_source_with_a_free_licence():
    files = {path.stem for path in FOLDER.glob("*.jpg")}
    assert files == {*NAMES, BLENDED}
    text = (FOLDER / "SOURCES.txt").read_text()
    for entry in files:
        about = text.split(f"{entry}.jpg")[1].split(".jpg")[0]
        assert "CC0" in about or "public domain" in about


@pytest.mark.parametrize("name", demo_triggers())
def test_a_trigger_changes_the_pixels_that_it_covers(name):
    clean = photographs()
    planted = demo_triggers()[name].plant(clean, torch.Generator().manual_seed(0))
    changed = (planted.images - clean).abs().amax(dim=1, keepdim=True) > 0.51 / 255
    assert planted.images.shape == clean.shape
    if name == "none":
        assert not changed.any()
    elif planted.alpha is None:
        assert changed.float().mean(dim=(1, 2, 3)).min() > 0.5
    else:
        assert not (changed & (planted.alpha == 0)).any()
        assert ((planted.alpha > 0).float().mean(dim=(1, 2, 3)) - 0.025).abs().max() < 0.02
