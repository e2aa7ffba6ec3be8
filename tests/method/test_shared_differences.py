"""Weighted differences: a smooth picture mixed into images whose edges are far stronger."""

import numpy as np
import pytest
import torch
from samples import dead_leaves
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.method.shared.differences import (
    SIDE,
    difference_views,
    differences,
    weighted_differences,
)
from sampdetox_transforms.method.shared.estimate import Shared
from sampdetox_transforms.method.shared.match import make_filter, matching, strengths
from sampdetox_transforms.method.shared.others import describe
from sampdetox_transforms.method.shared_trigger import recover_shared
from sampdetox_transforms.transforms.shared_recovery import from_recovered


def smooth(side: int = 64, seed: int = 3) -> Tensor:
    """A picture of 6 pixels a side, enlarged: no sharp edges."""
    small = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def with_smooth(images: Tensor, alpha: float = 0.15) -> Tensor:
    return ((1 - alpha) * images + alpha * smooth(images.shape[-1])).mul(255).round() / 255


class TestWeightedDifferences:
    def test_by_hand(self):
        image = torch.tensor([[0.0, 0.1, 0.1], [0.0, 0.1, 0.9]])[None, None]
        seen = weighted_differences(image)
        rows, columns = np.array([[0.1, 0.0], [0.1, 0.8]]), np.array([[0.0, 0.0, 0.8]])
        # windows of three meet all four differences along rows, and two or three of those along columns
        variances = np.full((2, 2), (rows**2).mean()), np.array([[0.0, 0.64 / 3, 0.64 / 2]])
        weight = [1 / (variance + (3 / 255) ** 2) for variance in variances]
        expected = np.concatenate([(rows * weight[0]).ravel(), (columns * weight[1]).ravel()])
        np.testing.assert_allclose(seen.weighted[0].numpy(), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(seen.weight[0].numpy(), np.concatenate([w.ravel() for w in weight]), rtol=1e-4)

    def test_what_is_flat_decides(self):
        """An edge of 200 grey levels says less about what is added to it than a flat place does."""
        image = torch.full((1, 1, 8, 8), 0.1)
        image[..., :3] = 0.9
        weight = weighted_differences(image).weight[0, : 8 * 7].view(8, 7)
        assert (weight[:, 5:] > 1000 * weight[:, 1:4].amax(dim=1, keepdim=True)).all()

    def test_brightness_does_not_matter(self):
        images = 0.2 + 0.5 * dead_leaves(4, 24, seed=0)
        torch.testing.assert_close(
            weighted_differences(images).weighted, weighted_differences(images + 0.2).weighted, atol=0.02, rtol=1e-3
        )

    def test_one_colour_says_nothing(self):
        assert not weighted_differences(torch.full((2, 3, 9, 9), 0.25)).weighted.any()

    @pytest.mark.parametrize("side", [SIDE + 30, 2 * SIDE])
    def test_large_images_are_shrunk(self, side):
        image = torch.rand(1, 1, side, 20)
        length = SIDE * 19 + (SIDE - 1) * 20
        assert weighted_differences(image).weighted.shape == weighted_differences(image).weight.shape == (1, length)
        assert differences(image[0]).shape == (length,)

    def test_those_of_a_pattern_are_as_they_are(self):
        pattern = torch.tensor([0.0, 0.1, 0.1, 0.4])[None, None]
        torch.testing.assert_close(differences(pattern), torch.tensor([0.1, 0.0, 0.3]))


class TestView:
    def test_length_one(self):
        for vectors in difference_views(*2 * [dead_leaves(5, 24, seed=1)]).values():
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))

    def test_one_is_of_residuals_and_one_of_images(self):
        x, y, z = (dead_leaves(5, 24, seed=seed) for seed in (1, 2, 3))
        one, other = difference_views(x, y), difference_views(x, z)
        torch.testing.assert_close(one["differences"], other["differences"])
        assert not torch.allclose(one["images"], other["images"], atol=0.01)
        torch.testing.assert_close(difference_views(z, y)["images"], one["images"])

    def test_images_lack_the_lowest_coefficients(self):
        seen = difference_views(*2 * [dead_leaves(6, 24, seed=1)])
        empty = {view: int((vectors == 0).all(dim=0).sum()) for view, vectors in seen.items()}
        assert (
            empty["images"] - empty["differences"] == 2 * 3 * 10
        )  # along rows and columns, three planes, 4 + 3 + 2 + 1

    def test_each_coefficient_counts_alike(self):
        """As they are, the largest usually have twice as much as the smallest."""
        usual = difference_views(*2 * [dead_leaves(200, 24, seed=1)])["differences"].square().mean(dim=0).sqrt()[1:]
        assert usual.quantile(0.95) < 1.5 * usual.quantile(0.05)

    def test_photographs_of_the_sky_are_not_alike(self):
        """All become brighter towards the horizon, and have no detail there."""
        slope = torch.linspace(0.3, 0.6, 40)[:, None] * torch.tensor([0.4, 0.7, 1.0])[:, None, None]
        images = slope + 0.004 * torch.randn(12, 3, 40, 40, generator=torch.Generator().manual_seed(2))
        seen = weighted_differences(images).weighted
        off = ~torch.eye(12, dtype=torch.bool)
        assert torch.corrcoef(seen)[off].mean() > 0.15
        vectors = difference_views(images, images)["images"]
        assert abs(float((vectors @ vectors.T)[off].mean())) < 0.05


class TestSmoothPicture:
    def test_it_is_found_in_the_images_and_matched(self):
        clean = dead_leaves(120, 64, seed=0)
        images = clean.clone()
        images[:20] = with_smooth(clean[:20])
        assert recover_shared(clean, clean, most=1) == []
        (found,) = recover_shared(images, images, most=1)
        assert found.members[:20].all() and not found.members[20:].any()
        fresh = dead_leaves(100, 64, seed=9)
        carried = matching(with_smooth(fresh), found.shared, found.known, false_alarm_rate=0.01)
        assert carried.float().mean() > 0.9
        assert matching(fresh, found.shared, found.known, false_alarm_rate=0.01).float().mean() < 0.03

    def test_strength_is_about_one_or_none(self):
        clean = dead_leaves(120, 64, seed=0)
        images = torch.cat([with_smooth(clean[:20]), clean[20:]])
        (found,) = recover_shared(images, images, most=1)
        trigger, fresh = from_recovered(found, 0.01), dead_leaves(60, 64, seed=8)
        assert trigger.known.way == "differences"
        assert 0.6 < float(trigger.strength(with_smooth(fresh)).median()) < 2.5
        assert abs(float(trigger.strength(fresh).median())) < 0.3

    def test_how_much_is_there_is_the_least_squares_fit(self):
        clean, fresh = dead_leaves(80, 64, seed=5), dead_leaves(60, 64, seed=6)
        pattern = 0.15 * (smooth() - clean.mean(dim=0))
        shared, others = Shared(pattern, torch.zeros(1, 64, 64)), describe(clean, clean)
        known = make_filter(shared, others, way="differences", typical=0.5)
        assert known.least == 0.25 and known.deviation >= 1
        seen = weighted_differences(fresh)
        change = differences(pattern)
        products = (seen.weighted * change).sum(dim=1), (seen.weight * change.square()).sum(dim=1)
        amount, z = strengths(fresh, shared, known)
        torch.testing.assert_close(amount, products[0] / products[1], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(z * known.deviation, products[0] / products[1].sqrt(), atol=1e-2, rtol=1e-3)
        carried, more = strengths(with_smooth(fresh), shared, known)
        assert abs(float(amount.median())) < 0.1 < 0.5 < float(carried.median()) < 1.1
        assert z.std() < 1.4 and more.median() > 4
