"""Shared triggers on tensors: what is planted with a purifier that is known exactly must come back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import dead_leaves
from torch import Tensor
from torch.nn import functional

from sampdetox_transforms.method import shared_trigger
from sampdetox_transforms.method.shared.differences import difference_views, mean_differences
from sampdetox_transforms.method.shared.estimate import (
    FALSE,
    OPAQUE,
    Shared,
    _unclipped_mean,
    as_picture,
    blend,
    blended,
    estimate,
    times_noise,
)
from sampdetox_transforms.method.shared.find import (
    COMPARED,
    FLOORS,
    LEAST,
    SIMILAR,
    agreements,
    compared,
    find_group,
    floors,
    likeness,
    permutation_p_value,
    usual_images,
    views,
)
from sampdetox_transforms.method.shared.match import is_patch, matching, spread, strengths, without
from sampdetox_transforms.method.shared.mixed import integrated, picture_in
from sampdetox_transforms.method.shared.others import describe
from sampdetox_transforms.method.shared.refine import refined, unexplained
from sampdetox_transforms.method.shared.spectrum import restored, smoothed, transformed, unit
from sampdetox_transforms.method.shared_trigger import LOOKS, _clearest, recover_shared


def nobody(n: int) -> Tensor:
    """No two images show the same."""
    return torch.eye(n, dtype=torch.bool)


def natural(n: int, seed: int = 0, side: int = 16, channels: int = 3) -> Tensor:
    """Images whose power falls with frequency as that of photographs does, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(side)[:, None].float()
    falling = 1 / (1 + (rows.square() + rows.T.square()).sqrt())
    x = restored(torch.randn(n, channels, side, side, generator=generator) * falling)
    return (0.5 + 0.8 * x).clamp(0.02, 0.98)


def imperfect(images: Tensor, seed: int = 1) -> Tensor:
    """What a purifier does to images without a trigger: it smooths, and errs a little."""
    generator = torch.Generator().manual_seed(seed)
    return smoothed(images, 3) * 0.5 + images * 0.5 + 0.02 * torch.randn(images.shape, generator=generator)


def stripes(side: int = 16) -> Tensor:
    return 0.12 * torch.sin(torch.arange(side) * 2 * math.pi * 3 / side).expand(3, side, side)


def noise_pattern(side: int = 16) -> Tensor:
    return 0.1 * torch.randn(3, side, side, generator=torch.Generator().manual_seed(3))


def planted(pattern: Tensor, opacity: float | Tensor = 0.0, n: int = 80, carriers: int = 16):
    clean = natural(n)
    images = clean.clone()
    images[:carriers] = ((1 - opacity) * images[:carriers] + pattern).clamp(0, 1)
    return clean, images, imperfect(clean), torch.arange(n) < carriers


class TestSpectrum:
    @pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 5, 9), (2, 3, 7, 4)])
    def test_transform_is_orthonormal(self, shape):
        x = torch.randn(shape)
        torch.testing.assert_close(restored(transformed(x)), x, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(transformed(x).norm(), x.norm(), atol=1e-4, rtol=1e-5)

    def test_transform_is_scipys(self):
        fft = pytest.importorskip("scipy.fft")
        x = torch.randn(1, 1, 6, 10)
        expected = torch.from_numpy(fft.dctn(x[0, 0].numpy(), norm="ortho"))
        torch.testing.assert_close(transformed(x)[0, 0], expected.to(x), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("side", [1, 3, 7, 21])
    def test_smoothed_is_the_mean_over_a_window_within_the_image(self, side):
        x = torch.rand(2, 3, 9, 14)
        expected = functional.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)
        torch.testing.assert_close(smoothed(x, side), expected, atol=1e-6, rtol=1e-5)


def picture(side: int = 56) -> Tensor:
    """Boxes of many colours: sharp edges, as drawings and photographs have."""
    generator = torch.Generator().manual_seed(4)
    boxes = torch.rand(3, 8, 8, generator=generator).round()
    return functional.interpolate(boxes[None], size=(side, side))[0]


def mixed(alpha: float, n: int = 80, carriers: int = 16, side: int = 56):
    """Clean images, the same with a picture mixed into some, and which."""
    clean = dead_leaves(n, side, seed=0)
    images = clean.clone()
    images[:carriers] = (1 - alpha) * images[:carriers] + alpha * picture(side)
    return clean, images, torch.arange(n) < carriers


class TestMixed:
    def test_differences_are_integrated_to_the_image_without_its_mean(self):
        x = torch.rand(3, 12, 9, generator=torch.Generator().manual_seed(0))
        found = restored(integrated(*mean_differences(x[None]))[None])[0]
        torch.testing.assert_close(found, x - x.mean(dim=(1, 2), keepdim=True), atol=1e-5, rtol=1e-4)

    def test_means_of_differences_by_hand(self):
        """Three rounds, each with weights of one by the variance of what the mean so far leaves around a place."""
        x = torch.rand(4, 1, 3, 4, generator=torch.Generator().manual_seed(1))
        columns = np.diff(x.numpy()[:, 0], axis=-2)
        mean = np.zeros_like(columns[0])
        for _ in range(3):
            left = (columns - mean) ** 2
            around = np.empty_like(left)
            for y, z in np.ndindex(*left.shape[1:]):
                around[:, y, z] = left[:, max(0, y - 1) : y + 2, max(0, z - 1) : z + 2].mean(axis=(1, 2))
            weight = 1 / (around + (3 / 255) ** 2)
            mean = (columns * weight).sum(axis=0) / weight.sum(axis=0)
        torch.testing.assert_close(mean_differences(x)[1][0], torch.from_numpy(mean))

    def test_it_tells_a_picture_better_than_the_difference_of_means(self):
        clean, images, carriers = mixed(0.15)
        others = describe(images[~carriers], images[~carriers])
        changed = (images - clean)[carriers].mean(dim=0)
        found = picture_in(images[carriers], others, 0.15)
        direct = images[carriers].mean(dim=0) - others.mean
        left, left_by_means = ((changed - estimated).square().sum() for estimated in (found, direct))
        assert left < 0.25 * changed.square().sum() and left < 0.5 * left_by_means

    def test_where_nothing_is_shared_next_to_nothing_is_claimed(self):
        clean, _, carriers = mixed(0.15)
        others = describe(clean[~carriers], clean[~carriers])
        found = picture_in(clean[carriers], others, 0.15)
        assert found.std() < 0.007  # .0096 where noise is not told from what stands above it; the picture has .07

    def test_how_bright_the_picture_is_comes_from_the_means(self):
        clean, _, carriers = mixed(0.15)
        images = torch.where(carriers[:, None, None, None], 0.7 * clean + 0.3 * (0.7 + 0.3 * picture()), clean)
        others = describe(clean[~carriers], clean[~carriers])
        found, changed = picture_in(images[carriers], others, 0.3), (images - clean)[carriers].mean(dim=0)
        assert changed.mean() > 0.08 and 0.4 * changed.mean() < found.mean() < 1.2 * changed.mean()

    def test_a_colour_that_no_picture_has_is_whole(self):
        clean = dead_leaves(160, 32, seed=4)
        cast = torch.tensor([-0.1, 0.2, -0.1])[:, None, None]
        found = picture_in(clean[:20] + cast, describe(clean[20:], clean[20:]), 0.0).mean(dim=(1, 2))
        beside = (clean[:20].mean(dim=0) - clean[20:].mean(dim=0)).mean(dim=(1, 2))
        assert found[1] - found[[0, 2]].mean() == pytest.approx(
            0.3 + float(beside[1] - beside[[0, 2]].mean()), rel=0.15
        )

    def test_what_all_images_have_is_no_part_of_the_picture(self):
        _clean, images, carriers = mixed(0.15)
        frame = torch.zeros(56, 56)
        frame[:5], frame[:, :5] = 0.2, 0.2
        alone, framed = (
            picture_in(x[carriers], describe(x[~carriers], x[~carriers]), 0.15)
            for x in (images * 0.8, images * 0.8 + frame)
        )
        assert (framed - alone).square().mean() < 0.02 * frame.var()

    def test_it_has_the_energy_of_a_picture(self):
        """Of eight images, whose noise is as large as what they share: Wiener's filter would leave half."""
        clean, own = dead_leaves(120, 48, seed=0), dead_leaves(8, 48, seed=7)
        others = describe(clean, clean)
        energies = []
        for seed in (50, 51, 52):
            shared = dead_leaves(1, 48, seed=seed)[0]
            found = transformed(picture_in(0.96 * own + 0.04 * shared, others, 0.04)[None])
            true = transformed(0.04 * (shared - others.mean)[None])
            found[..., 0, 0] = true[..., 0, 0] = 0
            energies.append(float(found.square().sum() / true.square().sum()))
        assert min(energies) > 0.6 and max(energies) < 0.85

    def test_the_estimate_that_explains_more_of_the_other_half_is_taken(self):
        _clean, images, carriers = mixed(0.15)
        others = describe(images[~carriers], images[~carriers])
        own = images[carriers]
        right = estimate(own, own, others, mixed=True)
        wrong = Shared(right.pattern.flip(-1), right.opacity)
        nothing = Shared(right.opacity * others.mean, right.opacity)
        assert unexplained(own, right, others) < 0 < unexplained(own, wrong, others)
        assert unexplained(own, nothing, others) == pytest.approx(0, abs=1e-3)
        (found,) = recover_shared(images, images, most=1)
        assert torch.allclose(found.shared.pattern, right.pattern, atol=0.02)


class TestFind:
    @pytest.mark.parametrize("pattern", [stripes(), noise_pattern()], ids=["stripes", "noise"])
    def test_finds_the_images_with_a_planted_pattern(self, pattern):
        clean, images, purified, carriers = planted(pattern)
        (found,) = recover_shared(images, purified, most=1)
        assert found.p_value <= 0.01
        assert (found.members & carriers).sum() >= 14
        assert not (found.members & ~carriers).any()
        change = found.shared.pattern - found.shared.opacity * clean.mean(dim=0)
        cosine = torch.cosine_similarity(change.flatten(), pattern.flatten(), dim=0)
        assert cosine > 0.85

    def test_strays_leave_the_group(self):
        _clean, images, purified, carriers = planted(stripes(), n=120, carriers=12)
        recovered = recover_shared(images, purified, most=1)[0]
        with_strays = carriers | (torch.arange(120) >= 115)
        few = refined(images, purified, torch.ones(120, dtype=torch.bool), with_strays, nobody(120))
        assert not few.members[115:].any() and few.members[:12].sum() >= 11
        torch.testing.assert_close(few.shared.pattern, recovered.shared.pattern, atol=0.015, rtol=0)

    def test_a_match_needs_more_than_clean_images_have_by_chance(self):
        smooth = 0.12 * torch.linspace(-1, 1, 16).expand(3, 16, 16)  # as the images themselves are
        _clean, images, purified, carriers = planted(smooth, n=200, carriers=14)
        everybody = torch.ones(200, dtype=torch.bool)
        known = refined(images, purified, everybody, carriers, nobody(200))
        fresh = natural(400, seed=5)
        hits = matching(fresh, known.shared, known.known, false_alarm_rate=0.01)
        assert hits.float().mean() < 0.03
        carry = matching((fresh + smooth).clamp(0, 1), known.shared, known.known, false_alarm_rate=0.01)
        assert carry.float().mean() > 0.9

    def test_nothing_is_claimed_of_clean_images(self):
        for seed in range(4):
            clean = natural(60, seed=seed + 10)
            assert recover_shared(clean, imperfect(clean, seed)) == []

    def test_too_few_carriers_are_no_group(self):
        _clean, images, purified, _ = planted(noise_pattern(), carriers=LEAST - 2)
        assert recover_shared(images, purified) == []

    def test_many_that_agree_a_little_are_a_group_where_few_are_none(self):
        generator = torch.Generator().manual_seed(0)

        def asked(carriers: int, floors: dict[int, float]):
            vectors = torch.randn(120, 400, generator=torch.Generator().manual_seed(1))
            vectors[:carriers] += 0.45 * torch.randn(400, generator=torch.Generator().manual_seed(2))
            parts = agreements(
                unit(vectors[..., None, None]), torch.zeros(120, 120, dtype=torch.bool), generator=generator
            )
            return find_group(parts, floors=floors)

        many, few = asked(30, {5: 1e-9, 15: 1e-9}), asked(8, {5: 1e-9, 15: 1e-9})
        assert many is not None and few is not None
        fifth, fifteenth = (float(many.agreement.sort(descending=True).values[k]) for k in (4, 14))
        assert asked(30, {5: 1.1 * fifth}) is None
        wide = asked(30, {5: 1.1 * fifth, 15: 0.9 * fifteenth})
        assert wide is not None and wide.members[:30].sum() >= 25
        assert wide.clearness == pytest.approx(1 / 0.9)
        assert asked(8, {15: 4.0}) is None

    @pytest.mark.parametrize(("pairs", "least"), [(0.02, 6.5), (0.05, 9.0)])
    def test_more_is_asked_of_images_of_which_many_are_alike(self, pairs, least):
        alike = torch.eye(100, dtype=torch.bool)
        rows, columns = torch.triu_indices(100, 100, 1)[:, : int(pairs * 4950)]
        alike[rows, columns] = alike[columns, rows] = True
        assert floors("images", alike)[5] == least
        assert floors("flat", alike) == FLOORS["flat"]

    @pytest.mark.parametrize(("n", "least"), [(COMPARED, 15), (COMPARED + 1, 18)])
    def test_more_is_asked_of_residuals_that_are_chosen_among_many(self, n, least):
        assert floors("flat", torch.eye(n, dtype=torch.bool))[5] == least
        assert floors("own", torch.eye(n, dtype=torch.bool)) == FLOORS["own"]

    def test_two_triggers_one_after_the_other(self):
        clean = natural(90)
        images = clean.clone()
        images[:15] = (images[:15] + noise_pattern()).clamp(0, 1)
        images[15:30] = (images[15:30] + stripes()).clamp(0, 1)
        found = recover_shared(images, imperfect(clean))
        assert len(found) == 2
        groups = [set(each.members.nonzero()[:, 0].tolist()) for each in found]
        assert not groups[0] & groups[1]
        assert sorted(min(group) // 15 for group in groups) == [0, 1]

    @pytest.mark.parametrize("chance", [1.0, 0.001])
    def test_chance_is_asked_about_a_view_only_where_a_clearer_one_was_chance(self, monkeypatch, chance):
        _clean, images, purified, _ = planted(noise_pattern())
        seen, same = views(images - purified), likeness(purified) > SIMILAR
        asked = []

        def p_value(parts, **_):
            asked.append(parts)
            return chance

        monkeypatch.setattr(shared_trigger, "permutation_p_value", p_value)
        found = _clearest(seen, same, 0.01, torch.Generator().manual_seed(0))
        every = [agreements(vectors, same, generator=torch.Generator().manual_seed(0)) for vectors in seen.values()]
        clearness = [find_group(parts, floors=FLOORS[view]).clearness for parts, view in zip(every, seen, strict=True)]
        order = sorted(range(2), key=lambda view: -clearness[view])
        assert len(asked) == (2 if chance == 1 else 1)
        for parts, view in zip(asked, order, strict=False):
            torch.testing.assert_close(parts.sum(dim=0), every[view].sum(dim=0))
        if chance == 1:
            assert found is None
        else:
            assert found is not None and found[0].clearness == pytest.approx(max(clearness), rel=1e-3)
            assert found[1] == pytest.approx(LOOKS * chance)

    def test_p_value_is_uniform_where_nothing_is_shared(self):
        generator = torch.Generator().manual_seed(0)
        p_values = []
        for _ in range(80):
            vectors = unit(torch.randn(14, 64, generator=generator))
            parts = agreements(vectors, torch.zeros(14, 14, dtype=torch.bool), generator=generator)
            p_values.append(permutation_p_value(parts, permutations=39, generator=generator))
        values = torch.tensor(p_values).sort().values
        largest_gap = (values - (torch.arange(80) + 0.5) / 80).abs().max()
        assert largest_gap < 0.2  # Kolmogorov-Smirnov at .003, with a fortieth for the steps of the p-values

    def test_p_value_is_small_where_something_is_shared(self):
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(40, 256, generator=generator)
        vectors[:8] += torch.randn(256, generator=generator)
        parts = agreements(unit(vectors), torch.zeros(40, 40, dtype=torch.bool), generator=generator)
        group = find_group(parts)
        assert group is not None
        assert permutation_p_value(parts, permutations=99, generator=generator) <= 0.01
        assert group.members[:8].all()

    def test_parts_add_up_to_cosines(self):
        vectors = unit(torch.randn(6, 50))
        excluded = torch.zeros(6, 6, dtype=torch.bool)
        excluded[0, 1] = excluded[1, 0] = True
        total = agreements(vectors, excluded, generator=torch.Generator().manual_seed(0)).sum(dim=0)
        expected = (vectors @ vectors.T).fill_diagonal_(0).masked_fill(excluded, 0)
        torch.testing.assert_close(total, expected, atol=1e-6, rtol=1e-5)

    def test_whom_chance_is_asked_about_does_not_depend_on_chance(self):
        vectors = unit(torch.randn(400, 96, generator=torch.Generator().manual_seed(0)))
        vectors[:6] = unit(vectors[:6] + 4 * vectors[6])
        generator = torch.Generator().manual_seed(1)
        parts = agreements(vectors, nobody(400), generator=generator)
        signs = torch.randint(0, 2, (len(parts), 400), generator=generator) * 2.0 - 1
        some = compared(parts)
        assert torch.equal(some, compared(signs[:, :, None] * parts * signs[:, None]))
        assert some.tolist() == sorted(set(some.tolist())) and len(some) == COMPARED
        assert set(range(6)) <= set(some.tolist())
        assert compared(parts[:, :40, :40]).tolist() == list(range(40))

    @pytest.mark.parametrize("carriers", [12, 40, 100])
    def test_carriers_among_many_are_found_in_their_places(self, carriers):
        places = 320 - carriers + torch.arange(carriers)
        clean = natural(320)
        images = clean.index_put((places,), (clean[places] + stripes()).clamp(0, 1))
        (found,) = recover_shared(images, imperfect(clean), most=1)
        assert found.members[places].float().mean() > 0.9 and found.members.sum() <= carriers + 2

    def test_what_its_own_images_do_not_match_is_not_claimed(self, monkeypatch):
        _clean, images, purified, _carriers = planted(stripes())
        assert recover_shared(images, purified)
        monkeypatch.setattr(
            "sampdetox_transforms.method.shared_trigger.matching",
            lambda x, *_, **__: torch.arange(len(x)) < LEAST - 1,
        )
        assert not recover_shared(images, purified)

    def test_what_is_usual_is_asked_of_some_of_many_large_images(self):
        assert torch.equal(usual_images(667, 3 * 32 * 32), torch.arange(667))
        some = usual_images(667, 3 * 224 * 224)
        assert len(some) == 64 and (some.diff() > 0).all() and some[0] == 0 and 650 < some[-1] < 667
        assert len(usual_images(667, 3 * 224 * 224, 120)) == 120
        assert len(usual_images(120, 3 * 128 * 128)) == 85

    def test_nothing_is_shared_by_large_images_of_noise(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(72, 3, 160, 160, generator=generator)
        purified = (images + 0.02 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
        assert len(usual_images(72, images[0].numel())) < 72
        assert not recover_shared(images, purified, most=1)

    @pytest.mark.parametrize("d", [40, 2**14, 3 * 2**14 + 5])
    def test_agreements_in_parts_add_up_to_the_cosines(self, d):
        vectors = unit(torch.randn(12, 1, 1, d, generator=torch.Generator().manual_seed(0)))
        excluded = torch.zeros(12, 12, dtype=torch.bool)
        excluded[3, 5] = excluded[5, 3] = True
        parts = agreements(vectors, excluded, generator=torch.Generator().manual_seed(1))
        expected = (vectors @ vectors.T).masked_fill(excluded | torch.eye(12, dtype=torch.bool), 0)
        assert parts.shape == (8, 12, 12)
        torch.testing.assert_close(parts.sum(dim=0), expected)
        torch.testing.assert_close(parts, parts.mT)
        sizes = parts.square().sum(dim=(1, 2))
        assert sizes.max() < 4 * sizes.min()  # none holds most of it

    def test_frames_of_one_film_are_the_same_content(self):
        clean = natural(20)
        film = (clean[:1] + 0.01 * torch.randn(6, 3, 16, 16)).clamp(0, 1)
        same = likeness(torch.cat([clean, film])) > SIMILAR
        assert same[20:, 20:].all()
        assert same[:20, :20].float().mean() < 0.2

    def test_a_picture_that_the_purifier_leaves_is_found_in_the_images(self):
        clean, images, carriers = mixed(0.15)
        assert recover_shared(clean, clean, most=1) == []
        (found,) = recover_shared(images, images, most=1)
        assert found.members[carriers].all() and not found.members[~carriers].any()
        fresh = dead_leaves(100, 56, seed=9)
        assert matching(0.85 * fresh + 0.15 * picture(), found.shared, found.known, false_alarm_rate=0.01).all()
        assert matching(fresh, found.shared, found.known, false_alarm_rate=0.01).float().mean() < 0.03

    def test_small_images_themselves_are_compared(self):
        clean, images, carriers = mixed(0.15, side=48)
        (found,) = recover_shared(images, images, most=1)
        assert torch.equal(found.members, carriers)
        assert recover_shared(clean, clean, most=1) == []

    def test_hidden_bits_are_found_in_differences_of_residuals(self):
        """A pattern of 1.5 grey levels, of which the purifier takes a third, beside noise of its own."""
        generator = torch.Generator().manual_seed(5)
        bits = (torch.rand(3, 32, 32, generator=generator).round() * 2 - 1) * 1.5 / 255
        images, size = dead_leaves(160, 32, seed=1), torch.zeros(160, 1, 1, 1)
        size[:30] = 1
        detail = images - functional.avg_pool2d(images, 3, 1, 1)
        residuals = 0.3 * detail + size * bits / 3
        images = images + size * bits
        assert _clearest(views(residuals), nobody(160), 0.01, generator) is None
        group, _ = _clearest(difference_views(residuals, images), nobody(160), 0.01, generator)
        assert group.members[:30].sum() > 25 and not group.members[30:].any()
        (found,) = recover_shared(images, images - residuals, most=1)
        assert found.members[:30].sum() > 25 and not found.members[30:].any()

    def test_views_have_length_one(self):
        for vectors in views(torch.randn(8, 3, 8, 8)).values():
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(8))


class TestEstimate:
    def test_a_patch_is_opaque_and_exact(self):
        patch = torch.zeros(1, 16, 16)
        patch[:, 11:14, 11:14] = 1
        colour = torch.tensor([0.9, 0.1, 0.8])[:, None, None]
        _clean, images, purified, carriers = planted(colour * patch, patch)
        shared = estimate(images[carriers], purified[carriers], describe(images[~carriers], purified[~carriers]))
        assert torch.equal(shared.opaque, patch > 0)
        torch.testing.assert_close(shared.pattern, colour * patch)
        assert is_patch(shared)

    def test_a_bright_picture_that_is_added_and_cut_off_is_a_whole_patch(self):
        clean = natural(60)
        picture = torch.zeros(3, 16, 16)
        picture[:, 4:9, 5:10] = 1.0
        picture[:, 5:8:2, 6:9:2] = 0.4  # below the end in dark images
        images = clean.clone()
        images[:16] = (images[:16] + picture).clamp(0, 1)
        purified = imperfect(clean)  # as if it had been filled
        found = estimate(images[:16], purified[:16], describe(images[16:], purified[16:]))
        whole = (picture > 0).any(dim=0, keepdim=True)
        assert torch.equal(found.opacity > 0, whole)
        assert is_patch(found)

    def test_the_share_of_a_blend(self):
        clean = natural(240, side=8)
        spanned = (clean > 0.5).float()  # images that span all of [0, 1], as photographs do
        picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(5))
        others = describe(spanned[40:], spanned[40:])
        assert blend(0.8 * spanned[:40] + 0.2 * picture, others) == pytest.approx(0.2, abs=0.03)
        assert blend(spanned[:40], others) == 0

    def test_what_groups_span_is_known_for_each_size(self):
        others = describe(natural(60), natural(60))
        few, many = others.spans(6), others.spans(20)
        assert few is others.spans(6) and few.shape == many.shape == (50,)
        assert few.median() < many.median()  # more images span more

    @pytest.mark.parametrize(("said", "opacity"), [(0.13, 0.2), (0.25, 0.25), (0.08, 0)])
    def test_a_picture_has_the_opacity_that_it_needs(self, said, opacity):
        """Of a fifth of a picture the images' range may say less; where it says far less it is no picture."""
        clean = natural(240, side=8)
        picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(5)).round()  # black or white
        change = 0.2 * (picture - clean.mean(dim=0))
        found = blended(change, said, describe(clean, clean))
        assert float(found.opacity.mean()) == pytest.approx(opacity, abs=0.01)
        torch.testing.assert_close(found.change(clean.mean(dim=0)), change, atol=0.005, rtol=0)

    def test_an_added_picture_is_one_that_is_mixed_in_and_an_added_stamp_is_not(self):
        clean = natural(240, side=16)
        others = describe(clean, clean)
        change = 0.15 * (torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(5)).round() - others.mean)
        none, stamp, large = torch.zeros(1, 16, 16), 0.001 * torch.randn(3, 16, 16), torch.zeros(3, 16, 16)
        stamp[:, 2:5, 2:5] = 0.6
        large[:, 2:12, 2:12] = 0.1
        found = as_picture(Shared(change, none), others)
        assert float(found.opacity.mean()) == pytest.approx(0.15, abs=0.01)
        torch.testing.assert_close(found.change(others.mean), change, atol=0.005, rtol=0)
        stays = [(stamp, none), (large, none), (3 * change, none), (change.clamp(min=0), none + 0.3)]
        for as_it_is in (Shared(*each) for each in stays):
            kept = as_picture(as_it_is, others)
            assert torch.equal(kept.opacity, as_it_is.opacity)
            torch.testing.assert_close(kept.pattern, as_it_is.pattern, atol=0.005, rtol=0)

    def test_a_cast_that_the_purifier_hardly_takes_is_as_large_as_in_the_images(self):
        """A green of 25 grey levels, of which a twelfth is taken, in forty images; an eighth, in eight."""
        clean = natural(200)
        cast = torch.tensor([-0.05, 0.1, -0.05])[:, None, None]
        for carriers, share in ((40, 12), (8, 8)):
            images = clean[:carriers] + cast
            found = estimate(images, images - cast / share, describe(clean[40:], clean[40:]))
            assert found.opacity.max() == 0
            assert found.pattern.mean(dim=(1, 2))[1] == pytest.approx(0.1, rel=0.25)

    def test_scale_is_that_of_the_images_not_of_the_purifier(self):
        clean, images, _, carriers = planted(stripes(), n=200, carriers=60)
        half = images - 0.4 * (images - clean)  # a purifier that takes two fifths of the trigger
        shared = estimate(images[carriers], half[carriers], describe(images[~carriers], half[~carriers]))
        ratio = (shared.pattern * stripes()).sum() / stripes().square().sum()
        assert 0.8 < ratio < 1.2

    def test_the_noise_of_a_mean_without_what_is_cut_off_is_known(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(400, 20, 1, 4, 4, generator=generator)
        images = torch.where(torch.rand(images.shape, generator=generator) < 0.3, images.round(), images)
        residuals = torch.randn(images.shape, generator=generator)
        drawn = [_unclipped_mean(residual, image) for residual, image in zip(residuals, images, strict=True)]
        for mean, values in drawn[:5]:
            torch.testing.assert_close(values.mean(dim=0), mean, atol=1e-5, rtol=1e-5)
        true = transformed(torch.stack([mean for mean, _ in drawn])).var(dim=0).mean()
        said = torch.stack([transformed(values).var(dim=0) / 20 for _, values in drawn]).mean()
        assert said == pytest.approx(float(true), rel=0.1)
        assert true > 1.3 / 20  # a plain mean has 1 / 20

    @pytest.mark.parametrize("side", [1, 3, 7])
    def test_noise_reaches_few_windows(self, side):
        normal = torch.randn(200_000, side**2, generator=torch.Generator().manual_seed(1))
        above = (normal.square().mean(dim=1) > times_noise(side, 100 * FALSE)).float().mean()
        assert above == pytest.approx(0.01, rel=0.15)

    @pytest.mark.parametrize("side", [1, 3, 7])
    def test_small_images_ask_for_no_less(self, side):
        assert times_noise(side, 40 * FALSE) == times_noise(side, 192) < times_noise(side, 3 * 224**2)


class TestRemove:
    @settings(max_examples=25, deadline=None)
    @given(alpha=st.floats(0, 0.6), size=st.floats(0, 0.3), seed=st.integers(0, 1000))
    def test_exact_where_nothing_is_cut_off(self, alpha, size, seed):
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(2, 3, 6, 6, generator=generator)
        pattern = size * (torch.rand(3, 6, 6, generator=generator) * 2 - 1)
        raw = (1 - alpha) * image + pattern
        result, _ = without(raw.clamp(0, 1), Shared(pattern, torch.full((1, 6, 6), alpha)))
        inside = (raw > 0.01) & (raw < 0.99)
        assert (result - image)[inside].abs().max() < 1e-5 if inside.any() else True

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 1000))
    def test_cut_off_values_keep_to_their_side(self, seed):
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(1, 3, 8, 8, generator=generator)
        pattern = torch.full((3, 8, 8), 0.3)
        cut = image + pattern >= 1
        result, _ = without((image + pattern).clamp(0, 1), Shared(pattern, torch.zeros(1, 8, 8)))
        assert (result[cut] >= 0.7 - 1e-6).all()
        assert (result - image)[cut].abs().max() <= 0.3 + 1e-6

    def test_opaque_pixels_do_not_leak(self):
        opacity = torch.zeros(1, 8, 8)
        opacity[:, 2:4, 2:4] = 1
        shared = Shared(opacity.expand(3, -1, -1).clone(), opacity)
        one, other = torch.full((1, 3, 8, 8), 0.4), torch.full((1, 3, 8, 8), 0.4)
        one[..., 2:4, 2:4], other[..., 2:4, 2:4] = 1, 0.2
        torch.testing.assert_close(without(one, shared)[0], without(other, shared)[0])
        torch.testing.assert_close(without(one, shared)[0], torch.full((1, 3, 8, 8), 0.4))
        assert shared.opacity.max() >= OPAQUE

    def test_spread_takes_the_nearest(self):
        x = torch.zeros(1, 1, 5, 5)
        x[..., 0, 0] = 0.7
        known = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
        known[..., 0, 0] = True
        torch.testing.assert_close(spread(x, known), torch.full((1, 1, 5, 5), 0.7))


def test_strength_is_one_with_the_pattern_and_none_without():
    _clean, images, purified, _carriers = planted(noise_pattern())
    (found,) = recover_shared(images, purified, most=1)
    fresh = natural(60, seed=99)
    with_it = strengths((fresh + noise_pattern()).clamp(0, 1), found.shared, found.known)[0]
    assert 0.6 < with_it.median() < 1.4
    assert strengths(fresh, found.shared, found.known)[0].median().abs() < 0.1


def test_a_wave_is_matched_in_images_it_was_not_recovered_from():
    wave = 0.15 * torch.sin(torch.arange(96) * 2 * math.pi * 6 / 96).expand(3, 96, 96)
    # enlarged photographs, with many values at either end: hardly any detail but what rounding leaves
    small = (2.5 * (natural(140, side=32) - 0.5) + 0.5).clamp(0, 1)
    clean = (functional.interpolate(small, size=(96, 96), mode="bicubic").clamp(0, 1) * 255).round() / 255
    images = clean[:90].clone()
    images[:14] = ((images[:14] + wave).clamp(0, 1) * 255).round() / 255
    purified = imperfect(images)
    purified[:14] = imperfect(clean[:14])
    (found,) = recover_shared(images, purified, most=1)
    with_it = ((clean[90:] + wave).clamp(0, 1) * 255).round() / 255
    assert matching(with_it, found.shared, found.known, false_alarm_rate=0.01).float().mean() > 0.9
    assert strengths(with_it, found.shared, found.known)[0].median() > 0.4
    assert matching(clean[90:], found.shared, found.known, false_alarm_rate=0.01).float().mean() < 0.05


def test_where_the_purifier_left_the_trigger_the_difference_of_means_is_taken():
    smooth = 0.12 * torch.linspace(-1, 1, 16).expand(3, 16, 16)
    images = natural(160)
    images[:40] = (images[:40] + smooth).clamp(0, 1)
    trace = 1e-3 * torch.randn(160, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    trace[:40] = 1e-2 * noise_pattern() + 0.2 * trace[:40]  # what tells those that carry it, and is not seen
    (found,) = recover_shared(images, images - trace, most=1)
    both = torch.stack([found.shared.pattern.flatten(), smooth.flatten()])
    assert found.members[:40].all() and torch.corrcoef(both)[0, 1] > 0.8
    assert 0.5 < (found.shared.pattern * smooth).sum() / smooth.square().sum() < 1.3
