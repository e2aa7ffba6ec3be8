"""Experiment ``fills``: holes and what is measured in them."""

import pytest
import torch
from contract import pixels
from samples import seeded
from torch import nn

from sampdetox_transforms.lab.evaluation.fills import biharmonic, feature_distance, square_holes, surroundings, telea


@pytest.mark.parametrize("area", [0.01, 0.1])
def test_holes_are_squares_of_the_area_at_places_of_their_own(area):
    holes = square_holes(pixels(20, 3, 100, 140), area, seeded())
    assert (holes.sum(dim=(1, 2, 3)) == round(100 * area**0.5) ** 2).all()
    assert len({tuple(hole.nonzero()[0].tolist()) for hole in holes}) > 15


@pytest.mark.parametrize("method", [surroundings, telea, biharmonic])
def test_methods_fill_the_hole_from_around_it_and_nothing_else(method):
    if method is telea:
        pytest.importorskip("cv2")
    x = torch.full((2, 3, 40, 40), 0.4)
    x[..., 20:] = 0.6
    holes = square_holes(x, 0.04, seeded())
    filled = method(torch.where(holes, 1.0, x), holes)
    assert float((filled - x)[~holes.expand_as(x)].abs().max()) < 1 / 255
    inside = filled[holes.expand_as(x)]
    assert float(inside.min()) > 0.38 and float(inside.max()) < 0.62


def test_the_feature_distance_is_that_of_the_places_that_a_hole_touches():
    class Early(nn.Module):
        def early(self, images):
            return nn.functional.avg_pool2d(images, 8)

    x, holes = pixels(2, 3, 32, 32) + 0.1, torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    holes[..., :8, :8] = True
    inside, outside = x.clone(), x.clone()
    inside[..., :8, :8] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    outside[..., 16:, 16:] = 0
    assert feature_distance(Early(), x, x, holes).max() < 1e-9
    assert feature_distance(Early(), x, outside, holes).max() < 1e-9
    unit = nn.functional.normalize(x[..., :8, :8].mean(dim=(2, 3)), dim=1)
    other = nn.functional.normalize(torch.tensor([[0.9, 0.1, 0.1]]), dim=1)
    torch.testing.assert_close(feature_distance(Early(), x, inside, holes), (unit - other).square().sum(dim=1))
