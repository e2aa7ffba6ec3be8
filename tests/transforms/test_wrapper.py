"""The wrapped classifier: what it sees, what it gets, what is refused, gradients, state and hooks."""

import copy
import pickle
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from contract import HEIGHT, WIDTH, is_close, picture, pixels
from samples import CALIBRATION, CALIBRATIONS, WhiteIsForeign, flat, patched
from torch import Tensor, nn
from torchvision import tv_tensors

from sampdetox_transforms import DetoxWrapper, SampDetox
from sampdetox_transforms.method.calibration import Calibrations
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.networks.restorers import Restorers

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def detox(tiny) -> SampDetox:
    return SampDetox(tiny, t2=40, seed=0)


def normalise(x: Tensor, mean=MEAN, std=STD) -> Tensor:
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


class Classifier(nn.Module):
    """Linear, with a layer that tells whether it trains."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * HEIGHT * WIDTH, 4))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.fixture
def images() -> Tensor:
    return pixels(3, 3, HEIGHT, WIDTH)


def test_wrapper_gives_the_model_purified_images(detox, images):
    seen = []
    result = DetoxWrapper(lambda x: seen.append(x) or ["anything"], detox)(images)
    assert result == ["anything"]
    assert torch.equal(seen[0], detox(images)) and not is_close(seen[0], images)


def test_passes_average_the_logits_of_different_purifications(detox, images):
    model, seen = Classifier().eval(), []
    wrapper = DetoxWrapper(lambda x: seen.append(x) or model(x), detox, passes=3)
    logits = wrapper(images)
    assert len(seen) == 3
    for a, b in combinations(seen, 2):
        assert not is_close(a, b)
    expected = sum(model(x) for x in seen) / 3
    torch.testing.assert_close(logits, expected)
    assert torch.equal(wrapper(images), logits), "with a seed the passes must be the same each time"


@pytest.mark.parametrize("own", [False, True])
def test_wrapper_takes_normalised_images(detox, images, own):
    seen, expected = [], detox(images)
    purifier = detox.with_normalisation(MEAN, STD) if own else detox
    given = {} if own else {"mean": MEAN, "std": STD}
    DetoxWrapper(seen.append, purifier, **given)(normalise(images))
    torch.testing.assert_close(seen[0], normalise(expected), rtol=0, atol=1e-3)
    assert torch.equal(detox(images), expected), "the transform that was handed over is changed"


def test_gradients_reach_the_images_and_not_the_denoiser(detox, images):
    model = Classifier()
    wrapper = DetoxWrapper(model, detox)
    images.requires_grad_()
    wrapper(images).square().sum().backward()
    assert images.grad.isfinite().all() and float(images.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in detox.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())
    trained = [parameter for parameter in wrapper.parameters() if parameter.requires_grad]
    assert len(trained) == len(list(model.parameters()))


def test_without_gradients_none_are_kept(detox, images):
    assert not detox(images).requires_grad


def test_train_mode_reaches_the_model_and_not_the_denoiser(detox, images):
    wrapper = nn.Sequential(DetoxWrapper(Classifier(), detox))
    for mode in (True, False):
        wrapper.train(mode)
        assert wrapper[0].model.layers[1].training is mode
        assert not any(module.training for module in wrapper[0].detox.denoiser.modules())
    assert wrapper(images).shape == (3, 4)


def test_state_of_the_wrapper_round_trips(tiny, tmp_path, images):
    first, second = (DetoxWrapper(Classifier(), SampDetox(tiny, t2=40, seed=0)).eval() for _ in range(2))
    with torch.no_grad():
        next(first.detox.denoiser.parameters()).mul_(1.1)
    assert not torch.equal(first(images), second(images))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(first(images), second(images))
    for clone in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        torch.testing.assert_close(clone(images), first(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "settings", "kind", "message"),
    [
        ((3,), {}, TypeError, "model must be callable.*got int"),
        ((len, "detox"), {}, TypeError, "detox must be a SampDetox, got str"),
        ((len,), {"passes": 0}, ValueError, "passes must be a whole number of 1 or more, got 0"),
        ((len,), {"passes": -1}, ValueError, "got -1"),
        ((len,), {"passes": 1.5}, ValueError, "got 1.5"),
        ((len,), {"passes": True}, ValueError, "got True"),
        ((len,), {"mean": MEAN}, ValueError, "given together"),
    ],
)
def test_wrapper_refuses_what_makes_no_sense(forbidden, arguments, settings, kind, message):
    rest = () if len(arguments) == 2 else (SampDetox(forbidden),)
    with pytest.raises(kind, match=message):
        DetoxWrapper(*arguments, *rest, **settings)


def test_wrapper_refuses_two_normalisations(forbidden):
    with pytest.raises(ValueError, match="mean and std must be given once"):
        DetoxWrapper(len, SampDetox(forbidden, mean=MEAN, std=STD), mean=MEAN, std=STD)


def test_passes_need_a_model_that_returns_a_tensor(detox, images):
    assert DetoxWrapper(lambda x: {"logits": x}, detox)(images).keys() == {"logits"}
    with pytest.raises(TypeError, match=r"passes > 1.*got dict"):
        DetoxWrapper(lambda x: {"logits": x}, detox, passes=2)(images)


def test_wrapper_refuses_images_before_the_model_sees_them(forbidden):
    def model(x):
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match="Normalize"):
        DetoxWrapper(model, SampDetox(forbidden))(pixels(1, 3, 4, 4) * 3)


# It behaves as the module that it is


def test_keywords_are_the_models(detox, images):
    seen = []

    def model(x, scale, *, labels=None):
        seen.append((scale, labels))
        return x.mean(dim=(1, 2, 3)) * scale

    logits = DetoxWrapper(model, detox, passes=2)(images, scale=3, labels="names")
    assert seen == [(3, "names")] * 2 and logits.shape == (3,)
    assert torch.equal(DetoxWrapper(model, detox)(images, scale=2), detox(images).mean(dim=(1, 2, 3)) * 2)
    with pytest.raises(TypeError, match="nonsense"):
        DetoxWrapper(model, detox)(images, scale=2, nonsense=1)


@pytest.mark.parametrize(
    "settings", [{}, {"passes": 3}, {"return_suspicion": True}, {"mean": MEAN, "std": STD}], ids=str
)
def test_hooks_on_detox_fire_through_the_wrapper(detox, images, settings):
    fired, changed = [], []
    detox.register_forward_pre_hook(lambda module, args: fired.append("before"))
    detox.register_forward_hook(lambda module, args, result: fired.append("after") or torch.zeros_like(result))
    given = normalise(images) if "mean" in settings else images
    DetoxWrapper(lambda x: changed.append(x) or x.mean(dim=(1, 2, 3)), detox, **settings)(given)
    assert fired == ["before", "after"] * settings.get("passes", 1)
    assert not torch.cat(changed).any(), "what a hook returned did not reach the model"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (picture(3), "Image"),
        ([picture(3)], "list"),
        ([pixels(3, 4, 4)], "list"),
        ((pixels(3, 4, 4), 1), "tuple"),
        ({"image": pixels(3, 4, 4)}, "dict"),
        (None, "NoneType"),
        (torch.tensor(3), r"a tensor of shape \(\)"),
        (pixels(4, 4), r"a tensor of shape \(4, 4\)"),
    ],
)
def test_what_is_not_a_batch_of_images_is_refused_before_the_model_sees_it(forbidden, given, kind):
    def model(x):
        raise AssertionError("the model was called")

    wrapper = DetoxWrapper(model, SampDetox(forbidden))
    with pytest.raises(TypeError, match=f"a batch of images as a tensor .n, c, h, w., got {kind}. Turn pictures into"):
        wrapper(given)


def test_explicit_images_are_images(detox, images):
    seen = []
    DetoxWrapper(seen.append, detox)(tv_tensors.Image(images))
    assert type(seen[0]) is tv_tensors.Image and torch.equal(seen[0], detox(tv_tensors.Image(images)))


def test_its_device_is_where_the_purification_computes(detox, fast_denoiser):
    wrapper = DetoxWrapper(nn.Identity(), detox)
    assert wrapper.device == torch.device("cpu")
    assert wrapper.to("meta").device == torch.device("meta")
    assert DetoxWrapper(nn.Identity(), SampDetox(fast_denoiser)).device is None


def test_it_returns_the_p_value(detox, tiny):
    images = (torch.cat([flat(0, 0, 0), patched(flat(0, 0, 0)), flat(-0.5, 0, 0.5)]) + 1) / 2
    detox.restorer, detox.calibration = Restorers(WhiteIsForeign()), CALIBRATIONS

    def model(x):
        return x.mean(dim=(2, 3))

    logits, p_value = DetoxWrapper(model, detox, return_suspicion=True)(images)
    assert torch.equal(logits, DetoxWrapper(model, detox)(images))
    assert (p_value < 0.05).tolist() == [False, True, True]
    assert torch.equal(p_value, detox.explain(images).found.p_value)
    logits, again = DetoxWrapper(model, detox, passes=2, return_suspicion=True)(images)
    assert torch.equal(logits, DetoxWrapper(model, detox, passes=2)(images)) and torch.equal(again, p_value)
    with pytest.raises(ValueError, match=r"return_suspicion needs .* Build it with preset='restore', the default"):
        DetoxWrapper(model, SampDetox(tiny, preset="ddim"), return_suspicion=True)


def test_an_empty_batch_has_no_p_values(detox):
    wrapper = DetoxWrapper(lambda x: x.mean(dim=(1, 2, 3)), detox, return_suspicion=True)
    logits, p_value = wrapper(torch.zeros(0, 3, 8, 8))
    assert logits.shape == p_value.shape == (0,)


# Fitted to the classifier


def searching(tiny, images: int = 1000, **settings) -> SampDetox:
    detox = SampDetox(tiny, t2=20, seed=None, **settings)
    clean = replace(CALIBRATION, images=images)
    detox.restorer, detox.calibration = Restorers(WhiteIsForeign()), Calibrations(clean, clean)
    return detox


def reddish(x: Tensor) -> Tensor:
    """Its answer is in the colour alone: 1 where red is above the others by so much."""
    return (x[:, 0] - x[:, 1:].mean(dim=1)).mean(dim=(1, 2)).gt(0.1).long()


class Reddish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return reddish(x)


@pytest.fixture
def signs() -> Tensor:
    """100 images, every other one reddish: a classifier that cannot do without colour."""
    x = torch.full((100, 3, 8, 8), 0.4)
    x[::2, 0] += 0.17
    return x


FEW = {"t1": (0.0, 12.0), "colour": (0.0, 0.25, 0.5), "detail": ((1.0, 0.0), (0.8, 1.0))}


def test_fit_takes_no_more_colour_than_the_classifier_stands(tiny, signs):
    detox = searching(tiny, preset=Restore(colour_gain=0))  # else the fake estimate takes all colour
    settings = detox.settings
    wrapper = DetoxWrapper(reddish, detox)
    found = wrapper.fit(signs, candidates=FEW)
    assert found is wrapper.fitted and found.dose.colour == 0.25 and found.fits  # a half leaves .085
    assert found.dose.t1 == 12 and found.dose.detail == (0.8, 1.0)
    chosen = wrapper.detox.settings
    assert (chosen.t1, chosen.t1_large, chosen.colour, chosen.resample, chosen.sharpness) == (12, None, 0.25, 0.8, 1)
    assert detox.settings == settings and detox.seed is None and wrapper.detox is not detox
    assert (wrapper(signs) == reddish(signs)).all()
    told = wrapper.detox.explain(signs[:4]).retouched
    assert (told.colour >= 0.25).all() and (told.resampled == 0.8).all() and (told.sharpened == 1).all()
    assert "colour 0.5: keeps 50.0%, taken back" in found.steps()
    assert found.steps().startswith("false_alarm_rate 0.05, t1 12.0, ")


def test_fit_sees_images_as_the_classifier_does(tiny, signs):
    expected = DetoxWrapper(reddish, searching(tiny)).fit(signs, candidates=FEW)
    seen = []

    def model(x):
        seen.append(x)
        return reddish((x + 1) / 2)

    normalised = DetoxWrapper(model, searching(tiny), mean=0.5, std=0.5)
    assert normalised.fit(signs * 2 - 1, candidates=FEW).dose == expected.dose
    assert all(x.min() < 0 for x in seen)
    bytes_ = DetoxWrapper(lambda x: reddish(x / 255), searching(tiny))
    assert bytes_.fit((signs * 255).round().byte(), candidates=FEW).dose == expected.dose


def test_fit_is_the_same_again_and_draws_nothing(tiny, signs):
    wrappers, state = [DetoxWrapper(reddish, searching(tiny)) for _ in range(2)], torch.get_rng_state()
    first, second = (wrapper.fit(signs + 0.01, candidates=FEW) for wrapper in wrappers)
    assert first == second and torch.equal(state, torch.get_rng_state())


def test_what_was_fitted_is_part_of_the_state(tiny, signs):
    wrapper, other = (DetoxWrapper(Reddish(), searching(tiny)) for _ in range(2))
    before = wrapper.get_extra_state()
    found = wrapper.fit(signs, candidates=FEW)
    assert not len(before) and other.fitted is None
    other.load_state_dict(wrapper.state_dict())
    assert other.fitted.dose == found.dose and other.fitted.kept == found.kept and other.fitted.trials == ()
    assert other.detox.settings == wrapper.detox.settings
    assert other.detox.calibration == wrapper.detox.calibration
    other.set_extra_state(before)
    assert other.fitted.dose == found.dose


def test_rates_that_a_calibration_cannot_show_are_left_out(tiny, signs):
    found = DetoxWrapper(reddish, searching(tiny, images=100)).fit(signs, candidates={"false_alarm_rate": (0.01, 0.05)})
    assert {trial.dose.false_alarm_rate for trial in found.trials} == {0.05}


def test_fit_needs_a_search_and_images(tiny, signs):
    with pytest.raises(ValueError, match="fit needs a detox that searches"):
        DetoxWrapper(reddish, SampDetox(tiny, preset="ddim")).fit(signs)
    with pytest.raises(ValueError, match=r"100 or more, got shape \(99, 3, 8, 8\)"):
        DetoxWrapper(reddish, searching(tiny)).fit(signs[:99])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        DetoxWrapper(reddish, searching(tiny)).fit(signs * 3)
