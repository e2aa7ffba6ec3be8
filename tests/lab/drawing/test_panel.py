"""Panels: tiles of an image's way through the method."""

import numpy as np
import pytest
import torch
from cli_pictures import colours, files, pixels

from sampdetox_transforms import SampDetox
from sampdetox_transforms.lab.demo.classifier import TRIGGERS
from sampdetox_transforms.lab.demo.signs import draw_signs
from sampdetox_transforms.lab.drawing import panel


def test_an_explanation_becomes_six_tiles(tiny):
    image = torch.tensor(colours(size=(8, 8, 3))).permute(2, 0, 1)
    detox = SampDetox(str(tiny), preset="ddim", seed=0)
    alone, batch = detox.explain(image), detox.explain(torch.stack([image.flip(1), image]))
    row, same = panel.explanation_row(image, alone, t2=120, factor=2), panel.explanation_row(image, batch, 1, factor=2)
    assert len(row) == 6 and row[3].high == 120
    for tile, other in zip(row, same, strict=True):
        assert tile.title == other.title and np.allclose(tile.image, other.image, atol=0.02, rtol=1e-2)
    difference = np.clip(0.5 + 2 * (row[4].image - row[0].image), 0, 1)
    assert np.array_equal(row[5].image, difference) and "x 2" in row[5].title
    assert np.allclose(row[0].image, colours(size=(8, 8, 3)) / 255)


def test_an_explanation_with_a_search_shows_suspicion_and_filled_pixels():
    signs, _ = draw_signs(2, seed=4)
    marked = TRIGGERS[2].plant(signs[1])
    explained = SampDetox("bundled", preset="restore", seed=0).explain(marked)
    row = panel.explanation_row(marked, explained)
    assert [tile.title for tile in row[2:4]] == ["trigger probability of each pixel", "filled pixels"]
    assert (row[2].low, row[2].high) == (0, 1) and 0 <= row[2].image.min() <= row[2].image.max() <= 1
    assert row[2].image[27:31, 27:31].mean() > 0.5 > row[2].image[:20].mean()
    assert row[3].image[27:31, 27:31].all() and not row[3].image[:20].any()


def test_amplification_fills_the_range_without_leaving_it():
    assert panel.amplification(np.full((4, 4), 0.02)) == 20
    assert panel.amplification(np.full((4, 4), -0.3)) == 1
    assert panel.amplification(np.zeros((4, 4))) == 100


def test_panels_of_many_shapes(tmp_path):
    grey, colour = np.zeros((5, 9)), np.full((9, 5, 3), 200, dtype="uint8")
    rows = [
        ("a row\nof two", [("grey", grey), ("map", grey, "magma", 0, 1)]),
        [panel.Tile("colour", colour)],
        [],
        ("tall", [("", np.zeros((300, 2)), "viridis")] * 3),
    ]
    panel.draw_panel(rows, tmp_path / "p.png", heading="heading")
    one = tmp_path / "one.png"
    panel.draw_panel([[("colour", colour)]], one)
    assert pixels(tmp_path / "p.png").shape[0] > 2 * pixels(one).shape[0]
    for bad in ([], [[]], [[("x", np.zeros((2, 2, 4)))]], [[("x", np.zeros((0, 2)))]]):
        with pytest.raises(ValueError, match=r"tile must|must have a tile"):
            panel.draw_panel(bad, tmp_path / "no.png")
    with pytest.raises(ValueError, match=r"must end in"):
        panel.draw_panel([[("colour", colour)]], tmp_path / "no.jpg")
    assert files(tmp_path) == ["one.png", "p.png"]
