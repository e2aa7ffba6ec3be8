"""``SampDetox(trigger=...)``: what matches loses the trigger before it is looked at, the rest is as without."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from contract import picture
from samples import CALIBRATIONS, RED, WhiteIsForeign
from torch import Tensor
from torchvision import tv_tensors

from sampdetox_transforms import DetoxWrapper, SampDetox, SharedTrigger
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.shared.estimate import Shared
from sampdetox_transforms.method.shared.match import make_filter
from sampdetox_transforms.method.shared.others import describe
from sampdetox_transforms.networks.checkpoints import WeightsFileError
from sampdetox_transforms.networks.restorers import Restorers
from sampdetox_transforms.transforms.shared_images import for_comparison

SIDE = 16


def plain(n: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Smooth images without white."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=generator)
    x = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
    return ((0.2 + 0.4 * x) * 255).round() / 255


def trigger_of(pattern: Tensor, opacity: Tensor) -> SharedTrigger:
    others = plain(60, len(pattern), seed=9)
    known = make_filter(Shared(pattern, opacity), describe(others, others))
    return SharedTrigger(pattern, opacity, 0.001, 20, 0.01, known)


def added(channels: int = 3, seed: int = 3) -> SharedTrigger:
    pattern = 0.1 * torch.randn(channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)).clamp(-1.9, 1.9)
    return trigger_of(pattern, torch.zeros(1, SIDE, SIDE))


def patch() -> SharedTrigger:
    opacity = torch.zeros(1, SIDE, SIDE)
    opacity[:, 2:6, 3:7] = 1
    return trigger_of(opacity * torch.tensor([1.0, 0.0, 1.0])[:, None, None], opacity)


def carrying(images: Tensor, trigger: SharedTrigger) -> Tensor:
    return ((1 - trigger.opacity) * images + trigger.pattern).clamp(0, 1)


def searching(weights, **settings) -> SampDetox:
    made = SampDetox(weights, seed=0, **settings)
    made.restorer, made.calibration = Restorers(WhiteIsForeign()), CALIBRATIONS
    return made


@pytest.fixture
def images() -> Tensor:
    return plain(4)


def test_what_matches_comes_out_as_the_clean_image_does(tiny, images):
    trigger = added()
    mixed = images.clone()
    mixed[1:3] = carrying(images[1:3], trigger)
    detox = searching(tiny, trigger=trigger)
    told = detox.explain(mixed)
    assert told.matched.tolist() == [False, True, True, False]
    without = searching(tiny).explain(images)
    torch.testing.assert_close(told.image[[0, 3]], without.image[[0, 3]], rtol=0, atol=0)
    again = searching(tiny).explain(trigger.remove(mixed[1:3]))
    torch.testing.assert_close(told.image[1:3], again.image, rtol=0, atol=2e-3)
    torch.testing.assert_close(
        told.lightened[1:3] - again.lightened, trigger.pattern.expand(2, -1, -1, -1), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(told.lightened[[0, 3]], without.lightened[[0, 3]])
    assert torch.equal(detox(mixed), told.image)


def test_what_is_left_in_an_image_that_matched_is_answered_lightly(tiny, images):
    class Suspects(WhiteIsForeign):
        def look(self, x):
            return super().look(x)._replace(dense=torch.full((len(x),), 8.0))

        def estimate(self, x):
            return x + torch.linspace(-0.3, 0.3, x.shape[-1])  # neither faint nor fine nor a colour

    trigger = added()
    detox = searching(tiny, trigger=trigger)
    detox.restorer = Restorers(Suspects())
    mixed = torch.cat([images[:2], carrying(images[2:], trigger)])
    told = detox.explain(mixed)
    assert told.matched.tolist() == [False, False, True, True] and told.found.dense.all()
    settings = detox.settings
    assert [float(levels.max()) for levels in told.timestep_map] == 2 * [settings.t2] + 2 * [settings.t2_light]


def test_a_patch_is_filled_by_the_search_networks(tiny, images):
    told = searching(tiny, trigger=patch(), preset=Restore(colour_gain=0)).explain(carrying(images, patch()))
    assert told.matched.all()
    start = carrying(images, patch()) - told.lightened
    red = (torch.tensor(RED) + 1) / 2
    torch.testing.assert_close(start[..., 2:6, 3:7], red[:, None, None].expand(4, 3, 4, 4), atol=1e-3, rtol=0)
    assert (told.network_calls == searching(tiny).explain(images).network_calls + 1).all()


def test_presets_that_do_not_search_take_it_out_too(tiny, images):
    detox = SampDetox(tiny, preset="ddim", seed=0, trigger=patch())
    told = detox.explain(carrying(images, patch()))
    assert told.matched.all() and told.found is None
    assert told.lightened[..., 2:6, 3:7].abs().amin() > 0
    assert not told.lightened[..., 8:, :].any()
    assert told.network_calls.tolist() == [7] * 4


def test_several_triggers(tiny, images):
    first, second = added(), patch()
    mixed = torch.stack([images[0], carrying(images[1], first), carrying(images[2], second), images[3]])
    assert searching(tiny, trigger=[first, second]).explain(mixed).matched.tolist() == [False, True, True, False]
    assert searching(tiny, trigger=[second]).explain(mixed).matched.tolist() == [False, False, True, False]


def test_files_and_names_of_files(tiny, images, tmp_path):
    added().save(tmp_path / "trigger")
    mixed = carrying(images, added())
    expected = searching(tiny, trigger=added())(mixed)
    for given in (tmp_path / "trigger", str(tmp_path / "trigger")):
        assert torch.equal(searching(tiny, trigger=given)(mixed), expected)


def test_result_does_not_depend_on_the_batch(tiny, images):
    mixed = images.clone()
    mixed[1] = carrying(images[1], added())
    detox = searching(tiny, trigger=added())
    whole = detox(mixed)
    for i, image in enumerate(mixed):
        torch.testing.assert_close(detox(image), whole[i], rtol=0, atol=1e-4)
    small = searching(tiny, trigger=added(), batch_size=1)
    torch.testing.assert_close(small(mixed), whole, rtol=0, atol=1e-4)


def test_kinds_of_images(tiny, images):
    detox = searching(tiny, trigger=patch())
    bytes_ = (carrying(images, patch()) * 255).round().byte()
    for given in (bytes_, tv_tensors.Image(bytes_[0]), bytes_.float() / 255, bytes_[None], bytes_[:0]):
        told = detox.explain(given)
        assert told.image.dtype == given.dtype and told.image.shape == given.shape
        assert told.matched.shape == given.shape[:-3] and told.matched.all()
        assert told.lightened.shape == given.shape


def test_normalised_images(tiny, images):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    m, s = (torch.tensor(v)[:, None, None] for v in (mean, std))
    detox = searching(tiny, trigger=added(), mean=mean, std=std)
    told = detox.explain((carrying(images, added()) - m) / s)
    assert told.matched.all()


def test_a_trigger_of_grey_images(tiny, tiny_grey):
    grey = plain(3, 1)
    for weights in (tiny, tiny_grey):
        detox = SampDetox(weights, preset="ddim", seed=0, trigger=added(1))
        told = detox.explain(carrying(grey, added(1)))
        assert told.matched.tolist() == [True] * 3
        torch.testing.assert_close(told.lightened, added(1).pattern.expand(3, -1, -1, -1), atol=1e-5, rtol=0)


def test_a_grey_network_takes_the_trigger_out_of_colours(tiny_grey, images):
    detox = SampDetox(tiny_grey, preset="ddim", seed=0, trigger=added())
    mixed = torch.stack([images[0], carrying(images[1], added())])
    told = detox.explain(mixed)
    assert told.matched.tolist() == [False, True]
    torch.testing.assert_close(told.lightened[1], added().pattern, atol=1e-5, rtol=0)


def test_gradients_reach_the_images(tiny, images):
    mixed = carrying(images, added()).requires_grad_()
    searching(tiny, trigger=added())(mixed).sum().backward()
    assert mixed.grad is not None and bool((mixed.grad.flatten(1).abs().sum(dim=1) > 0).all())


def test_copies_and_pickles_keep_it(tiny, images):
    detox = searching(tiny, trigger=added())
    mixed = carrying(images, added())
    expected = detox(mixed)
    for other in (copy.deepcopy(detox), pickle.loads(pickle.dumps(detox))):
        assert torch.equal(other(mixed), expected)
    none = detox.with_trigger(None)
    assert none.explain(mixed).matched is None and detox.explain(mixed).matched.all()


def test_the_fill_of_who_recovered_it_is_not_kept(tiny):
    trigger = SharedTrigger(**{**vars(patch()), "fill": lambda images, mask: images})  # cannot be pickled
    pickle.dumps(searching(tiny, trigger=trigger))


class TestWrapper:
    def test_takes_one(self, tiny, images):
        mixed, seen = carrying(images, patch()), []
        wrapper = DetoxWrapper(lambda x: seen.append(x), searching(tiny), trigger=patch())
        wrapper(mixed)
        assert torch.equal(seen[0], searching(tiny, trigger=patch())(mixed))
        assert not torch.equal(seen[0], searching(tiny)(mixed))

    def test_takes_it_once(self, tiny):
        with pytest.raises(ValueError, match="trigger must be given once"):
            DetoxWrapper(len, searching(tiny, trigger=patch()), trigger=patch())


class TestRefused:
    @pytest.mark.parametrize("trigger", [5, {"pattern": 1}, torch.zeros(3, 4, 4), [None]])
    def test_what_is_no_trigger(self, tiny, trigger):
        with pytest.raises(TypeError, match="must be a SharedTrigger or its file"):
            SampDetox(tiny, trigger=trigger)

    def test_no_such_file(self, tiny, tmp_path):
        with pytest.raises(WeightsFileError, match=r"SharedTrigger\.save wrote"):
            SampDetox(tiny, trigger=tmp_path / "missing")

    def test_triggers_of_two_sizes(self, tiny):
        with pytest.raises(ValueError, match="images of one shape"):
            SampDetox(tiny, trigger=[added(), added(1)])

    @pytest.mark.parametrize("shape", [(3, 8, 8), (1, SIDE, SIDE), (2, 3, SIDE, SIDE + 1)])
    def test_images_of_another_shape_before_any_work(self, tiny, shape):
        detox = searching(tiny, trigger=added())
        with pytest.raises(ValueError, match=r"shape of the trigger .*\(3, 16, 16\), got"):
            detox(torch.zeros(shape))
        assert detox.restorer.small.looks == 0

    def test_pictures_of_another_shape(self, tiny):
        with pytest.raises(ValueError, match="shape of the trigger"):
            searching(tiny, trigger=added())(picture(3))


def test_what_is_compared_has_lost_nothing_of_its_own():
    detox = SampDetox("bundled", seed=0)
    settings = for_comparison(detox).settings
    assert settings == replace(
        detox.settings, t1_doubt=None, colour=0.0, colour_gain=0.0, dense_gain=1.0, jitter=0.0
    ) != detox.settings  # fmt: skip
    anything = object()
    assert for_comparison(anything) is anything
