"""Clamped differences: a smooth picture mixed into images whose edges are far stronger."""

import numpy as np
import pytest
import torch
from samples import dead_leaves
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.method.shared.differences import SIDE, clamped_differences, differences, image_view
from sampdetox_transforms.method.shared.estimate import Shared
from sampdetox_transforms.method.shared.match import PART, make_filter, matching, strengths
from sampdetox_transforms.method.shared.others import describe
from sampdetox_transforms.method.shared_trigger import recover_shared


def smooth(side: int = 64, seed: int = 3) -> Tensor:
    """A picture of 6 pixels a side, enlarged: no sharp edges."""
    small = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def with_smooth(images: Tensor, alpha: float = 0.15) -> Tensor:
    return ((1 - alpha) * images + alpha * smooth(images.shape[-1])).mul(255).round() / 255


class TestClampedDifferences:
    def test_by_hand(self):
        image = torch.tensor([[0.0, 0.1, 0.1], [0.0, 0.1, 0.9]])[None, None]
        rows = [0.1, 0.0, 0.1, 0.8]
        columns = [0.0, 0.0, 0.8]
        usual = sorted(rows + columns)[3]
        expected = np.tanh(4 * np.array(rows + columns) / usual)
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(clamped_differences(image)[0].numpy(), expected, atol=1e-6)

    def test_they_do_not_depend_on_brightness_or_contrast(self):
        images = dead_leaves(4, 24, seed=0)
        torch.testing.assert_close(
            clamped_differences(images), clamped_differences(0.3 + 0.5 * images), atol=1e-4, rtol=0
        )

    def test_the_view_agrees_as_they_do(self):
        images = dead_leaves(5, 24, seed=1)
        vectors, view = clamped_differences(images), image_view(images)["image"]
        torch.testing.assert_close(view @ view.T, vectors @ vectors.T, atol=1e-5, rtol=0)

    def test_one_colour_says_nothing(self):
        assert not clamped_differences(torch.full((2, 3, 9, 9), 0.3)).any()

    @pytest.mark.parametrize("side", [SIDE + 30, 2 * SIDE])
    def test_large_images_are_shrunk(self, side):
        image = torch.rand(1, 1, side, 20)
        assert clamped_differences(image).shape == (1, SIDE * 19 + (SIDE - 1) * 20)
        assert differences(image[0]).shape == (SIDE * 19 + (SIDE - 1) * 20,)

    def test_those_of_a_pattern_are_not_clamped(self):
        pattern = torch.zeros(1, 1, 4)
        pattern[..., 1:] = 0.1
        pattern[..., 3:] = 0.4
        expected = torch.tensor([0.1, 0.0, 0.3])
        torch.testing.assert_close(differences(pattern), expected / expected.norm())


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

    def test_how_much_is_there_is_in_units_of_what_is_typical(self):
        clean, fresh = dead_leaves(80, 64, seed=5), dead_leaves(60, 64, seed=6)
        pattern = 0.15 * (smooth() - clean.mean(dim=0))
        shared, others = Shared(pattern, torch.zeros(1, 64, 64)), describe(clean, clean)
        first = make_filter(shared, others, way="differences")
        carried, alone = (strengths(x, shared, first)[0] for x in (with_smooth(fresh), fresh))
        known = make_filter(shared, others, way="differences", typical=float(carried.median()))
        assert known.least == PART
        amount, z = strengths(with_smooth(fresh), shared, known)
        assert amount.median() == pytest.approx(1)
        torch.testing.assert_close(amount, carried / known.whole)
        amount_alone, z_alone = strengths(fresh, shared, known)
        torch.testing.assert_close(amount_alone, alone / known.whole)
        assert abs(float(amount_alone.median())) < 0.1
        # deviations of images without it: about a normal number
        assert z_alone.std() == pytest.approx(1, abs=0.4) and z.median() > 4
