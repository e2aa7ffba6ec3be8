"""``recover_trigger``, ``SharedTrigger`` and ``TriggerMemory``: what users hand in and get back."""

import math
import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from sampdetox_transforms import SharedTrigger, TriggerMemory, recover_trigger, recover_triggers
from sampdetox_transforms.method.shared.match import Filter
from sampdetox_transforms.method.shared.spectrum import restored, smoothed
from sampdetox_transforms.networks.checkpoints import WeightsFileError
from sampdetox_transforms.transforms.shared_images import Kept

SIDE, CARRIERS, NUMBER = 12, 14, 60


def natural(n: int, seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(SIDE)[:, None].float()
    falling = 1 / (1 + (rows.square() + rows.T.square()).sqrt())
    x = restored(torch.randn(n, channels, SIDE, SIDE, generator=generator) * falling)
    return ((0.5 + 0.8 * x).clamp(0.02, 0.98) * 255).round() / 255


PATTERN = 0.14 * torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def with_pattern(images: Tensor) -> Tensor:
    return ((images + PATTERN).clamp(0, 1) * 255).round() / 255


def with_patch(images: Tensor) -> Tensor:
    images = images.clone()
    images[..., 8:11, 8:11] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    return images


class Purifier:
    """Knows the images without their triggers, and smooths them a little; counts what it is asked."""

    def __init__(self, clean: Tensor, triggered: Tensor):
        self.known = {self._key(image): image_clean for image, image_clean in zip(triggered, clean, strict=True)}
        self.looks = 0

    @staticmethod
    def _key(image: Tensor) -> bytes:
        return (image * 255).round().byte().numpy().tobytes()

    def explain(self, images: Tensor) -> SimpleNamespace:
        self.looks += len(images)
        clean = torch.stack([self.known.get(self._key(image), image) for image in images])
        return SimpleNamespace(image=0.5 * clean + 0.5 * smoothed(clean, 3), false_alarm_rate=torch.ones(len(images)))


def traffic(trigger=with_pattern, number: int = NUMBER, carriers: int = CARRIERS) -> tuple[Tensor, Purifier]:
    clean = natural(number)
    images = clean.clone()
    images[:carriers] = trigger(images[:carriers])
    return images, Purifier(clean, images)


@pytest.fixture(scope="module")
def found() -> SharedTrigger:
    trigger = recover_trigger(*traffic())
    assert trigger is not None
    return trigger


@pytest.fixture(scope="module")
def patch() -> SharedTrigger:
    trigger = recover_trigger(*traffic(with_patch))
    assert trigger is not None
    return trigger


class TestRecover:
    def test_a_pattern_is_recovered_matched_and_taken_out(self, found):
        fresh = natural(80, seed=9)
        carrying = with_pattern(fresh)
        assert 12 <= found.images <= 15
        assert found.p_value <= 0.01
        assert found.matches(carrying).float().mean() > 0.95
        assert found.matches(fresh).float().mean() < 0.05
        before, after = ((x - fresh).square().mean() for x in (carrying, found.remove(carrying)))
        assert after < 0.3 * before

    def test_a_patch_is_filled_with_what_is_handed_over(self, patch):
        fresh = natural(10, seed=9)
        filled = patch.remove(with_patch(fresh), lambda images, mask: torch.full_like(images, 0.25))
        assert (filled[..., 8:11, 8:11] == 0.25).all()
        mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
        mask[8:11, 8:11] = False
        torch.testing.assert_close(filled[..., mask], fresh[..., mask])
        assert patch.matches(with_patch(fresh)).all() and not patch.matches(fresh).any()
        assert "patch" in repr(patch)

    @pytest.mark.parametrize("size", [(1, 200), (200, 2), (2, 2), (1, 1), (3, 60)])
    def test_thin_and_tiny_images(self, size):
        images = torch.rand(20, 3, *size, generator=torch.Generator().manual_seed(0))
        assert recover_trigger(images, Purifier(images, images)) is None

    def test_batches_and_order_do_not_matter(self, found):
        images, purifier = traffic()
        order = torch.randperm(NUMBER, generator=torch.Generator().manual_seed(1))
        batches = [(images[some], torch.zeros(len(some))) for some in order.split(17)]
        again = recover_trigger(batches, purifier)
        assert again is not None
        torch.testing.assert_close(again.pattern, found.pattern)
        assert again.images == found.images

    def test_each_image_is_looked_at_once(self):
        images, purifier = traffic()
        recover_trigger(images, purifier)
        assert purifier.looks == NUMBER

    def test_uint8_gives_the_same(self, found):
        images, purifier = traffic()
        again = recover_trigger((images * 255).round().byte(), purifier)
        assert again is not None
        torch.testing.assert_close(again.pattern, found.pattern)

    def test_clean_images_give_none(self):
        clean = natural(NUMBER, seed=5)
        assert recover_trigger(clean, Purifier(clean, clean)) is None

    def test_images_that_are_purified_already_give_none(self):
        images, _ = traffic()
        assert recover_trigger(images, SimpleNamespace(explain=lambda x: SimpleNamespace(image=x))) is None

    def test_several_sizes_one_result_each(self, found):
        images, purifier = traffic()
        small = natural(10)[..., :8, :8].contiguous()
        with pytest.raises(ValueError, match="recover_triggers, one result for each size"):
            recover_trigger([images, small], purifier)
        (only,) = recover_triggers([images, small], purifier)
        torch.testing.assert_close(only.pattern, found.pattern)


class TestBadInput:
    @pytest.mark.parametrize("images", [natural(7), natural(1).expand(50, -1, -1, -1), torch.zeros(20, 3, 8, 8)])
    def test_fewer_than_eight_different_images(self, images):
        with pytest.raises(ValueError, match=r"8 different ones or more, got [17] of one size"):
            recover_trigger(images, Purifier(images, images))

    def test_grey_among_colour(self):
        batches = [natural(9), natural(9, channels=1)]
        with pytest.raises(ValueError, match="all be grey or all in colour, got 1 channels"):
            recover_trigger(batches, Purifier(batches[0], batches[0]))

    @pytest.mark.parametrize(
        ("images", "error", "message"),
        [
            (torch.full((9, 3, 8, 8), float("nan")), ValueError, "finite numbers, got NaN"),
            (torch.full((9, 3, 8, 8), 3.0), ValueError, r"in \[0, 1\], got values in \[3, 3\]"),
            (torch.zeros(9, 4, 8, 8), ValueError, r"1 or 3 channels, got \(9, 4, 8, 8\)"),
            (torch.zeros(9, 3, 8, 8, dtype=torch.long), TypeError, "uint8 or float tensors, got torch.int64"),
            (iter([torch.zeros(9, 3, 8, 8)]), TypeError, "gone through twice, got list_iterator"),
            (5, TypeError, "iterable of batches, got int"),
        ],
    )
    def test_what_is_no_traffic(self, images, error, message):
        with pytest.raises(error, match=message):
            recover_trigger(images, None)

    @pytest.mark.parametrize("rate", [0, 1, True, "no", 1e-9])
    def test_rates(self, rate):
        with pytest.raises(ValueError, match="false_alarm_rate must be in"):
            recover_trigger(natural(9), None, false_alarm_rate=rate)

    def test_images_of_another_size_than_the_trigger(self, found):
        with pytest.raises(ValueError, match=r"trigger's shape \(3, 12, 12\), got \(3, 8, 8\)"):
            found.matches(torch.zeros(2, 3, 8, 8))
        with pytest.raises(ValueError, match=r"got \(1, 12, 12\)"):
            found.remove(torch.zeros(2, 1, 12, 12))


class TestMatches:
    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 10_000))
    def test_do_not_depend_on_the_batch(self, found, seed):
        generator = torch.Generator().manual_seed(seed)
        images = natural(12, seed=seed)
        images[:6] = with_pattern(images[:6])
        order = torch.randperm(12, generator=generator)
        whole = found.matches(images)
        assert torch.equal(found.matches(images[order]), whole[order])
        assert torch.equal(torch.cat([found.matches(image[None]) for image in images]), whole)

    def test_only_what_matches_is_changed(self, found):
        images = natural(10, seed=2)
        images[3:6] = with_pattern(images[3:6])
        result, matched = found.remove_if_matched(images)
        assert torch.equal(matched, found.matches(images)) and matched.any()
        assert torch.equal(result[~matched], images[~matched])
        torch.testing.assert_close(result[matched], found.remove(images[matched]))

    def test_types_stay(self, found):
        for images in ((natural(2) * 255).byte(), natural(2).half(), natural(2).double()):
            assert found.remove(images).dtype == images.dtype
        assert found.matches(natural(0)).shape == (0,)

    def test_strength_is_about_one_or_none(self, found, patch):
        fresh = natural(40, seed=4)
        assert found.strength(with_pattern(fresh)).median() > 0.6 > 0.2 > found.strength(fresh).median()
        assert patch.strength(with_patch(fresh)).min() > 0.9 and patch.strength(fresh).max() < 0.5


class TestFiles:
    def test_what_is_saved_comes_back(self, found, tmp_path):
        found.save(tmp_path / "trigger.safetensors")
        again = SharedTrigger.load(tmp_path / "trigger.safetensors")
        images = with_pattern(natural(20, seed=7))
        assert torch.equal(again.matches(images), found.matches(images))
        assert torch.equal(again.remove(images), found.remove(images))
        assert (again.p_value, again.images) == (found.p_value, found.images)
        assert [path.name for path in tmp_path.iterdir()] == ["trigger.safetensors"]

    def test_broken_files_are_refused(self, found, tmp_path):
        path = tmp_path / "trigger.safetensors"
        found.save(path)
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[-5] ^= 1
        for content in (whole[:-9], bytes(flipped), b"", b"no"):
            path.write_bytes(content)
            with pytest.raises(WeightsFileError, match=r"must be a file that SharedTrigger\.save wrote"):
                SharedTrigger.load(path)
        save_file({"pattern": found.pattern}, path)
        with pytest.raises(WeightsFileError, match="another kind"):
            SharedTrigger.load(path)
        with pytest.raises(WeightsFileError, match="Recover it again"):
            SharedTrigger.load(tmp_path / "missing")

    @pytest.mark.parametrize("name", ["pattern", "opacity"])
    def test_nan_is_refused(self, found, tmp_path, name):
        broken = getattr(found, name).clone()
        broken[0, 0, 0] = float("nan")
        SharedTrigger(**{**vars(found), name: broken}).save(tmp_path / "trigger")
        with pytest.raises(WeightsFileError, match="NaN"):
            SharedTrigger.load(tmp_path / "trigger")

    def test_numbers_of_the_filter_come_back(self, found, tmp_path):
        known = found.known._replace(way="differences", deviation=2.5, least=0.125, near=0.25)
        SharedTrigger(**{**vars(found), "known": known}).save(tmp_path / "trigger")
        assert SharedTrigger.load(tmp_path / "trigger").known[2:] == known[2:] == ("differences", 2.5, 0.125, 0.25)

    @pytest.mark.parametrize(
        ("wrong", "message"), [({"way": "guess"}, "'guess', which is none"), ({"deviation": math.inf}, "infinity")]
    )
    def test_what_no_match_can_be_measured_against_is_refused(self, found, tmp_path, wrong, message):
        SharedTrigger(**{**vars(found), "known": found.known._replace(**wrong)}).save(tmp_path / "trigger")
        with pytest.raises(WeightsFileError, match=message):
            SharedTrigger.load(tmp_path / "trigger")

    def test_other_shapes_are_refused(self, found, tmp_path):
        SharedTrigger(**{**vars(found), "opacity": torch.zeros(1, 3, 3)}).save(tmp_path / "trigger")
        with pytest.raises(WeightsFileError, match="shapes"):
            SharedTrigger.load(tmp_path / "trigger")

    def test_picture(self, found, patch):
        for trigger in (found, patch):
            assert trigger.picture().size == (2 * SIDE, SIDE)
        assert patch.picture().getpixel((9, 9)) == (255, 0, 255)
        assert patch.picture().getpixel((SIDE + 9, 9)) == (255, 255, 255)


class TestMemory:
    def test_says_so_once_there_is_enough(self, found):
        images, purifier = traffic()
        memory = TriggerMemory(purifier, size=NUMBER, every=NUMBER, only_small=False)
        order = torch.randperm(NUMBER, generator=torch.Generator().manual_seed(1))
        answers = [memory.add(images[some]) for some in order.split(20)]
        assert answers[:2] == [None, None]
        assert answers[2] is memory.trigger is not None
        assert torch.cosine_similarity(memory.trigger.pattern.flatten(), found.pattern.flatten(), dim=0) > 0.95

    @pytest.fixture(autouse=True)
    def limit(self, monkeypatch):
        """Between the patch, which is large for images of 12 pixels, and the pattern."""
        monkeypatch.setattr("sampdetox_transforms.transforms.shared_trigger.LARGEST_ENERGY", 0.132)

    def test_what_is_large_is_passed_over_and_the_next_one_taken(self, found):
        assert not found.is_small  # the pattern changes images by .14
        images, purifier = traffic()
        memory = TriggerMemory(purifier, every=NUMBER)
        assert memory.add(images) is None and memory.trigger is None
        assert memory.passed_over is not None and not memory.passed_over.is_small
        torch.testing.assert_close(memory.passed_over.pattern, found.pattern, atol=0.01, rtol=0)

        def both(clean: Tensor) -> Tensor:
            half = len(clean) // 2
            return torch.cat([with_pattern(clean[:half]), with_patch(clean[half:])])

        images, purifier = traffic(both, 2 * NUMBER, 2 * CARRIERS)
        memory = TriggerMemory(purifier, every=NUMBER)
        taken = memory.add(images)
        assert taken is not None and taken.covers and taken.is_small
        assert memory.passed_over is None or not memory.passed_over.is_small

    def test_what_most_images_carry_is_passed_over(self):
        images, purifier = traffic(with_patch)
        answers = {}
        for share in (0.5, 0.1):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr("sampdetox_transforms.transforms.trigger_memory.LARGEST_SHARE", share)
                answers[share] = TriggerMemory(purifier, every=NUMBER).add(images)
        assert answers[0.5] is not None and answers[0.1] is None

    def test_memory_is_bounded_and_duplicates_count_once(self):
        clean = natural(20)
        memory = TriggerMemory(size=12, every=1000)
        memory.add(clean, clean)
        assert len(memory) == 12
        memory.add(clean[-5:], clean[-5:])
        assert len(memory) == 12

    def test_goes_on_from_its_file(self, tmp_path):
        images, purifier = traffic()
        whole, first = (TriggerMemory(purifier, every=NUMBER, only_small=False) for _ in range(2))
        whole.add(images[:30])
        first.add(images[:30])
        first.save(tmp_path / "memory")
        second = TriggerMemory(purifier, every=NUMBER, only_small=False)
        second.load(tmp_path / "memory")
        one, other = whole.add(images[30:]), second.add(images[30:])
        assert one is not None and other is not None
        assert torch.equal(one.pattern, other.pattern)
        (tmp_path / "memory").write_bytes(b"broken")
        with pytest.raises(WeightsFileError, match=r"TriggerMemory.save"):
            second.load(tmp_path / "memory")
        assert len(second) == NUMBER

    def test_threads(self):
        clean = natural(64)
        memory = TriggerMemory(size=100, every=1000)
        threads = [threading.Thread(target=memory.add, args=(part, part)) for part in clean.split(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(memory) == 64

    def test_bad_input(self):
        with pytest.raises(ValueError, match="8 or more, got 3"):
            TriggerMemory(size=3)
        with pytest.raises(ValueError, match="no detox"):
            TriggerMemory().add(natural(2))
        memory = TriggerMemory()
        memory.add(natural(2), natural(2))
        with pytest.raises(ValueError, match="size of those before"):
            memory.add(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))


def test_what_is_kept_is_bounded_and_does_not_depend_on_the_order():
    images = natural(40)
    share = torch.linspace(0, 1, 40)
    one, other = Kept(limit=10), Kept(limit=10)
    one.add(images, images, share)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    other.add(images[order], images[order], share[order])
    kept = one.tensors()[0]
    assert len(kept) == 10
    assert torch.equal(kept, other.tensors()[0])
    suspicious = {image.half().numpy().tobytes() for image in images[:5]}
    assert suspicious <= {image.half().numpy().tobytes() for image in kept}


def test_filter_is_what_the_file_holds(found, tmp_path):
    found.save(tmp_path / "trigger")
    assert set(load_file(tmp_path / "trigger")) == {"pattern", "opacity", "mean", "scale"}
    assert set(Filter._fields) == {"mean", "scale", "way", "deviation", "least", "near"}
