"""A patch that many images carry, each in a place of its own."""

import pytest
import torch

from sampdetox_transforms.method.shared import moving
from sampdetox_transforms.method.shared.estimate import Shared
from sampdetox_transforms.method.shared.moving import nearest, without_moving
from sampdetox_transforms.method.shared.spectrum import restored, smoothed
from sampdetox_transforms.method.shared_trigger import recover_shared


class TestMoving:
    SIDE, PATCH = 16, 4

    @pytest.fixture
    def colours(self):
        return torch.rand(3, self.PATCH, self.PATCH, generator=torch.Generator().manual_seed(5)).round() * 0.9 + 0.05

    def carried(self, images, colours, seed=2):
        images, generator = images.clone(), torch.Generator().manual_seed(seed)
        places = torch.randint(0, self.SIDE - self.PATCH + 1, (len(images), 2), generator=generator)
        for image, (y, x) in zip(images, places.tolist(), strict=True):
            image[:, y : y + self.PATCH, x : x + self.PATCH] = colours
        return images, places

    @pytest.fixture
    def plain(self):
        generator = torch.Generator().manual_seed(1)
        rows = torch.arange(self.SIDE)[:, None].float()
        falling = 1 / (1 + (rows.square() + rows.T.square()).sqrt())
        x = restored(torch.randn(60, 3, self.SIDE, self.SIDE, generator=generator) * falling)
        return ((0.5 + 0.4 * x).clamp(0.02, 0.98) * 255).round() / 255

    def test_a_patch_that_moves_is_found_in_each_place(self, plain, colours):
        images, places = plain.clone(), None
        images[:12], places = self.carried(plain[:12], colours)
        found = recover_shared(images, 0.6 * plain + 0.4 * smoothed(plain, 3), false_alarm_rate=0.05)
        (only,) = found
        assert only.moves and only.p_value <= 0.05
        assert only.members.nonzero()[:, 0].tolist() == list(range(12))
        expected = torch.zeros_like(only.shared.pattern)
        expected[:, : self.PATCH, : self.PATCH] = colours
        torch.testing.assert_close(only.shared.pattern, expected)
        distance, where = nearest(images[:12], only.shared)
        assert distance.max() < 0.01 and torch.equal(where, places)
        result, covered = without_moving(images[:12], only.shared)
        assert (covered.flatten(1).sum(dim=1) == self.PATCH**2).all()
        assert torch.equal(result[~covered.expand_as(result)], plain[:12][~covered.expand_as(result)])

    def test_patches_of_their_own_are_not_shared(self, plain):
        images = plain.clone()
        for i in range(12):
            own = torch.rand(3, self.PATCH, self.PATCH, generator=torch.Generator().manual_seed(i)).round()
            images[i : i + 1] = self.carried(plain[i : i + 1], own, seed=i)[0]
        assert not recover_shared(images, 0.6 * plain + 0.4 * smoothed(plain, 3), false_alarm_rate=0.05)

    def test_distance_is_that_of_a_plain_loop(self, plain, colours):
        patch = torch.zeros(3, self.SIDE, self.SIDE)
        patch[:, : self.PATCH, : self.PATCH] = colours
        opacity = (patch.amax(dim=0, keepdim=True) > 0).float()
        opacity[0, 1, 2] = 0  # with a hole
        shared = Shared(patch * opacity, opacity)
        distance, where = nearest(plain[:3], shared)
        inside = opacity[0, : self.PATCH, : self.PATCH] > 0
        for image, least, place in zip(plain[:3], distance, where.tolist(), strict=True):
            last = self.SIDE - self.PATCH + 1
            by_place = {
                (y, x): float(
                    (image[:, y : y + self.PATCH, x : x + self.PATCH] - colours)[:, inside].square().mean().sqrt()
                )
                for y in range(last)
                for x in range(last)
            }
            assert min(by_place, key=by_place.get) == tuple(place)
            assert float(least) == pytest.approx(by_place[tuple(place)], abs=1e-3)

    @pytest.mark.parametrize("rows", [[0, 1, 2], [14, 15, 0, 1], [15], [3, 5], [0, 15]])
    def test_a_patch_that_wraps_around_begins_behind_the_gap(self, rows):
        line = torch.zeros(16, dtype=torch.bool)
        line[rows] = True
        start = moving._start(line)
        assert line.roll(-start)[:8].sum() == len(rows) and line[start]

    def test_moved_is_a_roll(self, plain):
        shifts = torch.tensor([[0, 0], [3, -2], [-5, 15]])
        for image, shift, result in zip(plain[:3], shifts.tolist(), moving.moved(plain[:3], shifts), strict=True):
            assert torch.equal(result, image.roll(shift, dims=(-2, -1)))
