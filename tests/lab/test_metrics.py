"""Metrics: against published values, scikit-image and cases with known answers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from skimage.metrics import structural_similarity

from sampdetox_transforms.lab.metrics import (
    Share,
    accuracy,
    attack_success,
    paired_difference,
    predicted,
    robustness,
    visibility,
    wilson,
)

quick = settings(deadline=None, max_examples=50, derandomize=True)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (10, 10, 0.7225, 1.0),
        (0, 10, 0.0, 0.2775),
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_has_the_published_values(successes, n, low, high):
    share = wilson(successes, n)
    assert (share.low, share.high) == pytest.approx((low, high), abs=6e-5)
    assert share.value == successes / n and share.n == n


@quick
@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_equals_scipy(n, share):
    successes = round(share * n)
    ours, theirs = wilson(successes, n), stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_wilson_ends_at_0_and_1_exactly():
    for n in range(1, 300):
        assert wilson(0, n).low == 0
        assert wilson(n, n).high == 1


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses(successes, n):
    with pytest.raises(ValueError, match=rf"successes must be in \[0, n\] with n 1 or more, got {successes} of {n}"):
        wilson(successes, n)


def test_accuracy_and_attack_success_count():
    labels, predictions = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([0, 4, 2, 4, 4])
    assert accuracy(predictions, labels) == wilson(2, 5)
    assert attack_success(predictions, labels, torch.full((5,), 4)) == wilson(3, 5)
    assert attack_success(predictions, labels, (labels + 1) % 5) == wilson(1, 5)  # 3 -> 4


def test_a_share_is_read_only():
    with pytest.raises(AttributeError):
        wilson(1, 2).value = 1.0  # type: ignore[misc]


def test_labels_are_checked():
    labels = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"predictions and labels must be of one length, .*predictions \(2,\), labels"):
        accuracy(labels[:2], labels)
    with pytest.raises(ValueError, match="of one length, 1 or more"):
        accuracy(labels[:0], labels[:0])
    with pytest.raises(ValueError, match=r"predictions must be in 0\.\.\.1, got 0\.\.\.2. Do model and data set"):
        accuracy(labels, labels.clamp(max=1), num_classes=2)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.\.1, got 0\.\.\.2"):
        accuracy(labels.clamp(max=1), labels, num_classes=2)
    with pytest.raises(ValueError, match=r"labels must be 0 or more, got -1\.\.\.1"):
        accuracy(labels, labels - 1)
    with pytest.raises(TypeError, match=r"predictions must be whole numbers, got torch.float32. predicted\(\)"):
        accuracy(labels.float(), labels)
    with pytest.raises(ValueError, match=r"true labels must differ from the attacker's, got 1 of 3 alike"):
        attack_success(labels, labels, torch.full((3,), 2))
    with pytest.raises(ValueError, match=r"attacker_labels must be in 0\.\.\.2, got 7\.\.\.7"):
        attack_success(labels, labels, torch.full((3,), 7), num_classes=3)


def test_predicted_is_the_largest_output():
    outputs = torch.tensor([[0.1, 0.3, 0.2], [2.0, -1.0, 1.0]])
    assert predicted(outputs, 3).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"outputs must have the shape \(n, 43\), got \(2, 3\). Was the model"):
        predicted(outputs, 43)
    with pytest.raises(ValueError, match=r"outputs must have the shape \(n, num_classes\), got \(3,\)"):
        predicted(outputs[0])
    with pytest.raises(ValueError, match="outputs must be finite"):
        predicted(outputs * float("nan"))


def pairs(both: int, one: int, other: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    first = [True] * (both + one) + [False] * (other + neither)
    second = [True] * both + [False] * one + [True] * other + [False] * neither
    return torch.tensor(first), torch.tensor(second)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland, Lydersen, Laake 2014, Statistics in Medicine 33:2850
        ((12, 9, 2, 21), 0.0112, 0.2954),  # Newcombe 1998, Statistics in Medicine 17:2635, worked example
        ((36, 12, 2, 0), 0.0569, 0.3404),  # by hand, with a negative correlation
    ],
)
def test_paired_difference_has_the_published_values(table, low, high):
    share = paired_difference(*pairs(*table))
    assert (share.low, share.high) == pytest.approx((low, high), abs=6e-4)
    assert share.value == pytest.approx((table[1] - table[2]) / sum(table)) and share.n == sum(table)


@quick
@given(table=st.tuples(*[st.integers(0, 40)] * 4).filter(any))
def test_paired_difference_holds_its_value_and_turns_with_its_arguments(table):
    first, second = pairs(*table)
    share, turned = paired_difference(first, second), paired_difference(second, first)
    assert -1 <= share.low <= share.value <= share.high <= 1
    assert (turned.low, turned.high) == pytest.approx((-share.high, -share.low), abs=1e-12)


def test_paired_difference_covers_the_truth_in_95_of_100_samples():
    rng = np.random.default_rng(0)
    chances = [0.7, 0.15, 0.05, 0.1]
    hits = 0
    for _ in range(400):
        share = paired_difference(*pairs(*rng.multinomial(100, chances)))
        hits += share.low <= 0.1 <= share.high
    assert 0.92 <= hits / 400 <= 0.985


def test_paired_difference_refuses():
    values = torch.tensor([True, False])
    with pytest.raises(TypeError, match=r"second must be boolean, got torch\.int64"):
        paired_difference(values, values.long())
    with pytest.raises(ValueError, match=r"of one length, 1 or more, got first \(2,\), second \(1,\)"):
        paired_difference(values, values[:1])


# Visibility


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_visibility_equals_scikit_image(window, crop):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (2, 2, 3, 14, 17))
    y = np.clip(x + 0.2 * rng.normal(size=x.shape), 0, 1)
    ours = visibility(torch.tensor(x), torch.tensor(y), window=window, data_range=0.7, crop=crop)
    assert ours.shape == (2, 2) and ours.dtype == torch.float64
    options = {"gaussian_weights": True, "sigma": 1.5} if window == "gaussian" else {}
    for i in range(2):
        for j in range(2):
            mean, full = structural_similarity(x[i, j], y[i, j], data_range=0.7, channel_axis=0, full=True, **options)
            assert float(ours[i, j]) == pytest.approx((1 - (mean if crop else full.mean())) / 2, abs=1e-9)


def test_visibility_by_default_is_scikit_images_on_0_to_1():
    x, y = torch.rand(3, 9, 12), torch.rand(3, 9, 12)
    expected = structural_similarity(x.numpy(), y.numpy(), data_range=1, channel_axis=0)
    assert float(visibility(x, y)) == pytest.approx((1 - expected) / 2, abs=1e-5)
    assert float(visibility(x, x)) == pytest.approx(0, abs=1e-12)


def test_visibility_without_cropping_sees_corners():
    x = torch.full((3, 9, 9), 0.5)
    y = x.clone()
    y[:, 0, 0] = 1
    assert float(visibility(x, y, crop=False)) > float(visibility(x, y)) > 0


def test_visibility_refuses():
    x = torch.rand(2, 3, 8, 10)
    with pytest.raises(ValueError, match=r"x and x_poisoned must have one shape .* got \(2, 3, 8, 10\) and \(1, 3, 8"):
        visibility(x, x[:1])
    with pytest.raises(ValueError, match="must have one shape"):
        visibility(x[:0], x[:0])
    for bad in (x * 255, x - 1, x * float("nan")):
        with pytest.raises(ValueError, match=r"x_poisoned must be in \[0, 1\], got values from"):
            visibility(x, bad)
        with pytest.raises(ValueError, match=r"x must be in \[0, 1\]"):
            visibility(bad, x)
    with pytest.raises(ValueError, match=r"images must be 11 pixels or more .* got 8. Take crop=False"):
        visibility(x, x, window="gaussian")
    with pytest.raises(ValueError, match=r"images must be 7 pixels or more .* got 6"):
        visibility(x[..., :6], x[..., :6])
    with pytest.raises(ValueError, match="window must be one of"):
        visibility(x, x, window="hann")
    for value in (0, float("nan")):
        with pytest.raises(ValueError, match=rf"data_range must be above 0 and finite, got {value}"):
            visibility(x, x, data_range=value)


# Robustness


def by_mean(x: torch.Tensor) -> torch.Tensor:
    """Class 1 where the mean is .5 or more, class 0 below, never class 2."""
    mean = x.mean(dim=(1, 2, 3))
    return torch.stack([0.5 - mean, mean - 0.5, torch.full_like(mean, -9.0)], dim=1)


def test_robustness_equals_the_exact_crossing():
    """White images leave class 1 where (1 - eta) + eta mean(n) = .5, for each draw n."""
    x = torch.ones(4, 3, 5, 5, dtype=torch.float64)
    x[3] = 0.8
    result = robustness(by_mean, x, 1, draws=2, steps=14, generator=torch.Generator().manual_seed(0))
    assert result.shape == (4, 2)
    generator = torch.Generator().manual_seed(0)
    for draw in range(2):
        mean = torch.randn(x.shape, generator=generator).double().mean(dim=(1, 2, 3))
        start = x[:, 0, 0, 0]
        expected = (start - 0.5) / (start - mean)
        torch.testing.assert_close(result[:, draw], expected, rtol=0, atol=2**-13)


def test_robustness_halves_as_often_as_told_and_calls_the_model_no_more():
    calls = []

    def model(x):
        calls.append(len(x))
        return by_mean(x)

    coarse = robustness(model, torch.ones(2, 1, 9, 9), 1, draws=3, steps=4)
    assert calls == [2] * 13
    assert torch.equal(coarse * 16, (coarse * 16).round())
    calls.clear()
    assert robustness(model, torch.ones(2, 1, 9, 9), 1).shape == (2, 1)
    assert len(calls) == 11


def test_robustness_is_0_where_the_attack_fails_and_1_where_nothing_undoes_it():
    x = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    assert robustness(by_mean, x, 1)[0] == 0
    assert robustness(lambda x: by_mean(x) * 0 + torch.tensor([0.0, 1.0, 0.0]), x, 1).tolist() == [[1], [1]]
    targets = robustness(by_mean, x, torch.tensor([0, 1]))
    assert (targets > 0).all()


def test_robustness_clips_on_request_and_takes_no_gradients():
    seen = []

    def model(x):
        seen.append(x)
        return by_mean(x)

    x = torch.full((1, 1, 4, 4), 0.9, requires_grad=True)
    robustness(model, x, 1, clip=True)
    assert all(v.min() >= 0 and v.max() <= 1 and not v.requires_grad for v in seen)
    seen.clear()
    robustness(model, x, 1)
    assert min(v.min() for v in seen) < 0


def test_robustness_refuses():
    x = torch.ones(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"draws and steps must be 1 or more, got 0 and 10"):
        robustness(by_mean, x, 1, draws=0)
    with pytest.raises(ValueError, match=r"x_poisoned must be finite images \(b, c, h, w\), got \(1, 4, 4\)"):
        robustness(by_mean, x[0], 1)
    with pytest.raises(ValueError, match="x_poisoned must be finite"):
        robustness(by_mean, x * math.inf, 1)
    with pytest.raises(ValueError, match=r"of one length, .* x_poisoned \(2,\), attacker_labels \(3,\)"):
        robustness(by_mean, x, torch.tensor([1, 1, 1]))
    with pytest.raises(ValueError, match=r"attacker_labels must be in 0\.\.\.2, got 3\.\.\.3"):
        robustness(by_mean, x, 3)
    with pytest.raises(ValueError, match=r"of one length, .* x_poisoned \(2,\), outputs \(1,\)"):
        robustness(lambda x: by_mean(x)[:1], x, 1)
    with pytest.raises(ValueError, match=r"outputs must have the shape"):
        robustness(lambda x: by_mean(x)[:, 0], x, 1)


def test_shares_compare_by_value():
    assert wilson(1, 2) == Share(0.5, wilson(1, 2).low, wilson(1, 2).high, 2)
