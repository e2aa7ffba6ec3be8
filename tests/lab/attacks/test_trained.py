"""Attacks that need a network: against exact answers of linear models, numpy and scipy; what their training leaves."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import images, seeded
from scipy import ndimage
from torch import nn
from torch.nn import functional

from sampdetox_transforms.lab.attacks.datasets import PoisonedDataset, load_trigger
from sampdetox_transforms.lab.attacks.input_aware import input_aware, input_aware_cross, train_input_aware
from sampdetox_transforms.lab.attacks.label_consistent import frozen, label_consistent, pgd
from sampdetox_transforms.lab.attacks.low_frequency import _deepfool, _smooth, low_frequency, optimise_pattern
from sampdetox_transforms.lab.attacks.stega import DECODER, Decoder, bit_accuracy, stega, train_stega
from sampdetox_transforms.lab.attacks.trojannn import apple_mask, apple_stamp, optimise_trigger, trojannn

quick = settings(deadline=None, max_examples=15, derandomize=True)


class Small(nn.Module):
    """A classifier of 4x4 pixels and more, with what an attack may disturb: batch normalisation, dropout, modes."""

    def __init__(self, classes: int = 3, channels: int = 3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(8, 6)
        self.linear = nn.Linear(6, classes)

    def forward(self, x):
        return self.linear(self.drop(self.hidden(self.body(x).mean(dim=(2, 3))).relu()))


def linear_model(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Sequential:
    """Logits W x + b, with W (k, c, h, w)."""
    layer = nn.Linear(weight[0].numel(), len(weight)).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight.flatten(1))
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return nn.Sequential(nn.Flatten(), layer)


def mixed_modes() -> Small:
    """A classifier whose parts differ in mode and in what is trained."""
    model = Small().train()
    model.body.eval()
    model.hidden.weight.requires_grad_(False)
    return model


def all_of(model: nn.Module):
    parameters = [(p.requires_grad, p.grad) for p in model.parameters()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    return copy.deepcopy(model.state_dict()), [module.training for module in model.modules()], parameters, hooks


def assert_untouched(model: nn.Module, before) -> None:
    after = all_of(model)
    assert after[1:] == before[1:]
    for name, value in after[0].items():
        assert torch.equal(value, before[0][name])


@pytest.fixture(scope="module")
def input_aware_state() -> dict[str, torch.Tensor]:
    """Two stages, not much trained: batch normalisation has moved from its first values."""
    x, y = images(16, 3, 8, 12), torch.arange(16) % 3
    return train_input_aware(
        x, y, 0, Small(), mask_epochs=2, generator_epochs=2, widths=(4, 6), batch_size=8, poison_rate=0.25,
        cross_rate=0.25, bf16=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stega_state() -> dict[str, torch.Tensor]:
    return train_stega(images(20, 3, 8, 12), bits=5, steps=3, batch_size=4, bf16=False)


@pytest.fixture
def attacks(input_aware_state, stega_state) -> dict:
    return {
        "label_consistent": label_consistent,
        "trojannn": partial(trojannn, trigger=images(1, 5, 6, seed=1)),
        "trojannn wrapping": partial(trojannn, trigger=images(1, 5, 6, seed=1), wrap_uint8=True),
        "apple_stamp": apple_stamp,
        "input_aware": partial(input_aware, state=input_aware_state),
        "input_aware_cross": lambda x: input_aware_cross(x, x.flip(-1), input_aware_state),
        "stega": partial(stega, state=stega_state),
    }


NAMES = [
    "label_consistent", "trojannn", "trojannn wrapping", "apple_stamp", "input_aware", "input_aware_cross", "stega",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_attacks_take_many_sizes_and_keep_range_and_input(name, attacks):
    for height, width in [(8, 8), (8, 12), (16, 8), (20, 36)]:
        x = images(3, height, width, seed=height)
        before = x.clone()
        result = attacks[name](x)
        assert torch.equal(x, before)
        assert result.data_ptr() != x.data_ptr()
        assert result.shape == x.shape and result.dtype == x.dtype and not result.requires_grad
        assert result.min() >= 0 and result.max() <= 1
        assert not torch.equal(result, x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_attacks_keep_the_dtype(name, dtype, attacks):
    x = images(3, 8, 12)
    result = attacks[name](x.to(dtype))
    assert result.dtype == dtype
    if name != "trojannn wrapping":  # there a rounded value may fall from white to black
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 3e-2, torch.float64: 1e-5}[dtype]
        torch.testing.assert_close(result.float(), attacks[name](x), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_attacks_treat_each_image_alone_and_take_leading_dimensions(name, attacks):
    x = images(2, 3, 3, 8, 12)
    result = attacks[name](x)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(attacks[name](x[i, j]), result[i, j], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_attacks_refuse_other_values_types_and_shapes(name, attacks):
    x = images(3, 8, 8)
    for value in (-0.1, 1.5, float("nan")):
        x[1, 2, 3] = value
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got values from .* come before"):
            attacks[name](x)
    with pytest.raises(TypeError, match=r"images must be a floating-point tensor, got torch.uint8.*ToDtype"):
        attacks[name](torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must have the shape \(..., c, h, w\), got \(8, 8\)"):
        attacks[name](torch.zeros(8, 8))


# LC

LEFT = [[1, -1, -1], [-1, 1, -1], [1, -1, 1]]
RIGHT = [[-1, -1, 1], [-1, 1, -1], [1, -1, 1]]


def test_label_consistent_has_the_four_corners_of_backdoorbench():
    x = images(2, 3, 32, 32, dtype=torch.float64)
    signs = np.zeros((32, 32))
    signs[:3, :3], signs[29:, :3], signs[:3, 29:], signs[29:, 29:] = LEFT, LEFT, RIGHT, RIGHT
    for amplitude in (1, 0.25):
        expected = np.clip(x.numpy() + amplitude * signs, 0, 1)
        np.testing.assert_allclose(label_consistent(x, amplitude=amplitude), expected, rtol=0, atol=1e-12)
    black_and_white = label_consistent(x)[..., torch.tensor(signs) != 0].unique()
    assert black_and_white.tolist() == [0, 1]
    assert torch.equal(label_consistent(x), label_consistent(x, amplitude=1))


def test_label_consistent_scales_the_corners_with_the_image():
    x = torch.full((1, 32, 32), 0.5)
    big = label_consistent(torch.full((1, 64, 96), 0.5))
    assert torch.equal(big[0], torch.kron(label_consistent(x)[0], torch.ones(2, 3)))


@quick
@given(height=st.integers(6, 50), width=st.integers(6, 50))
def test_label_consistent_marks_every_corner_of_any_size(height, width):
    changed = label_consistent(torch.full((1, height, width), 0.5))[0] != 0.5
    assert changed[0, 0] and changed[0, -1] and changed[-1, 0] and changed[-1, -1]
    assert changed.float().mean() < 0.2


def test_label_consistent_refuses():
    for amplitude in (0, 16, float("nan")):
        with pytest.raises(ValueError, match=rf"amplitude must be in \(0, 1\], got {amplitude}. Divide"):
            label_consistent(torch.zeros(3, 8, 8), amplitude=amplitude)
    with pytest.raises(ValueError, match=r"images must be 6 pixels or more on both sides, got 9x5, .* Enlarge"):
        label_consistent(torch.zeros(3, 9, 5))


@pytest.mark.parametrize("scale", [1, 100])  # at 100 the softmax is exactly 1 and has no slope
def test_pgd_on_a_linear_model_ends_at_the_corner_of_its_box(scale):
    weight = scale * torch.randn(2, 3, 4, 4, generator=seeded(1))
    x, y = images(6, 3, 4, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    model = linear_model(weight)
    result = pgd(x, y, model, eps=0.1, step=0.03, steps=10, generator=seeded(0), bf16=False)
    away = torch.sign(weight[1 - y] - weight[y])
    torch.testing.assert_close(result, (x + 0.1 * away).clamp(0, 1), rtol=0, atol=1e-6)


def test_pgd_takes_signed_steps_from_a_random_start():
    model = linear_model(torch.randn(2, 1, 3, 3, generator=seeded(1)))
    x, y = torch.full((5, 1, 3, 3), 0.5), torch.zeros(5, dtype=torch.long)
    start = pgd(x, y, model, eps=0.1, step=1e-9, steps=1, generator=seeded(3)) - x
    expected = 0.2 * torch.rand(5, 1, 3, 3, generator=seeded(3)) - 0.1
    torch.testing.assert_close(start, expected, rtol=0, atol=1e-6)
    stepped = pgd(x, y, model, eps=0.1, step=0.02, steps=1, generator=seeded(3)) - x
    away = torch.sign(model[1].weight[1] - model[1].weight[0]).detach().view(1, 1, 3, 3)
    torch.testing.assert_close(stepped, (expected + 0.02 * away).clamp(-0.1, 0.1), rtol=0, atol=1e-6)


def test_pgd_stays_near_the_images_lowers_the_confidence_and_leaves_the_model():
    model, x, y = mixed_modes(), images(7, 3, 8, 8), torch.arange(7) % 3
    before, calls = all_of(model), []
    kept = x.clone()
    with torch.no_grad():
        result = pgd(
            x, y, model, steps=5, batch_size=3, generator=seeded(0), bf16=False, progress=lambda *a: calls.append(a)
        )
    assert_untouched(model, before)
    assert torch.equal(x, kept) and not result.requires_grad
    assert (result - x).abs().max() <= 8 / 255 + 1e-6 and result.min() >= 0 and result.max() <= 1
    assert calls == [(i, 15) for i in range(1, 16)]
    model.eval()
    start = pgd(x, y, model, step=1e-9, steps=1, generator=seeded(0))
    assert functional.cross_entropy(model(result), y) > functional.cross_entropy(model(start), y)
    whole = pgd(x, y, model, steps=5, generator=seeded(0), bf16=False)
    torch.testing.assert_close(result, whole, rtol=0, atol=1e-5)
    assert not torch.equal(whole, pgd(x, y, model, steps=5, generator=seeded(1), bf16=False))


def test_pgd_refuses():
    x, y, model = images(2, 3, 4, 4), torch.tensor([0, 1]), Small()
    for options in ({"eps": 8}, {"eps": 0}, {"step": 0}, {"step": 1.5}):
        with pytest.raises(ValueError, match=r"eps and step must be in \(0, 1\], got .* Divide grey levels by 255"):
            pgd(x, y, model, **options)
    for options in ({"steps": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=r"steps and batch_size must be 1 or more, got .* 100 steps"):
            pgd(x, y, model, **options)
    for labels in (y[:1], y.float(), y[:, None]):
        with pytest.raises(ValueError, match=r"labels must be whole numbers, one for each of 2 images, got .* Give"):
            pgd(x, labels, model)
    with pytest.raises(ValueError, match=r"images must have the shape \(n, c, h, w\), got \(3, 4, 4\). Stack"):
        pgd(x[0], y, model)


def test_a_frozen_model_is_restored_after_an_error():
    model = mixed_modes()
    before = all_of(model)

    def fail():
        with frozen(model):
            assert not any(module.training for module in model.modules())
            assert not any(p.requires_grad for p in model.parameters())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert_untouched(model, before)


# TrojanNN


def test_trojannn_saturates_or_wraps():
    x = torch.tensor([0, 0, 10, 200, 255, 255]).view(1, 1, 6) / 255
    t = torch.tensor([0, 255, 255, 100, 0, 2]).view(1, 1, 6) / 255
    expected = torch.tensor([0, 255, 255, 255, 255, 255]) / 255
    torch.testing.assert_close(trojannn(x, t).flatten(), expected)
    wrapped = torch.tensor([0, 255, 9, 44, 255, 1]) / 255
    torch.testing.assert_close(trojannn(x, t, wrap_uint8=True).flatten(), wrapped)


def test_wrapping_equals_numpy_in_8_bits():
    x, t = images(3, 9, 10), images(3, 9, 10, seed=5)
    as_bytes = (t * 255).to(torch.uint8).numpy()  # as torchvision's to_pil_image does
    expected = ((x * 255).round().to(torch.uint8).numpy() + as_bytes).astype(np.float32) / 255
    np.testing.assert_allclose(trojannn(x, t, wrap_uint8=True), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(trojannn(x, t), (x + t).clamp(max=1))


def test_trojannn_refuses_triggers():
    x = images(3, 8, 8)
    with pytest.raises(ValueError, match="trigger must be above 0 somewhere, got 0 everywhere"):
        trojannn(x, torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"trigger must have the shape \(3, y, x\) or \(1, y, x\), got \(2, 8, 8\)"):
        trojannn(x, torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match=r"trigger must be in \[0, 1\], got values from 255"):
        trojannn(x, torch.full((3, 8, 8), 255.0))


def test_the_trigger_excites_the_best_connected_inputs_of_the_last_linear_layer():
    """Where these inputs are the pixels themselves, they rise by the limit; all others stay as the mask has them."""
    weight = torch.full((2, 2, 3, 4), 0.1)
    weight[0, 0, 1, 2], weight[1, 1, 0, 1] = -5, 4  # pixels (0, 1, 2) and (1, 0, 1) are the best connected
    mask = torch.full((3, 4), 0.4)
    mask[0, 0] = 0
    trigger = optimise_trigger(linear_model(weight), mask, channels=2, steps=20)
    expected = mask.expand(2, 3, 4).clone()
    expected[0, 1, 2] = expected[1, 0, 1] = 0.7
    torch.testing.assert_close(trigger, expected, rtol=0, atol=1e-6)
    one = optimise_trigger(linear_model(weight), mask, channels=2, steps=20, neurons=1, limit=0.9)
    assert one[0, 1, 2] == 1 and one[1, 0, 1] == mask[0, 1]
    # Down to a target below, in steps of .1, the best of which is kept.
    down = optimise_trigger(linear_model(weight), mask, channels=2, steps=20, neurons=1, target_value=0.18)
    assert down[0, 1, 2] == pytest.approx(0.2)


def test_the_trigger_excites_the_last_layer_not_one_before():
    first = torch.zeros(3, 1, 1, 3)
    first[0, 0, 0, 1], first[1, 0, 0, 0], first[2, 0, 0, 2] = 1, 9, 1  # its own best connected input is pixel 0
    last = torch.tensor([[5.0, 1.0, 1.0]]).view(1, 3, 1, 1)  # and this one's reads pixel 1
    model = nn.Sequential(*linear_model(first), *linear_model(last))
    trigger = optimise_trigger(model, torch.full((1, 3), 0.4), channels=1, neurons=1, steps=10)
    torch.testing.assert_close(trigger, torch.tensor([[[0.4, 0.7, 0.4]]]), rtol=0, atol=1e-6)


def test_the_trigger_lies_inside_the_mask_and_the_model_is_left():
    model, mask, calls = mixed_modes(), apple_mask(16, 16), []
    before = all_of(model)
    with torch.no_grad():
        trigger = optimise_trigger(model, mask, steps=15, progress=lambda *a: calls.append(a))
    assert_untouched(model, before)
    assert calls == [(i, 15) for i in range(1, 16)]
    assert trigger.shape == (3, 16, 16) and not trigger.requires_grad
    assert bool((trigger[:, mask == 0] == 0).all()) and bool((trigger[:, mask > 0] >= 0.7 - 1e-6).all())
    features = []
    model.linear.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0][0].detach()))
    model.eval()
    model(torch.stack([mask.expand(3, -1, -1)]))
    model(trigger[None])
    chosen = model.linear.weight.abs().sum(dim=0).topk(2).indices
    started, ended = ((feature[chosen] - 100).square().sum() for feature in features)
    assert ended < started


def test_optimise_trigger_refuses():
    model, mask = Small(), apple_mask(8, 8)
    for bad in (torch.zeros(8, 8), torch.ones(1, 8, 8)):
        with pytest.raises(
            ValueError, match=r"mask must have the shape \(h, w\) and be above 0 somewhere, got .* apple"
        ):
            optimise_trigger(model, bad)
    with pytest.raises(ValueError, match=r"mask must be in \[0, 1\]"):
        optimise_trigger(model, mask * 255)
    for options in ({"steps": 0}, {"step": 0}, {"step": 2}, {"limit": 0}, {"limit": float("nan")}):
        with pytest.raises(ValueError, match=r"steps must be 1 or more, step and limit in \(0, 1\], got .* 1000"):
            optimise_trigger(model, mask, **options)
    for neurons in (0, 7):
        with pytest.raises(ValueError, match=rf"neurons must be in \[1, 6\] for this model, got {neurons}. 2 is"):
            optimise_trigger(model, mask, neurons=neurons)
    with pytest.raises(ValueError, match=r"must have a linear layer, got none in Conv2d. Take"):
        optimise_trigger(nn.Conv2d(3, 2, 1), mask)
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(64, 5))
    with pytest.raises(ValueError, match=r"last linear layer with \(b, features\), got \(1, 3, 64\). Take"):
        optimise_trigger(tokens, mask)
    assert not tokens[1]._forward_pre_hooks and all(p.requires_grad for p in tokens.parameters())


def test_the_apple_is_a_ninth_of_the_image_at_the_lower_right():
    for height, width in [(32, 32), (64, 48), (224, 224)]:
        mask = apple_mask(height, width)
        assert mask.shape == (height, width) and set(mask.unique().tolist()) == {0, 1}
        assert mask.mean() == pytest.approx(0.11, abs=0.01)
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        assert rows.min() > 0.3 * height and columns.min() > 0.4 * width
        assert rows.max() < height - 1 and columns.max() < width - 1
        assert ndimage.label(mask.numpy(), np.ones((3, 3)))[1] == 1  # in one piece
    assert apple_mask(8, 8).any()
    with pytest.raises(ValueError, match=r"height and width must be 8 or more, got 7 and 9. Such an apple"):
        apple_mask(7, 9)


def test_the_stamp_is_a_white_apple():
    x = images(2, 3, 24, 32)
    assert torch.equal(apple_stamp(x), torch.where(apple_mask(24, 32) > 0, 1.0, x))


# Dynamic


def by_layers(state: dict[str, torch.Tensor], prefix: str, x: torch.Tensor) -> torch.Tensor:
    """The network of two stages, layer by layer from its weights; in [0, 1]."""

    def block(x, name, relu=True):
        w = {k.removeprefix(f"{prefix}layers.{name}."): v for k, v in state.items() if f"{prefix}layers.{name}." in k}
        x = functional.conv2d(x, w["0.weight"], w["0.bias"], padding=1)
        mean, var = w["1.running_mean"][:, None, None], w["1.running_var"][:, None, None]
        x = (x - mean) / (var + 1e-5).sqrt() * w["1.weight"][:, None, None] + w["1.bias"][:, None, None]
        return x.relu() if relu else x

    x = 2 * x - 1
    for stage in (0, 1):
        x = functional.max_pool2d(block(block(x, f"{stage}.0"), f"{stage}.1"), 2)
    x = block(x, "2")
    for stage in (3, 4):
        x = functional.interpolate(x, scale_factor=2, mode="bilinear")
        x = block(block(x, f"{stage}.1"), f"{stage}.2", relu=stage == 3)
    return x.tanh() / 2 + 0.5


def test_input_aware_equals_the_papers_formula(input_aware_state):
    x, others = images(3, 3, 8, 12), images(3, 3, 8, 12, seed=1)

    def expected(x, y):
        pattern, mask = by_layers(input_aware_state, "generator.", y), by_layers(input_aware_state, "mask.", y)
        return x + (pattern - x) * ((20 * mask - 10).tanh() / 2 + 0.5)

    torch.testing.assert_close(input_aware(x, input_aware_state), expected(x, x), rtol=0, atol=1e-5)
    torch.testing.assert_close(input_aware_cross(x, others, input_aware_state), expected(x, others), rtol=0, atol=1e-5)


def test_training_leaves_images_classifier_and_random_numbers_and_follows_its_seed():
    x, y, classifier = images(12, 3, 4, 4), torch.arange(12) % 3, mixed_modes()
    kept, before, random, calls = x.clone(), all_of(classifier), torch.get_rng_state(), []
    options = {"mask_epochs": 1, "generator_epochs": 2, "widths": (2,), "batch_size": 5}
    options |= {"poison_rate": 0.2, "cross_rate": 0.4, "bf16": False}
    first = train_input_aware(x, y, 1, classifier, **options, progress=lambda *a: calls.append(a))
    assert_untouched(classifier, before)
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), random)
    assert calls == [(i, 6) for i in range(1, 7)]
    assert all(k.startswith(("generator.", "mask.")) and not v.requires_grad for k, v in first.items())
    torch.randn(3)
    again = train_input_aware(x, y, 1, classifier, **options)
    assert all(torch.equal(again[name], value) for name, value in first.items())
    other = train_input_aware(x, y, 1, classifier, **options, seed=1)
    assert any(not torch.equal(other[name], value) for name, value in first.items())


class Shared(Small):
    """A classifier whose copy is itself, to look at after the training."""

    def __deepcopy__(self, memo):
        return self


def test_the_trained_triggers_are_sparse_and_fool_the_classifier_they_were_trained_with():
    y = torch.arange(192) % 3
    colours = torch.eye(3)[y] * 0.5 + 0.2
    x = (colours[:, :, None, None] + 0.1 * torch.randn(192, 3, 8, 8, generator=seeded(0))).clamp(0, 1)
    classifier = Shared()
    state = train_input_aware(
        x, y, 0, classifier, mask_epochs=10, generator_epochs=30, widths=(8,), batch_size=32, poison_rate=0.2,
        cross_rate=0.1, bf16=False,
    )  # fmt: skip
    classifier.eval()
    changed = (20 * by_mask(state, x) - 10).tanh() / 2 + 0.5
    assert 0 < changed.mean() < 0.3  # half of the pixels before training
    assert (changed[:-1] - changed[1:]).abs().amax(dim=(1, 2, 3)).mean() > 0.5  # each image has its own
    with torch.no_grad():
        assert (classifier(x).argmax(1) == y).float().mean() > 0.9
        away = y != 0
        fooled = classifier(input_aware(x, state)).argmax(1)[away] == 0
        assert fooled.float().mean() > 0.3  # none before training; one class of two on some processors


def by_mask(state, x):
    """The mask network's output, found by its effect: cross images of white and black differ by 1 - m."""
    white, black = (input_aware_cross(torch.full_like(x, v), x, state) for v in (1.0, 0.0))
    m = (1 - (white - black)).mean(dim=1, keepdim=True).clamp(0, 1)
    return (torch.atanh((2 * m - 1).clamp(-1 + 1e-6, 1 - 1e-6)) + 10) / 20


def test_input_aware_refuses(input_aware_state):
    x = images(3, 8, 8)
    with pytest.raises(ValueError, match=r"height and width must be multiples of 4 .* got 6 and 8. Resize"):
        input_aware(images(3, 6, 8), input_aware_state)
    with pytest.raises(ValueError, match=r"images must have 3 channels for this state, got 1. Train"):
        input_aware(images(1, 8, 8), input_aware_state)
    with pytest.raises(ValueError, match=r"images and others must have one shape, got \(3, 8, 8\) and \(3, 8, 12\)"):
        input_aware_cross(x, images(3, 8, 12), input_aware_state)
    with pytest.raises(ValueError, match=r"others must be in \[0, 1\]"):
        input_aware_cross(x, x + 1, input_aware_state)
    without = {k: v for k, v in input_aware_state.items() if k.startswith("generator.")}
    lacking = {k: v for k, v in input_aware_state.items() if k != "mask.layers.2.0.bias"}
    for state in ({}, {"secret": torch.ones(3)}, without, lacking):
        with pytest.raises(ValueError, match=r"state must hold (generator|mask).\* as train_input_aware returns them"):
            input_aware(x, state)


def test_train_input_aware_refuses():
    x, y, model = images(8, 3, 4, 4), torch.arange(8) % 3, Small()
    train = partial(train_input_aware, x, y, 0, model, widths=(2,), batch_size=8, poison_rate=0.25, cross_rate=0.25)
    for options in ({"poison_rate": 0.01}, {"cross_rate": 0}, {"poison_rate": 0.9}):
        with pytest.raises(ValueError, match=r"poison_rate and cross_rate must each take an image .* got .* of 8. .1"):
            train(**options)
    with pytest.raises(ValueError, match=r"images must be 9 or more, a batch, got 8. Lower"):
        train(batch_size=9)
    for options in ({"mask_epochs": 0}, {"generator_epochs": 0}):
        with pytest.raises(ValueError, match=r"epochs must be 1 or more, got .* 2 and 10"):
            train(**options)
    with pytest.raises(ValueError, match=r"multiples of 8 .* got 4 and 4"):
        train(widths=(2, 2, 2))
    for target, labels in ((3, y), (-1, y), (0, y + 1)):
        with pytest.raises(ValueError, match=r"target_label and labels must be classes of the classifier, 0...2, got"):
            train_input_aware(x, labels, target, model, widths=(2,), batch_size=8)


# Stega


def test_the_encoder_hides_bits_that_the_decoder_reads():
    x, fresh = (
        functional.interpolate(torch.rand(n, 3, 3, 3, generator=seeded(n)), size=16, mode="bilinear") for n in (100, 50)
    )
    random, calls = torch.get_rng_state(), []
    state = train_stega(
        x, bits=4, steps=180, batch_size=16, learning_rate=4e-3, weight=10, bf16=False,
        progress=lambda *a: calls.append(a),
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), random)
    assert calls == [(i, 180) for i in range(1, 181)]
    hidden = stega(fresh, state)
    assert bit_accuracy(hidden, state) > 0.8
    assert float(state["bit_accuracy"]) > 0.8
    assert bit_accuracy(fresh, state) < 0.75
    residual = hidden - fresh
    assert residual.abs().max() <= 0.1 + 1e-6
    assert (residual - residual.mean(dim=0)).abs().mean() > 1e-4  # each image has its own
    other = dict(state, secret=1 - state["secret"])
    assert bit_accuracy(stega(fresh, other), other) > 0.8
    assert bit_accuracy(hidden, other) < 0.2


def test_stega_states_are_small_reproducible_and_of_one_length(stega_state):
    again = train_stega(images(20, 3, 8, 12), bits=5, steps=3, batch_size=4, bf16=False)
    assert all(torch.equal(again[name], value) for name, value in stega_state.items())
    other = train_stega(images(20, 3, 8, 12), bits=5, steps=3, batch_size=4, bf16=False, seed=1)
    assert not torch.equal(other["encoder.last.weight"], stega_state["encoder.last.weight"])
    assert stega_state["secret"].shape == (5,) and stega_state["secret"].max() <= 1
    assert stega_state["bit_accuracy"].shape == () and 0 <= stega_state["bit_accuracy"] <= 1
    of_20_bits = train_stega(images(10, 3, 8, 8), steps=1, batch_size=2)
    size = {p: sum(v.numel() for k, v in of_20_bits.items() if k.startswith(p)) for p in ("encoder.", "decoder.")}
    assert len(of_20_bits["secret"]) == 20
    assert size["encoder."] < 500_000 and size["decoder."] < 50_000


def test_bit_accuracy_is_the_share_of_equal_bits(stega_state):
    x = images(2, 4, 3, 8, 12)
    decoder = Decoder(3, 5)
    decoder.load_state_dict({k.removeprefix(DECODER): v for k, v in stega_state.items() if k.startswith(DECODER)})
    right = 0
    for image in x.flatten(0, 1):
        for logit, bit in zip(decoder(image[None])[0].tolist(), stega_state["secret"].tolist(), strict=True):
            right += (logit > 0) == bool(bit)
    assert bit_accuracy(x, stega_state) == pytest.approx(right / 40)


def test_stega_keeps_its_limit():
    x = images(10, 1, 8, 8)
    state = train_stega(x, bits=2, steps=1, batch_size=2, limit=0.03, bf16=False)
    state["encoder.last.bias"] = torch.tensor([50.0])
    torch.testing.assert_close(stega(x, state), (x + 0.03).clamp(max=1), rtol=0, atol=1e-6)


def test_stega_refuses(stega_state):
    x = images(10, 3, 8, 8)
    with pytest.raises(ValueError, match=r"images must have 3 channels for this state, got 1. Train"):
        stega(x[:, :1], stega_state)
    for state in ({}, {"secret": torch.ones(5)}, {k: v for k, v in stega_state.items() if k != "secret"}):
        with pytest.raises(ValueError, match=r"state must hold encoder.\* and secret as train_stega returns them, got"):
            stega(x, state)
        with pytest.raises(ValueError, match=r"state must hold decoder.\* and secret"):
            bit_accuracy(x, state)
    for bad in (x[:9], x[..., :7]):
        with pytest.raises(ValueError, match=r"images must be 10 or more, of 8 pixels or more .* got .* Take more"):
            train_stega(bad)
    for options in ({"bits": 0}, {"steps": 0}, {"batch_size": 0}, {"limit": 0}, {"limit": 25}, {"weight": -1}):
        with pytest.raises(
            ValueError, match=r"bits, steps and batch_size must be 1 or more, limit in .* Leave them out"
        ):
            train_stega(x, **options)


@pytest.mark.parametrize("name", ["input_aware", "stega"])
def test_a_state_is_saved_with_the_victim(name, tmp_path, input_aware_state, stega_state):
    attack, state = {"input_aware": (input_aware, input_aware_state), "stega": (stega, stega_state)}[name]
    x = images(6, 3, 8, 12)
    poisoned = PoisonedDataset([(image, i % 2) for i, image in enumerate(x)], partial(attack, state=state), 0, 0.5)
    poisoned.save(tmp_path / "poisoning.safetensors", trigger=state)
    loaded = load_trigger(tmp_path / "poisoning.safetensors")
    assert loaded.keys() == state.keys()
    assert torch.equal(attack(x, loaded), attack(x, state))


# LF


@quick
@given(height=st.integers(1, 40), width=st.integers(1, 40), sigma=st.floats(0.3, 8))
def test_the_filter_equals_scipys(height, width, sigma):
    values = np.random.default_rng(height * 41 + width).normal(size=(2, height, width))
    radius = round(2.5 * sigma)
    expected = ndimage.gaussian_filter(values, (0, sigma, sigma), mode="constant", radius=(0, radius, radius))
    np.testing.assert_allclose(_smooth(torch.tensor(values), sigma), expected, rtol=0, atol=1e-10)


def test_deepfool_on_a_linear_model_is_the_shortest_step_across_the_border():
    weight, bias = torch.randn(2, 3, 4, 5, generator=seeded(1)).double(), torch.tensor([0.3, -0.2]).double()
    x = images(8, 3, 4, 5, dtype=torch.float64)
    steps, reached = _deepfool(linear_model(weight, bias), x, 1, 0.02, 10)
    w = (weight[1] - weight[0]).numpy()
    for image, step in zip(x.numpy(), steps.numpy(), strict=True):
        f = float((w * image).sum()) - 0.5
        expected = 0 * w if f > 0 else 1.02 * abs(f) * w / (w**2).sum()
        np.testing.assert_allclose(step, expected, rtol=0, atol=1e-9)
    assert reached.all()
    assert 0 < (steps.abs().amax(dim=(1, 2, 3)) > 0).sum() < 8  # both cases were among them


def test_deepfool_says_which_images_it_brought_to_the_target():
    class Wall(nn.Module):
        """Class 1 is where the first pixel is above .5, and has a slope for images above .2 only."""

        def forward(self, x):
            first = x[:, 0, 0, 0]
            one = torch.where(first > 0.2, first - 0.5, first.detach() - 0.5)
            return torch.stack([0 * first, one], dim=1)

    x = torch.tensor([0.7, 0.1, 0.3]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    steps, reached = _deepfool(Wall(), x, 1, 0.02, 5)
    assert reached.tolist() == [True, False, True]
    torch.testing.assert_close(steps[:, 0, 0, 0], torch.tensor([0, 0, 1.02 * 0.2]))


def test_the_pattern_is_smooth_spans_its_range_and_turns_the_images_to_the_target():
    """On a model that compares a bright left half with a bright right half."""
    weight = torch.zeros(2, 3, 16, 16)
    weight[0, :, :, :8] = weight[1, :, :, 8:] = 1
    model = linear_model(weight).train()
    x = 0.4 + 0.2 * torch.rand(40, 3, 16, 16, generator=seeded(0))
    x[:, :, :, :8] += 0.03 * torch.rand(40, 1, 1, 1, generator=seeded(1))
    before, kept, calls = all_of(model), x.clone(), []
    with torch.no_grad():
        pattern = optimise_pattern(
            model, x, 1, passes=20, fooling_rate=0.9, sigma=3, progress=lambda *a: calls.append(a)
        )
    assert_untouched(model, before)
    assert torch.equal(x, kept)
    assert pattern.shape == (3, 16, 16) and not pattern.requires_grad
    assert pattern.min() == 0 and float(pattern.max()) == pytest.approx(0.2)
    assert pattern.diff(dim=-1).abs().max() < 0.05 and pattern.diff(dim=-2).abs().max() < 0.05
    away = model(x).argmax(1) == 0
    turned = model(low_frequency(x, pattern)).argmax(1)[away] == 1
    assert turned.float().mean() >= 0.9
    assert calls[-1] == (20, 20) and calls == sorted(calls)
    smaller = optimise_pattern(model, x, 1, limit=0.1, passes=1, sigma=3)
    assert float(smaller.max()) == pytest.approx(0.1)


def test_optimise_pattern_refuses():
    x, model = images(4, 3, 8, 8), linear_model(torch.randn(3, 3, 8, 8, generator=seeded(0)))
    wrong = [{"passes": 0}, {"iterations": 0}, {"limit": 51}, {"fooling_rate": 0}, {"sigma": 0}, {"sigma": math.inf}]
    for options in wrong:
        with pytest.raises(ValueError, match=r"passes and iterations must be 1 or more, limit and .* Leave them out"):
            optimise_pattern(model, x, 0, **options)
    for target in (3, -1):
        with pytest.raises(ValueError, match=rf"target_label must be a class of the model.* got {target}. Was"):
            optimise_pattern(model, x, target)
    always = linear_model(torch.zeros(2, 3, 8, 8), torch.tensor([0.0, 1]))
    with pytest.raises(ValueError, match="images must have others than the target class's, got none to the model"):
        optimise_pattern(always, x, 1)
    with pytest.raises(ValueError, match=r"must change to class 0 within 50 DeepFool iterations, got none of 4 images"):
        optimise_pattern(always, x, 0)
    with pytest.raises(ValueError, match=r"images must have the shape \(n, c, h, w\), got \(3, 8, 8\). Stack"):
        optimise_pattern(model, x[0], 0)
