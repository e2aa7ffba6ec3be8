"""Refool, colour style, composite and the drawn pictures: against numpy, scipy and torchvision, image by image."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import images, seeded
from scipy.stats import norm
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import gaussian_blur

from sampdetox_transforms.lab.attacks.color_style import color_style
from sampdetox_transforms.lab.attacks.composite import CompositeDataset, CompositePairs, composite
from sampdetox_transforms.lab.attacks.pictures import cartoon, reflections, sunrise
from sampdetox_transforms.lab.attacks.refool import refool

quick = settings(deadline=None, max_examples=20, derandomize=True)


SCENES = images(4, 3, 14, 11, seed=5)
STYLE = images(3, 7, 6, seed=3)
ATTACKS = {
    "ghost": lambda x, seed=0: refool(x, SCENES, ghost_rate=1, generator=seeded(seed)),
    "out of focus": lambda x, seed=0: refool(x, SCENES, ghost_rate=0, generator=seeded(seed)),
    "refool": lambda x, seed=0: refool(x, SCENES, alpha=None, generator=seeded(seed)),
    "color_style": lambda x, seed=0: color_style(x, STYLE),
    "composite": lambda x, seed=0: composite(x, x.flip(-1, -2), generator=seeded(seed)),
}
NAMES = list(ATTACKS)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(height=st.integers(9, 24), width=st.integers(9, 24), seed=st.integers(0, 10**6))
def test_attacks_take_any_size_and_keep_range_and_input(name, height, width, seed):
    x = images(3, height, width, seed=seed)
    before = x.clone()
    result = ATTACKS[name](x, seed)
    assert torch.equal(x, before)
    assert result.data_ptr() != x.data_ptr()
    assert result.shape == x.shape and result.dtype == x.dtype
    assert result.min() >= 0 and result.max() <= 1
    assert not torch.equal(result, x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_attacks_keep_the_dtype(name, dtype):
    x = images(2, 3, 10, 12)
    result = ATTACKS[name](x.to(dtype))
    assert result.dtype == dtype
    # In linear light a dark pixel's rounding is amplified: 1 / 2.2 of its relative error stays.
    tolerance = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 1e-4}[dtype]
    torch.testing.assert_close(result.float(), ATTACKS[name](x), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_attacks_treat_each_image_alone_and_take_leading_dimensions(name):
    x = images(2, 3, 3, 10, 9)
    result = ATTACKS[name](x)
    torch.testing.assert_close(ATTACKS[name](x.flatten(0, 1)).view(x.shape), result, rtol=0, atol=1e-6)
    torch.testing.assert_close(ATTACKS[name](x[0, 0]), result[0, 0], rtol=0, atol=1e-6)
    grey = images(4, 1, 10, 9)
    if name == "color_style":
        assert color_style(grey, STYLE[:1]).shape == grey.shape
    elif name != "composite":
        assert refool(grey, SCENES[:, :1]).shape == grey.shape


@pytest.mark.parametrize("name", ["ghost", "out of focus", "refool", "composite"])
def test_the_generator_alone_draws_and_images_one_by_one_get_what_a_batch_gets(name):
    x = images(7, 3, 10, 9)
    attack = {
        "ghost": partial(refool, reflections=SCENES, ghost_rate=1),
        "out of focus": partial(refool, reflections=SCENES, ghost_rate=0),
        "refool": partial(refool, reflections=SCENES),
        "composite": lambda images, generator: composite(images, images.flip(-1, -2), generator=generator),
    }[name]
    state = torch.get_rng_state()
    together = attack(x, generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    generator = seeded(3)
    alone = torch.stack([attack(image, generator=generator) for image in x])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    assert not torch.equal(attack(x, generator=seeded(4)), together)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_attacks_refuse_values_and_types(name, value):
    x = images(3, 10, 10)
    x[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"(images|a) must be in \[0, 1\], got values from .* come before"):
        ATTACKS[name](x)
    with pytest.raises(TypeError, match=r"(images|a) must be a floating-point tensor, got torch.uint8"):
        ATTACKS[name](torch.zeros(3, 10, 10, dtype=torch.uint8))


# Refool


def cut(n: int, down: int) -> tuple[slice, slice]:
    return slice(down, n), slice(0, n - down)


def ghost_by_slices(x: torch.Tensor, r: torch.Tensor, u: torch.Tensor, alpha: float) -> torch.Tensor:
    """One image: both reflections are cropped to where they overlap, and the crop is enlarged."""
    down, right = 3 + int(6 * u[2]), 3 + int(6 * u[3])
    (low, high), (east, west) = cut(x.shape[1], down), cut(x.shape[2], right)
    g = 0.15 + 0.7 * float(u[4])
    r = r**2.2
    crop = g * r[:, low, east] + (1 - g) * r[:, high, west]
    crop = functional.interpolate(crop[None], size=x.shape[1:], mode="bilinear", align_corners=False)[0]
    return (alpha * x**2.2 + (1 - alpha) * crop) ** (1 / 2.2)


def out_of_focus_by_torchvision(x: torch.Tensor, r: torch.Tensor, u: torch.Tensor, alpha: float) -> torch.Tensor:
    """One image, channel by channel, with torchvision's blur and scipy's normal distribution."""
    sigma = 1 + 4 * float(u[5])
    side = 2 * int(np.ceil(2 * sigma)) + 1
    blurred = gaussian_blur(r**2.2, [side, side], [sigma, sigma]).numpy()
    light = x.numpy() ** 2.2
    factor = 1.08 + float(u[6]) / 10
    result = np.empty_like(light)
    spot = []
    for n in x.shape[1:]:
        interval = 7 / n
        profile = np.sqrt(np.diff(norm.cdf(np.linspace(-3 - interval / 2, 3 + interval / 2, n + 1))))
        spot.append(profile / profile.max())
    for c in range(3):
        total = blurred[c] + light[c]
        over = total[total > 1]
        excess = max(1, over.sum() / (len(over) + 1e-6)) - 1
        lowered = np.clip(blurred[c] - excess * factor, 0, 1)
        result[c] = lowered * np.outer(*spot) * (1 - alpha / 2) + alpha * light[c]
    return torch.tensor(result.clip(0, 1) ** (1 / 2.2))


@pytest.mark.parametrize(("rate", "oracle"), [(1, ghost_by_slices), (0, out_of_focus_by_torchvision)])
@pytest.mark.parametrize("size", [(24, 24), (23, 31)])
def test_refool_equals_slices_torchvision_and_scipy(rate, oracle, size):
    x, scenes = images(12, 3, *size, dtype=torch.float64), images(5, 3, *size, seed=1, dtype=torch.float64)
    result = refool(x, scenes, ghost_rate=rate, generator=seeded(8))
    u = torch.rand((12, 8), generator=seeded(8))
    for i in range(12):
        expected = oracle(x[i], scenes[int(5 * u[i, 0])], u[i], 0.4)
        torch.testing.assert_close(result[i], expected, rtol=0, atol=2e-5)


def test_refool_draws_kinds_reflections_and_alpha_as_it_says():
    x, scenes = images(400, 3, 9, 9), images(3, 3, 9, 9, seed=1)
    u = torch.rand((400, 8), generator=seeded(2))
    result = refool(x, scenes, generator=seeded(2))
    ghost = refool(x, scenes, ghost_rate=1, generator=seeded(2))
    blurred = refool(x, scenes, ghost_rate=0, generator=seeded(2))
    is_ghost = (result == ghost).flatten(1).all(1)
    assert torch.equal(is_ghost, u[:, 1] < 0.49)
    assert torch.equal((result == blurred).flatten(1).all(1), ~is_ghost)
    assert 0.39 < is_ghost.float().mean() < 0.59
    # Black scenes: what is left is alpha of the image's light.
    share = refool(torch.ones(400, 3, 9, 9), 0 * scenes, alpha=None, generator=seeded(2)) ** 2.2
    assert share.amin() > 0.549 and share.amin() < 0.57 and share.amax() < 0.951 and share.amax() > 0.93
    fixed = refool(torch.ones(2, 3, 9, 9), 0 * scenes, alpha=0.3) ** 2.2
    torch.testing.assert_close(fixed, torch.full_like(fixed, 0.3))
    shown = [
        refool(torch.zeros(40, 3, 9, 9), torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(3, 3, 9, 9), ghost_rate=1)
        for _ in range(3)
    ]
    values = torch.cat(shown).flatten(1).mean(1)
    assert len(values.mul(100).round().unique()) == 3  # each of the three reflections is drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, r"alpha must be in \(0, 1\) or None, got 0"),
        ({"alpha": 1.0}, r"alpha must be in \(0, 1\) or None, got 1.0. 0.4 is BackdoorBench's"),
        ({"ghost_rate": 1.1}, r"ghost_rate must be in \[0, 1\], got 1.1"),
        ({"ghost_rate": float("nan")}, r"ghost_rate must be in \[0, 1\], got nan"),
        ({"reflections": SCENES[0]}, r"reflections must have the shape \(m, 3, y, x\) .* got \(3, 14, 11\)"),
        ({"reflections": SCENES[:0]}, r"reflections must have the shape"),
        ({"reflections": SCENES[:, :2]}, r"got \(4, 2, 14, 11\). Stack the pictures"),
        ({"reflections": SCENES * 255}, r"reflections must be in \[0, 1\]"),
        ({"images": torch.zeros(3, 8, 12)}, r"images must be 9 pixels or more on both sides, got 8 x 12"),
    ],
)
def test_refool_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        refool(**{"images": torch.zeros(3, 12, 12), "reflections": SCENES, **options})


# Colour style


@pytest.mark.parametrize("channels", [1, 3])
def test_color_style_equals_numpy(channels):
    x, style = images(5, 3, 9, 8, dtype=torch.float64), images(channels, 6, 4, seed=1, dtype=torch.float64)
    result = color_style(x, style, alpha=0.7)
    for i in range(5):
        for c in range(3):
            plane, model = x[i, c].numpy(), style[c if channels == 3 else 0].numpy()
            styled = model.mean() + (plane - plane.mean()) / plane.std() * model.std()
            np.testing.assert_allclose(result[i, c], 0.3 * plane + 0.7 * styled.clip(0, 1), rtol=0, atol=1e-12)


def test_color_style_gives_the_statistics_of_the_style():
    x = 0.4 + 0.2 * images(2, 3, 16, 16)
    style = torch.tensor([0.2, 0.5, 0.8])[:, None, None] + 0.1 * (images(3, 5, 5) - 0.5)
    result = color_style(x, style, alpha=1.0)
    assert result.min() > 0 and result.max() < 1  # nothing is clipped
    for statistic in (torch.mean, partial(torch.std, correction=0)):
        expected = torch.stack([statistic(style[c]) for c in range(3)])
        actual = torch.stack([torch.stack([statistic(plane) for plane in image]) for image in result])
        torch.testing.assert_close(actual, expected.expand(2, 3), rtol=0, atol=1e-5)
    flat = color_style(torch.full((3, 4, 4), 0.3), style, alpha=1.0)
    torch.testing.assert_close(flat, style.mean(dim=(1, 2))[:, None, None].expand(3, 4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, r"alpha must be in \(0, 1\], got 0. 0.6 is DFST's"),
        ({"alpha": 1.5}, r"alpha must be in \(0, 1\], got 1.5"),
        ({"style": torch.zeros(4, 5, 5)}, r"style must have the shape \(3, y, x\) or \(1, y, x\), got \(4, 5, 5\)"),
        ({"style": torch.zeros(2, 3, 5, 5)}, r"style must have the shape .* got \(2, 3, 5, 5\). Convert it"),
        ({"style": torch.full((3, 5, 5), 2.0)}, r"style must be in \[0, 1\]"),
    ],
)
def test_color_style_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        color_style(**{"images": torch.zeros(3, 12, 12), "style": STYLE, **options})


# Composite


def coded(n: int, height: int, width: int, offset: int) -> torch.Tensor:
    """Images in which no two pixels of any image are alike, beginning at ``offset`` / 2^16."""
    count = n * height * width
    return ((torch.arange(count, dtype=torch.float64) + offset) / 2**16).view(n, 1, height, width)


@pytest.mark.parametrize("size", [(8, 8), (12, 17), (9, 32)])
def test_composite_equals_slices(size):
    n, (height, width) = 300, size
    a, b = coded(n, height, width, 0) / 4, coded(n, height, width, 1) / 4 + 0.5
    result = composite(a, b, generator=seeded(6))
    u = torch.rand((n, 5), generator=seeded(6))
    seen = set()
    for i in range(n):
        swap, beside = (u[i, :2] < 0.5).tolist()
        jitter = int(7 * u[i, 2]) - 3
        one, two = (b[i], a[i]) if swap else (a[i], b[i])
        axis = 2 if beside else 1
        side = (1, height, width)[axis]
        first = side // 2 + jitter
        begin, other = int(u[i, 3] * (side - first)), int(u[i, 4] * first)
        expected = torch.cat([one.narrow(axis, begin, first), two.narrow(axis, other, side - first)], dim=axis)
        assert torch.equal(result[i], expected)
        seen.add((swap, beside, jitter))
    assert len(seen) == 2 * 2 * 7


def test_composite_shows_both_in_contiguous_parts():
    result = composite(torch.zeros(200, 3, 16, 10), torch.ones(200, 3, 16, 10), generator=seeded(0))
    assert (result == result[:, :1, :, :]).all() and result.unique().tolist() == [0, 1]
    changes = (result.diff(dim=2).abs().amax(dim=(1, 3)) > 0).sum(1), (result.diff(dim=3).abs().amax((1, 2)) > 0).sum(1)
    assert torch.equal(changes[0] + changes[1], torch.ones(200, dtype=torch.long))  # one cut, of one direction
    assert 60 < int(changes[0].sum()) < 140
    share = result.mean(dim=(1, 2, 3))
    assert share.min() == 0.2 and share.max() == 0.8  # 10 wide: the cut is at 2 to 8
    assert 60 < int(result[:, 0, 0, 0].sum()) < 140  # either one may be first


def test_composite_refuses_pairs_that_do_not_fit():
    with pytest.raises(ValueError, match=r"a and b must have one shape, got \(3, 9, 9\) and \(3, 9, 8\). Resize one"):
        composite(torch.zeros(3, 9, 9), torch.zeros(3, 9, 8))
    with pytest.raises(ValueError, match=r"b must be in \[0, 1\]"):
        composite(torch.zeros(3, 9, 9), torch.full((3, 9, 9), 2.0))
    with pytest.raises(ValueError, match=r"images must be 8 pixels or more on both sides, got 7 x 9.*Resize them"):
        composite(torch.zeros(3, 7, 9), torch.zeros(3, 7, 9))


class Pictures(Dataset):
    """n images of one colour each, i / n; their classes come in an order without a pattern."""

    def __init__(self, n: int = 60, num_classes: int = 4, side: int = 9):
        self.targets = torch.cat(
            [torch.arange(num_classes), torch.randint(num_classes, (n - num_classes,), generator=seeded(n))]
        ).tolist()
        self.side = side

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.full((3, self.side, self.side), index / len(self)), self.targets[index]


def parts(image: torch.Tensor, n: int) -> set[int]:
    """Which images of ``Pictures`` an item shows."""
    return {round(value * n) for value in image.unique().tolist()}


def test_composite_training_items_are_what_they_say():
    clean = Pictures()
    data = CompositeDataset(clean, (1, 3), 0, seed=4)
    labels = clean.targets
    assert len(data) == 66 and data.indices.tolist() == list(range(60, 66))
    assert sorted(data.pairs[:60, 0].tolist()) == list(range(60))  # each once: half normal, half first of a mix
    for i, (image, label) in enumerate(data):
        a, b = data.pairs[i].tolist()
        assert parts(image, 60) == {a, b} and label == int(data.targets[i]) and type(label) is int
        if i < 30:
            assert a == b and label == labels[a]
        elif i < 60:
            assert a != b and label == labels[a] == labels[b]
        else:
            assert (labels[a], labels[b], label) == (1, 3, 0)
    assert torch.equal(data.pairs, CompositeDataset(clean, (1, 3), 0, seed=4).pairs)
    assert not torch.equal(data.pairs, CompositeDataset(clean, (1, 3), 0, seed=5).pairs)


@quick
@given(normal=st.floats(0.02, 1), same=st.floats(0, 1), poison=st.floats(0.02, 1), seed=st.integers(0, 10**6))
def test_composite_rates_are_shares_of_the_images(normal, same, poison, seed):
    data = CompositeDataset(
        Pictures(), (0, 2), 3, normal_rate=normal, same_rate=same, poison_rate=poison, seed=seed, num_classes=9
    )
    assert len(data) == round(60 * normal) + round(60 * same) + round(60 * poison)
    assert len(data.indices) == round(60 * poison) and data.num_classes == 9
    truth = torch.tensor(Pictures().targets)[data.pairs]
    whole = data.indices[0]
    assert torch.equal(truth[:whole, 0], truth[:whole, 1]) and torch.equal(truth[:whole, 0], data.targets[:whole])


def test_an_image_without_others_of_its_class_is_mixed_with_itself():
    clean = Pictures(12)
    clean.targets = [0, 1, 2] + [3] * 9
    data = CompositeDataset(clean, same_rate=1.0)
    for a, b in data.pairs[6:18].tolist():
        assert (a == b) == (a < 3)
    together = {tuple(sorted(pair)) for seed in range(60) for pair in CompositeDataset(clean, seed=seed).pairs.tolist()}
    assert len([pair for pair in together if pair[0] >= 3 and pair[0] != pair[1]]) == 36  # all pairs of class 3


def test_composite_test_pairs_have_two_true_labels():
    clean = Pictures()
    test = CompositePairs(clean, (3, 1), 2, n=40, seed=1)
    assert len(test) == 40
    for name, value in (("targets", 3), ("second_targets", 1), ("attacker_labels", 2)):
        assert getattr(test, name).tolist() == [value] * 40
    for i, (image, label) in enumerate(test):
        a, b = test.pairs[i].tolist()
        assert parts(image, 60) == {a, b} and label == 3 == clean.targets[a] and clean.targets[b] == 1
    assert torch.equal(test.pairs, CompositePairs(clean, (3, 1), 2, n=40, seed=1).pairs)
    assert not torch.equal(test.pairs, CompositePairs(clean, (3, 1), 2, n=40, seed=2).pairs)


@pytest.mark.parametrize("make", [CompositeDataset, partial(CompositePairs, n=40)])
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_composite_items_at_once_equal_items_one_by_one(make, batch_size):
    data = make(Pictures(50), num_classes=4)
    images, labels = data.materialise(batch_size)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.equal(images, torch.stack([image for image, _ in data]))
    assert labels.tolist() == [label for _, label in data] == data.targets.tolist()
    loaded = torch.cat([batch for batch, _ in DataLoader(data, batch_size=8)])
    assert torch.equal(loaded, images)
    assert torch.equal(data[-1][0], data[len(data) - 1][0])
    with pytest.raises(IndexError):
        data[len(data)]
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        data.materialise(0)


@pytest.mark.parametrize("make", [CompositeDataset, CompositePairs])
def test_composite_data_refuse_classes_and_images(make):
    clean = Pictures()
    for classes, target in (((1, 1), 2), ((0, 1), 1), ((0, 1, 3), 2), ((2, 1), 2)):
        with pytest.raises(ValueError, match="classes and target_label must be three different classes, got"):
            make(clean, classes, target)
    with pytest.raises(ValueError, match=r"each of classes must have an image, got class 7 .* among \[0, 1, 2, 3\]"):
        make(clean, (0, 7), 1)
    with pytest.raises(ValueError, match=r"target_label must be a class in 0\.\.\.3, got 4"):
        make(clean, (0, 1), 4)
    small = make(Pictures(side=7))
    with pytest.raises(ValueError, match="images must be 8 pixels or more on both sides, got 7 x 7"):
        small[len(small) - 1]

    class Sizes(Pictures):
        def __getitem__(self, index):
            self.side = 9 + self.targets[index]
            return super().__getitem__(index)

    sizes = make(Sizes())
    with pytest.raises(ValueError, match=r"images must have one shape, got \(3, 9, 9\) and \(3, 10, 10\)"):
        sizes[len(sizes) - 1]
    with pytest.raises(ValueError, match=r"images must have one shape"):
        sizes.materialise()


def test_composite_data_refuse_rates_and_numbers():
    for options, message in (
        ({"normal_rate": 0}, r"normal_rate must be in \(0, 1\] and select an image, got 0 of 60 images"),
        ({"poison_rate": 1.2}, r"poison_rate must be in \(0, 1\] and select an image, got 1.2"),
        ({"poison_rate": 0.001}, r"poison_rate .* got 0.001 of 60 images. It is a share"),
        ({"same_rate": -0.1}, r"same_rate must be in \[0, 1\], got -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            CompositeDataset(Pictures(), **options)
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        CompositePairs(Pictures(), n=0)


# Drawn pictures

DRAWN = {"cartoon": cartoon, "sunrise": sunrise, **{f"reflection {i}": i for i in range(4)}}


def draw(name: str, height: int, width: int) -> torch.Tensor:
    which = DRAWN[name]
    return reflections(which + 1, height, width)[which] if isinstance(which, int) else which(height, width)


@pytest.mark.parametrize("name", list(DRAWN))
def test_pictures_are_the_same_at_each_call_and_scene_at_each_size(name):
    state = torch.get_rng_state()
    large = draw(name, 224, 224)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(large, draw(name, 224, 224))
    assert large.shape == (3, 224, 224) and large.dtype == torch.float32
    assert large.min() >= 0 and large.max() <= 1
    small = draw(name, 32, 32)
    assert (functional.avg_pool2d(large, 7) - small).abs().mean() < 0.02  # supersampled: no pixel is left to chance
    wide = draw(name, 16, 32)
    assert (functional.avg_pool2d(small, (2, 1)) - wide).abs().mean() < 0.03
    assert draw(name, 1, 1).shape == (3, 1, 1)


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "sunrise"])
def test_pictures_have_hard_edges_and_contrast(name):
    large = draw(name, 224, 224)
    steps = torch.maximum(large.diff(dim=1)[:, :, 1:], large.diff(dim=2)[:, 1:, :])
    assert (steps.abs().amax(0) > 0.2).float().mean() > 0.005
    assert (steps.abs().amax(0) < 0.02).float().mean() > 0.7  # between the edges it is smooth
    assert large.std() > 0.1


def test_the_sunrise_is_red_and_the_cartoon_has_many_colours():
    red, _, blue = sunrise(32, 32).mean(dim=(1, 2)).tolist()
    assert red > blue + 0.15
    assert len((cartoon(64, 64) * 4).round().flatten(1).unique(dim=1)[0]) > 12


def test_reflections_differ_and_the_first_do_not_depend_on_their_number():
    many = reflections(24, 16, 20, seed=3)
    assert many.shape == (24, 3, 16, 20)
    assert torch.equal(reflections(5, 16, 20, seed=3), many[:5])
    assert not torch.equal(reflections(5, 16, 20, seed=4), many[:5])
    distance = torch.cdist(many.flatten(1), many.flatten(1)) + torch.eye(24) * 99
    assert distance.min() > 1


def test_pictures_refuse_sizes():
    for call in (cartoon, sunrise, partial(reflections, 2)):
        with pytest.raises(ValueError, match="height and width must be 1 or more, got 0 and 8"):
            call(0, 8)
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        reflections(0, 8, 8)
