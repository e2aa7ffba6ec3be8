"""The wrapped classifier: what it sees, what it gets, what is refused, gradients, state and hooks."""

import copy
import pickle
from itertools import combinations

import pytest
import torch
from contract import HEIGHT, WIDTH, is_close, picture, pixels
from samples import CALIBRATIONS, WhiteIsForeign, flat, patched
from torch import Tensor, nn
from torchvision import tv_tensors

from sampdetox_transforms import DetoxWrapper, SampDetox
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
