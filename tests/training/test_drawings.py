"""Drawings to train on."""

import pytest
import torch
from samples import seeded
from torchvision.transforms.v2 import functional

from sampdetox_transforms.training.drawings import (
    draw_emblem,
    draw_lines,
    draw_picture,
    draw_pictures,
    draw_shapes,
    draw_text,
    polygon,
)


def test_drawings_differ_and_the_generator_decides():
    every = [draw_picture(seeded(seed)) for seed in range(12)]
    assert {tuple(x.shape) for x in every} <= {(3, side, side) for side in (96, 128, 160, 224)}
    assert all(x.dtype == torch.uint8 and len(x.unique()) > 3 for x in every)
    assert torch.equal(draw_picture(seeded(3)), every[3]) and len({tuple(x.flatten().tolist()) for x in every}) == 12


@pytest.mark.parametrize("part", [draw_shapes, draw_emblem, draw_text, draw_lines])
def test_each_kind_of_drawing_leaves_something(part):
    from PIL import Image, ImageDraw

    for seed in range(5):
        picture = Image.new("RGB", (128, 128), (120, 130, 140))
        part(ImageDraw.Draw(picture), 128, seeded(seed))
        changed = (functional.pil_to_tensor(picture) != torch.tensor([120, 130, 140])[:, None, None]).any(dim=0)
        assert float(changed.float().mean()) > 0.003


def test_small_drawings_are_images_that_the_generator_decides():
    x = draw_pictures(24, 32, seeded(1))
    assert x.shape == (24, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    assert torch.equal(draw_pictures(24, 32, seeded(1)), x)
    assert len({tuple(image.flatten().tolist()) for image in x}) == 24
    grainy = [((image * 255).round() / 255 - image).abs().max() > 1e-4 for image in x]
    assert sum(grainy) > 4


def test_a_polygon_has_its_corners_on_a_circle_and_a_star_every_other_one_within():
    square = torch.tensor(polygon(10, 20, 5, 4, 0.0))
    torch.testing.assert_close(square, torch.tensor([[10.0, 15], [15, 20], [10, 25], [5, 20]]))
    radii = (torch.tensor(polygon(0, 0, 5, 10, 0.3, inner=0.5))).norm(dim=1)
    torch.testing.assert_close(radii, torch.tensor([5.0, 2.5] * 5))
