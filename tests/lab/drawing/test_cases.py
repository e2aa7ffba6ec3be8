"""Cases: what was found is in colour, the rest faint, and a line is around it."""

import numpy as np
import pytest
import torch
from PIL import Image

from sampdetox_transforms import SampDetox
from sampdetox_transforms.lab.demo.photographs import demo_triggers, photograph
from sampdetox_transforms.lab.drawing.cases import FOUND, Case, draw_cases, found_picture, mask_of


def test_masked_pixels_keep_their_colour_and_a_line_surrounds_them():
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[:, 5:9, 10:16] = True
    drawn = found_picture(image, mask)
    assert np.allclose(drawn[5:9, 10:16], image.movedim(0, -1).numpy()[5:9, 10:16])
    assert np.allclose(drawn[4, 9:17], FOUND) and np.allclose(drawn[4:10, 16], FOUND)
    rest = np.ones((20, 30), bool)
    rest[4:10, 9:17] = False
    assert drawn[rest].min() >= 0.72 and np.ptp(drawn[rest], axis=1).max() < 1e-6


def test_grey_pictures_and_empty_masks_are_drawn():
    drawn = found_picture(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool))
    assert drawn.shape == (8, 8, 3) and np.allclose(drawn, 0.72)


def test_cases_are_drawn_in_three_rows(tmp_path):
    clean = photograph("brick")[None, :, :96, :96]
    planted = demo_triggers()["white square"].plant(clean, torch.Generator().manual_seed(0)).images
    explained = SampDetox("bundled", seed=0).explain(planted)
    case = Case("white square", planted[0], explained, 0)
    assert torch.equal(mask_of(case), explained.found.mask[0])
    draw_cases([case, case._replace(title="again", good=False)], tmp_path / "cases.png")
    with Image.open(tmp_path / "cases.png") as picture:
        assert picture.height > picture.width
    with pytest.raises(ValueError, match="a tile at least"):
        draw_cases([], tmp_path / "none.png")
