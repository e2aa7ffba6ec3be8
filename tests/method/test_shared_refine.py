"""Which estimate of a pattern is taken, and which way of comparing, on images whose pattern is known."""

import pytest
import torch
from samples import dead_leaves
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.method import shared_trigger
from sampdetox_transforms.method.shared import refine
from sampdetox_transforms.method.shared.differences import SIDE
from sampdetox_transforms.method.shared.match import make_filter, matching, strengths
from sampdetox_transforms.method.shared.others import describe
from sampdetox_transforms.method.shared.refine import CLEARER, IF_FAINT, IF_LARGE, WAYS, Refined, _chosen, refined
from sampdetox_transforms.method.shared_trigger import recover_shared


def bits(side: int = 32, size: float = 2 / 255) -> Tensor:
    return (torch.rand(3, side, side, generator=torch.Generator().manual_seed(5)).round() * 2 - 1) * size


def smooth(side: int) -> Tensor:
    small = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    return functional.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def with_bits(n: int = 120, carriers: int = 24, taken: float = 0.7) -> tuple[Tensor, Tensor, Tensor]:
    """Images, the same behind a purifier that takes so much of what is hidden, and which carry it."""
    clean, size = dead_leaves(n, 32, seed=1), torch.zeros(n, 1, 1, 1)
    size[:carriers] = 1
    detail = clean - functional.avg_pool2d(clean, 3, 1, 1)
    images = clean + size * bits()
    return images, images - 0.1 * detail - taken * size * bits(), torch.arange(n) < carriers


def with_smooth(side: int, n: int = 120, carriers: int = 24) -> tuple[Tensor, Tensor]:
    images = dead_leaves(n, side, seed=0)
    images[:carriers] = 0.85 * images[:carriers] + 0.15 * smooth(side)
    return images, torch.arange(n) < carriers


class TestChoice:
    def test_what_the_purifier_took_is_estimated_from_residuals(self):
        images, purified, carriers = with_bits()
        rest = describe(images[~carriers], purified[~carriers])
        assert not _chosen(images[carriers], purified[carriers], rest, IF_FAINT).mixed

    def test_what_the_purifier_left_is_estimated_from_images(self):
        images, carriers = with_smooth(32)
        rest = describe(images[~carriers], images[~carriers])
        assert _chosen(images[carriers], images[carriers], rest, IF_FAINT).mixed

    @pytest.mark.parametrize("left", [False, True])
    def test_of_a_picture_the_estimate_is_taken_that_explains_the_other_half(self, left):
        """Of one that is mixed in visibly, of which the purifier took what it changes on average, or nothing."""
        clean, carriers = dead_leaves(120, 32, seed=2), torch.arange(120) < 24
        size = 0.3 * carriers[:, None, None, None].float()
        images = clean + size * (smooth(32) - clean)
        purified = images if left else images - size * (smooth(32) - clean.mean(dim=0))
        rest = describe(images[~carriers], purified[~carriers])
        assert _chosen(images[carriers], purified[carriers], rest, None).mixed == left

    def test_how_much_of_a_picture_is_mixed_in_is_asked_of_residuals(self, monkeypatch):
        """As the range of the images says less where few span all of it."""
        clean, carriers = dead_leaves(120, 32, seed=2), torch.arange(120) < 24
        size = 0.2 * carriers[:, None, None, None].float()
        images = clean + size * (smooth(32).round() - clean)
        purified = images - size * (smooth(32).round() - clean.mean(dim=0))
        monkeypatch.setattr("sampdetox_transforms.method.shared.estimate.blend", lambda *_: 0.13)
        given = []

        def chosen(_own, _purified, _rest, _among, alpha=None):
            given.append(alpha)
            return refine._Choice(mixed=True, way="own", typical=1.0)

        monkeypatch.setattr(refine, "_chosen", chosen)
        shared, _, _ = refine._estimated(images, purified, carriers, ~carriers, None)
        assert given[0] == pytest.approx(0.2, abs=0.02)
        assert float(shared.opacity.mean()) == pytest.approx(given[0])

    @pytest.mark.parametrize(("better", "mixed"), [(0.9 * CLEARER, False), (1.1 * CLEARER, True)])
    def test_images_must_tell_clearly_better_than_residuals(self, monkeypatch, better, mixed):
        images, purified, carriers = with_bits()
        rest = describe(images[~carriers], purified[~carriers])
        from_images = iter([False, False, False, True, True, True])  # the order of ``IF_FAINT``
        monkeypatch.setattr(refine, "_apart", lambda *_: (3 * better if next(from_images) else 3, 0.5))
        assert _chosen(images[carriers], purified[carriers], rest, IF_FAINT).mixed == mixed

    @pytest.mark.parametrize(("told", "ways"), [(1.9, WAYS), (2.1, WAYS[:2])])
    def test_differences_are_compared_where_the_others_do_not_tell(self, monkeypatch, told, ways):
        images, purified, carriers = with_bits()
        rest = describe(images[~carriers], purified[~carriers])
        asked = []

        def apart(_halves, _patterns, way):
            asked.append(way)
            return (9.0 if way == "differences" else told), 0.5

        monkeypatch.setattr(refine, "_apart", apart)
        choice = _chosen(images[carriers], purified[carriers], rest, None)
        assert tuple(asked) == ways and choice.way == ("differences" if "differences" in ways else "own")

    def test_nothing_shared_is_nothing_told(self):
        """Members and others take part in the pattern that others are asked with: none takes part in its own."""
        told = []
        for seed in range(12):
            images = dead_leaves(60, 24, seed=seed)
            members = torch.arange(60) < 12
            halves = [
                refine._Half(x[one::2], x[one::2], describe(y[one::2], y[one::2]))
                for x, y in [(images[members], images[~members])]
                for one in (0, 1)
            ]
            patterns = [refine.estimate(*half, mixed=True) for half in reversed(halves)]
            told.append(refine._apart(halves, patterns, "own")[0])
        assert abs(sum(told) / len(told)) < 0.35


class TestRefined:
    def test_hidden_bits_are_told_by_differences(self):
        images, purified, carriers = with_bits()
        found = refined(
            images, purified, torch.ones(120, dtype=torch.bool), carriers, torch.eye(120).bool(), faint=True
        )
        cosine = torch.cosine_similarity(found.shared.pattern.flatten(), bits().flatten(), dim=0)
        fresh = dead_leaves(100, 32, seed=8)
        carried = matching(fresh + bits(), found.shared, found.known, false_alarm_rate=0.01)
        assert cosine > 0.8 and carried.float().mean() > 0.9
        assert matching(fresh, found.shared, found.known, false_alarm_rate=0.01).float().mean() < 0.04

    def test_large_images_are_chosen_small_and_estimated_whole(self, monkeypatch):
        images, carriers = with_smooth(168, n=40, carriers=12)
        sizes, asked = [], []
        chosen, estimate = refine._chosen, refine.estimate
        monkeypatch.setattr(
            refine, "_chosen", lambda own, *rest: (asked.append((own.shape[-1], rest[2])), chosen(own, *rest))[1]
        )
        monkeypatch.setattr(
            refine, "estimate", lambda own, *rest, **how: (sizes.append(own.shape[-1]), estimate(own, *rest, **how))[1]
        )
        found = refined(images, images, torch.ones(40, dtype=torch.bool), carriers, torch.eye(40).bool(), faint=True)
        assert {side for side, _ in asked} == {SIDE} and all(among is IF_LARGE for _, among in asked)
        assert sizes.count(168) == 1 and found.shared.pattern.shape == (3, 168, 168)
        assert found.known.way == "differences"

    @pytest.mark.parametrize("faint", [False, True])
    def test_where_all_others_are_like_a_member_they_are_compared_with(self, faint):
        images, purified, carriers = with_bits(n=20, carriers=8)
        all_alike = torch.ones(20, 20, dtype=torch.bool)
        found = refined(images, purified, torch.ones(20, dtype=torch.bool), carriers, all_alike, faint=faint)
        assert found.shared.pattern.isfinite().all() and found.known.least > 0


class TestSearch:
    @pytest.mark.parametrize("matched", [0.0, 0.3])
    def test_where_a_pattern_does_not_tell_its_own_images_differences_are_asked(self, monkeypatch, matched):
        images, purified, carriers = with_bits(taken=4.0)  # so that the residuals themselves show it
        order = []

        def useless_at_first(images, purified, left, members, same, *, faint=False):
            order.append(faint)
            found = refined(images, purified, left, members, same, faint=faint)
            some = make_filter(found.shared, describe(images[~members], purified[~members]))
            least = float(strengths(images[found.members], found.shared, some)[0].quantile(1 - matched))
            return found if faint else Refined(found.shared, some._replace(least=least), found.members)

        monkeypatch.setattr(shared_trigger, "refined", useless_at_first)
        (found,) = recover_shared(images, purified, most=1)
        assert order == [False, True]
        assert found.members[carriers].float().mean() > 0.9 and not found.members[~carriers].any()

    @pytest.mark.parametrize(("tells", "claimed"), [(1.1, 0), (1.3, 1)])
    def test_a_pattern_whose_halves_do_not_tell_each_other_is_not_claimed(self, monkeypatch, tells, claimed):
        images, purified, _ = with_bits()
        monkeypatch.setattr(shared_trigger, "refined", lambda *a, **how: refined(*a, **how)._replace(tells=tells))
        assert len(recover_shared(images, purified, most=1)) == claimed


def test_how_well_a_pattern_tells_is_that_of_the_choice_and_of_a_patch_no_question(monkeypatch):
    images, purified, carriers = with_bits()
    everyone, same = torch.ones(120, dtype=torch.bool), torch.eye(120).bool()
    monkeypatch.setattr(refine, "_apart", lambda *_: (3.5, 0.5))
    assert refined(images, purified, everyone, carriers, same, faint=True).tells == 3.5
    patched = images.clone()
    patched[carriers, :, 3:7, 4:8] = 1
    assert refined(patched, images, everyone, carriers, same).tells == float("inf")
