"""Baseline defenses: the contract of all, against loops and scipy, and exact denoisers and models as known answers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import UnitPrior, tiny_config, write_tiny
from contract import assert_close, assert_same_kind, check_batch, check_copies, is_close, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import linear_betas
from scipy import ndimage
from skimage.transform import resize
from torch import Tensor, nn

from sampdetox_transforms import Denoiser, SampDetox, Schedule, load_denoiser
from sampdetox_transforms.lab.defenses import (
    Bdmae,
    Blur,
    Defense,
    DiffusionInpainter,
    Noising,
    Sancdifi,
    ShrinkPad,
    Zip,
    fill,
)
from sampdetox_transforms.lab.defenses.bdmae import grow, raised_thresholds, random_masks, token_mask, top_tokens
from sampdetox_transforms.lab.defenses.inpainting import repaint
from sampdetox_transforms.lab.defenses.sancdifi import rise_masks
from sampdetox_transforms.lab.defenses.zip import mean_block, mean_colour
from sampdetox_transforms.method.noise import SeededNoise

quick = settings(deadline=None, max_examples=15, derandomize=True)
LINEAR = Schedule.named("linear")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Sums(nn.Module):
    """A model of three classes: random weights on the pixels of 9x12 images."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.randn(3, 3, 9, 12, generator=torch.Generator().manual_seed(5)))

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", images, self.weights[:, : images.shape[1]])


class Known(nn.Module):
    """The exact denoiser where the clean image is known to be ``image``."""

    def __init__(self, image: Tensor):
        super().__init__()
        self.register_buffer("image", image)
        self.register_buffer("alphas_cumprod", LINEAR.alphas_cumprod)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        signal = self.alphas_cumprod[t.long()][:, None, None, None]
        return ((x_t - signal.sqrt() * self.image) / (1 - signal).sqrt()).float()


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Denoiser:
    """A tiny network with random weights that knows all levels."""
    folder = write_tiny(tmp_path_factory.mktemp("wide"), config=tiny_config(), about={"max_level": 1000})
    return load_denoiser(folder)


@pytest.fixture
def unit() -> Denoiser:
    return Denoiser(UnitPrior(), LINEAR)


def knowing(image: Tensor) -> Denoiser:
    """The exact denoiser of one image (c, h, w) in [0, 1]."""
    return Denoiser(Known(image * 2 - 1), LINEAR)


def build(name: str, wide: Denoiser) -> nn.Module:
    """Each defense, seeded and small, for 9x12 RGB images."""
    match name:
        case "Noising":
            return Noising(seed=3)
        case "ShrinkPad":
            return ShrinkPad(pad=3, seed=3)
        case "Blur":
            return Blur()
        case "Zip":
            return Zip(wide, step=250, seed=3)
        case "Bdmae":
            return Bdmae(Sums().eval(), wide, grid=4, outer=2, inner=2, rounds=1, seed=3)
        case "Bdmae of a callable":
            return Bdmae(Sums().eval(), fill, grid=4, outer=2, inner=2, rounds=1, seed=3)
        case "Sancdifi":
            return Sancdifi(Sums().eval(), wide, masks=40, level=100, stride=50, seed=3)
        case "SampDetox":
            return SampDetox(wide, t2=40, seed=3)
    raise KeyError(name)


NAMES = ["Noising", "ShrinkPad", "Blur", "Zip", "Bdmae", "Bdmae of a callable", "Sancdifi"]
SEEDED = [name for name in NAMES if name != "Blur"]


# The contract


CONTRACT = [(name, dtype) for name in NAMES for dtype in (torch.float32, torch.float16)]


@pytest.mark.parametrize(("name", "dtype"), [*CONTRACT, ("SampDetox", torch.float32), ("Noising", torch.float64)])
def test_contract(name, dtype, wide):
    defense = build(name, wide)
    images = pixels(2, 3, 9, 12, dtype=dtype)
    before, state = images.clone(), torch.get_rng_state()
    result = defense(images)
    assert torch.equal(images, before)
    assert_same_kind(result, images)
    assert not is_close(result, images), "the defense did nothing"
    assert_close(defense(images), result, exact=True)
    assert torch.equal(torch.get_rng_state(), state), "a seeded defense drew from torch's generator"
    check_copies(defense, images, result)
    check_batch(defense, images[0])
    check_batch(defense, images)


@pytest.mark.parametrize("name", NAMES)
def test_many_images_are_split_into_batches_without_a_difference(name, wide):
    defense = build(name, wide)
    images = pixels(5, 3, 9, 12)
    together = defense(images)
    defense.batch_size = 2
    if isinstance(getattr(defense, "inpainter", None), DiffusionInpainter):
        defense.inpainter.batch_size = 3
    assert_close(defense(images), together)


@pytest.mark.parametrize("name", NAMES)
def test_no_images_give_no_images(name, wide):
    assert build(name, wide)(torch.zeros(0, 3, 9, 12)).shape == (0, 3, 9, 12)


@pytest.mark.parametrize("name", NAMES)
def test_results_carry_no_gradients_and_networks_stay_in_eval_mode(name, wide):
    defense = build(name, wide)
    assert not defense(pixels(1, 3, 9, 12).requires_grad_()).requires_grad
    assert not any(module.training for module in defense.train().modules())
    assert not any(p.requires_grad for p in defense.parameters())


@pytest.mark.parametrize("name", SEEDED)
def test_seeds_and_images_choose_the_noise(name, wide):
    images = pixels(1, 3, 9, 12).expand(2, -1, -1, -1)
    defense = build(name, wide)
    first = defense(images)
    assert_close(first[0], first[1])  # equal images, equal noise
    others = []
    for seed in range(4, 8):
        defense.seed = seed
        if isinstance(getattr(defense, "inpainter", None), DiffusionInpainter):
            defense.inpainter.seed = seed
        others.append(defense(images))
    assert any(not is_close(other, first) for other in others)


@pytest.mark.parametrize("name", SEEDED)
def test_without_a_seed_noise_comes_from_torch(name, wide):
    defense = build(name, wide)
    defense.seed = None
    if isinstance(getattr(defense, "inpainter", None), DiffusionInpainter):
        defense.inpainter.seed = None
    images, results = pixels(3, 3, 9, 12), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(defense(images))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


class Counted:
    """Counts the images that a network sees."""

    def __init__(self, network):
        self.network, self.images = network, 0

    def __call__(self, images: Tensor, *rest: Tensor) -> Tensor:
        self.images += len(images)
        return self.network(images, *rest)


@pytest.mark.parametrize("name", ["Zip", "Bdmae", "Sancdifi"])
def test_nominal_calls_are_the_calls(name, wide):
    network, model = Counted(UnitPrior()), Counted(Sums().eval())
    defense = build(name, Denoiser(network, LINEAR))
    if name != "Zip":
        del defense._modules["model"]
        defense.model = model
    defense(pixels(2, 3, 9, 12))
    assert network.images == 2 * defense.denoiser_calls
    assert model.images == 2 * defense.classifier_calls


def test_nominal_calls_of_the_defaults(unit):
    table = [Noising(), ShrinkPad(), Blur(), Zip(unit), Bdmae(Sums().eval(), fill), Sancdifi(Sums().eval(), unit)]
    calls = {d.title.split()[0]: (d.access, d.denoiser_calls, d.classifier_calls) for d in table}
    assert calls == {
        "Noising": ("none", 0, 0),
        "ShrinkPad": ("none", 0, 0),
        "Blur": ("none", 0, 0),
        "ZIP": ("none", 20, 0),
        "BDMAE": ("hard labels", 0, 46),
        "Sancdifi": ("class scores", 10, 2001),
    }
    assert Bdmae(Sums().eval(), unit).denoiser_calls == 50 * DiffusionInpainter(unit).denoiser_calls == 50


def test_repr_is_short_and_names_the_settings(wide):
    assert repr(Noising(sigma=0.2, seed=1)) == "Noising(seed=1, batch_size=64, sigma=0.2)"
    for name in NAMES:
        assert len(repr(build(name, wide))) < 300


@pytest.mark.parametrize("name", NAMES)
def test_bad_images_are_refused(name, wide):
    defense = build(name, wide)
    with pytest.raises(TypeError, match=r"images must be a floating-point tensor, got torch.uint8.*ToDtype"):
        defense(torch.zeros(3, 9, 12, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must have the shape \(..., c, h, w\), got \(9, 12\)"):
        defense(torch.zeros(9, 12))
    for value in (-0.1, 1.5, float("nan"), float("inf")):
        images = pixels(2, 3, 9, 12)
        images[1, 0, 2, 3] = value
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got values from .* before Normalize"):
            defense(images)


@pytest.mark.parametrize("name", ["Zip", "Bdmae", "Sancdifi"])
def test_images_that_do_not_fit_the_denoiser_are_refused(name, wide):
    with pytest.raises(ValueError, match=r"images must have the denoiser's 3 channels, got 1.*expand"):
        build(name, wide)(pixels(1, 9, 12))


@pytest.mark.parametrize("name", ["Bdmae", "Sancdifi"])
def test_a_model_in_training_mode_is_refused(name, wide):
    defense = build(name, wide)
    defense.model.train()
    with pytest.raises(ValueError, match=r"model must be in eval mode, got training mode. Call model.eval\(\)"):
        defense(pixels(3, 9, 12))


BAD = {
    "Noising": [
        ({"sigma": 0}, r"sigma must be a finite number above 0, got 0. Divide"),
        ({"sigma": math.nan}, "got nan"),
    ],
    "ShrinkPad": [({"pad": 0}, r"pad must be a whole number of 1 or more, got 0. 4 is"), ({"pad": 1.5}, "got 1.5")],
    "Blur": [
        ({"kernel": 4}, r"kernel must be odd, got 4. Take 3 or 5"),
        ({"kernel": 1}, r"kernel must be a whole number of 3 or more, got 1"),
        ({"sigma": -1}, r"sigma must be a finite number above 0, got -1. 1 is usual"),
    ],
    "Zip": [
        (
            {"degradations": ("gray",)},
            r"degradations must be one of \('grey', 'pool'\), got 'gray'. Did you mean 'grey'",
        ),
        ({"degradations": "pool"}, r"degradations must be a tuple .* got 'pool'. Use \('pool',\)"),
        ({"degradations": ()}, r"degradations must be a tuple"),
        ({"scale": 1}, r"scale must be a whole number of 2 or more, got 1. The authors"),
        ({"lam": 0}, r"lam must be a finite number above 0, got 0"),
        ({"start": 1000}, r"ZIP from timestep 1000 needs a denoiser that knows noise levels up to 1001, got 'custom'"),
        ({"start": -1}, r"start must be a whole number of 0 or more, got -1"),
        ({"step": 0}, r"step must be a whole number of 1 or more, got 0"),
        ({"seed": 0.5}, r"seed must be a whole number or None, got 0.5"),
        ({"batch_size": 0}, r"batch_size must be a whole number of 1 or more, got 0"),
    ],
    "Bdmae": [
        ({"grid": 1}, r"grid must be a whole number of 2 or more, got 1"),
        ({"outer": 0}, r"outer must be"),
        ({"inner": 0}, r"inner must be"),
        ({"rounds": -1}, r"rounds must be a whole number of 0 or more, got -1"),
        ({"mask_ratio": 1.5}, r"mask_ratio must be in \(0, 1\], got 1.5"),
        ({"mask_ratio": 0.001}, r"mask_ratio must hide a token at least, got 0.001 of 196. Raise it"),
        ({"rate": 0}, r"rate must be"),
        ({"bonus": -1}, r"bonus must be 0 or more, got -1"),
        ({"alpha": 2}, r"alpha must be in \[0, 1\], got 2"),
        ({"thresholds": (0.4, 0.6)}, r"thresholds must fall, with the last in \(0, 1\), got \(0.4, 0.6\). Sort them"),
        ({"thresholds": ()}, r"thresholds must fall"),
        ({"max_masked": 0}, r"max_masked must be in \(0, 1\], got 0"),
    ],
    "Sancdifi": [
        ({"masks": 0}, r"masks must be a whole number of 1 or more, got 0"),
        ({"p": 1}, r"p must be in \(0, 1\), got 1"),
        ({"grid": 0}, r"grid must be"),
        ({"threshold": 1.1}, r"threshold must be in \(0, 1\], got 1.1"),
        ({"rule": "maximun"}, r"rule must be one of .* Did you mean 'maximum'"),
        ({"grey": -1}, r"grey must be in \[0, 1\], got -1"),
        ({"level": 0}, r"level must be a whole number of 1 or more, got 0"),
        ({"level": 2000}, r"Sancdifi from level 2000 needs a denoiser that knows noise levels up to 2000"),
        ({"stride": 0}, r"stride must be"),
    ],
    "DiffusionInpainter": [
        ({"level": -1}, r"level must be a whole number of 0 or more, got -1"),
        ({"stride": 0}, r"stride must be"),
        ({"batch_size": 0}, r"batch_size must be"),
        ({"level": 2000}, r"inpainting from level 2000 needs a denoiser that knows noise levels up to 2000"),
    ],
}


@pytest.mark.parametrize(("name", "options", "message"), [(n, o, m) for n, cases in BAD.items() for o, m in cases])
def test_bad_settings_are_refused(name, options, message, unit):
    makers = {
        "Noising": Noising,
        "ShrinkPad": ShrinkPad,
        "Blur": Blur,
        "Zip": lambda **kw: Zip(unit, **kw),
        "Bdmae": lambda **kw: Bdmae(Sums().eval(), fill, **kw),
        "Sancdifi": lambda **kw: Sancdifi(Sums().eval(), unit, **kw),
        "DiffusionInpainter": lambda **kw: DiffusionInpainter(unit, **kw),
    }
    with pytest.raises(ValueError, match=message):
        makers[name](**options)


def test_denoisers_of_low_levels_are_refused_where_more_is_needed(forbidden):
    remedy = r"got 'custom', which knows up to 160. Lower it, or train one with 'sampdetox train --max-level 1000'"
    for maker in (Zip, lambda d: Sancdifi(Sums().eval(), d), lambda d: DiffusionInpainter(d, level=161)):
        with pytest.raises(ValueError, match=remedy):
            maker(forbidden)
    Sancdifi(Sums().eval(), forbidden, level=160)
    Bdmae(Sums().eval(), forbidden)


def test_what_is_no_network_is_refused(unit):
    with pytest.raises(TypeError, match=r"denoiser must be a Denoiser, got str. Load one with load_denoiser"):
        Zip("bundled")
    for maker in (lambda: Bdmae(3, fill), lambda: Sancdifi(3, unit)):
        with pytest.raises(TypeError, match=r"model must be callable on a batch of images, got int"):
            maker()
    with pytest.raises(TypeError, match=r"inpainter must be callable on \(images, mask\), got int"):
        Bdmae(Sums().eval(), 3)


@CUDA
@pytest.mark.parametrize("name", NAMES)
def test_cuda_gives_what_the_processor_gives(name, wide):
    defense = build(name, wide)
    images = pixels(2, 3, 9, 12)
    expected = defense(images)
    if name in ("Zip", "Bdmae", "Sancdifi"):
        with pytest.raises(ValueError, match=r"images must be on the device of .*, cpu, got cuda:0"):
            defense(images.cuda())
    result = defense.cuda()(images.cuda())
    wide.cpu()
    assert result.device.type == "cuda"
    torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=1e-3)


# Noising, Blur, ShrinkPad


def test_noising_adds_noise_of_its_sigma_and_clips():
    images = torch.full((4, 3, 50, 50), 0.5)
    added = Noising(sigma=0.05, seed=0)(images) - images
    assert abs(float(added.std()) - 0.05) < 0.002 and abs(float(added.mean())) < 0.003
    noisy = Noising(sigma=10, seed=0)(images)
    assert noisy.min() == 0 and noisy.max() == 1
    expected = pixels(1, 3, 6, 7) + 0.1 * SeededNoise(pixels(1, 3, 6, 7) * 2 - 1, 8)(torch.zeros(1, 3, 6, 7))
    assert_close(Noising(seed=8)(pixels(1, 3, 6, 7)), expected.clamp(0, 1))


@quick
@given(
    kernel=st.sampled_from([3, 5, 7]),
    sigma=st.floats(0.3, 3),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
)
def test_blur_is_scipys_correlation(kernel, sigma, height, width):
    images = pixels(1, 3, height, width, dtype=torch.float64)
    x = np.arange(kernel) - kernel // 2
    weights = np.exp(-(x**2) / (2 * sigma**2))
    weights /= weights.sum()
    expected = images.numpy()
    for axis in (-2, -1):
        expected = ndimage.correlate1d(expected, weights, axis=axis, mode="reflect")  # scipy's word for symmetric
    np.testing.assert_allclose(Blur(kernel=kernel, sigma=sigma)(images), expected, rtol=0, atol=1e-6)


def test_shrink_pad_pastes_the_resized_image_at_any_place_equally_often():
    image = pixels(3, 12, 10)
    small = nn.functional.interpolate(image[None], size=(10, 8), mode="bilinear", antialias=True)[0]
    counts = torch.zeros(3, 3)
    for seed in range(180):
        result = ShrinkPad(pad=2, seed=seed)(image)
        top, left = next(
            (i, j) for i in range(3) for j in range(3) if torch.equal(result[:, i : i + 10, j : j + 8], small)
        )
        counts[top, left] += 1
        assert torch.count_nonzero(result) == torch.count_nonzero(small)
    assert counts.min() >= 7 and counts.max() <= 38  # 20 +- 4.2 each


def test_shrink_pad_places_each_image_of_a_batch_by_itself():
    images = pixels(40, 1, 9, 9)
    results = ShrinkPad(pad=4, seed=0)(images)
    places = {tuple((result[0] > 0).nonzero()[0].tolist()) for result in results}
    assert len(places) > 15


def test_shrink_pad_refuses_images_without_a_pixel_left():
    with pytest.raises(ValueError, match=r"images must be larger than pad = 4, got 4x9. Lower pad"):
        ShrinkPad()(pixels(3, 4, 9))


# ZIP


def zip_reference(image, denoiser, draws, *, degradations, scale, lam, start, step):
    """FACTS' formulas, one image (c, h, w) in [-1, 1], in float64, block by block; ``draws`` yields normal noise."""
    ab = np.cumprod(1 - linear_betas())
    channels, height, width = image.shape

    def keep(x, name):
        result = np.empty_like(x)
        if name == "grey":
            for i in range(height):
                for j in range(width):
                    result[:, i, j] = x[:, i, j].sum() / channels
        else:
            for i in range(0, height, scale):
                for j in range(0, width, scale):
                    for c in range(channels):
                        block = x[c, i : i + scale, j : j + scale]
                        result[c, i : i + scale, j : j + scale] = block.sum() / block.size
        return result

    times = [*range(start, -1, -step), -1]
    x = next(draws)
    for t, t_next in pairwise(times):
        a, a_next = ab[t], ab[t_next] if t_next >= 0 else 1.0
        e = denoiser(torch.tensor(x)[None].float(), torch.tensor([float(t)]))[0].double().numpy()
        hats = [
            math.sqrt(a) * keep(image, name) + x - keep(x, name) + math.sqrt(1 - a) * keep(e, name)
            for name in degradations
        ]
        h = sum(hats) / len(hats)
        h = (1 - a**lam) * h + a**lam * x
        x0 = (h - math.sqrt(1 - a) * e) / math.sqrt(a)
        sigma = math.sqrt((1 - a_next) / (1 - a)) * math.sqrt(1 - a / a_next)
        z = next(draws) if t_next >= 0 else 0.0
        x = math.sqrt(a_next) * x0 + math.sqrt(max(1 - a_next - sigma**2, 0)) * e + sigma * z
    return x


@pytest.mark.parametrize(
    ("degradations", "scale", "lam", "step"),
    [
        (("grey", "pool"), 2, 2.0, 50),
        (("pool",), 4, 10.0, 50),
        (("grey",), 2, 0.98, 190),
        (("pool", "grey"), 3, 2.0, 300),
    ],
)
def test_zip_equals_the_formulas_image_by_image(degradations, scale, lam, step, unit):
    images = pixels(2, 3, 9, 7)
    options = {"degradations": degradations, "scale": scale, "lam": lam, "step": step}
    result = Zip(unit, seed=2, **options)(images)
    for i in range(2):
        x0 = images[i : i + 1] * 2 - 1
        noise = SeededNoise(x0, 2)
        draws = (noise(x0)[0].double().numpy() for _ in range(100))
        expected = zip_reference(x0[0].double().numpy(), unit, draws, start=950, **options)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(result[i], ((expected + 1) / 2).clip(0, 1), rtol=0, atol=2e-4)


def test_zip_gives_the_only_image_that_the_denoiser_knows():
    known = pixels(3, 8, 8)
    result = Zip(knowing(known), seed=0)(pixels(2, 3, 8, 8, seed=1))
    torch.testing.assert_close(result, known.expand(2, -1, -1, -1), rtol=0, atol=1e-3)


def test_zip_keeps_what_the_degradation_keeps_while_it_guides():
    images = pixels(2, 3, 8, 6)
    grey = knowing(torch.full((3, 8, 6), 0.5))  # restores no detail
    result = Zip(grey, degradations=("pool",), lam=1e12, seed=0)(images)
    expected = images.unflatten(2, (4, 2)).unflatten(4, (3, 2)).mean((3, 5)).repeat_interleave(2, 2)
    torch.testing.assert_close(result, expected.repeat_interleave(2, 3), rtol=0, atol=1e-5)
    result = Zip(grey, degradations=("grey",), lam=1e12, seed=0)(images)
    torch.testing.assert_close(result, images.mean(1, keepdim=True).expand_as(images), rtol=0, atol=1e-5)


@quick
@given(height=st.integers(1, 9), width=st.integers(1, 9), scale=st.integers(2, 5))
def test_what_a_degradation_keeps_is_an_orthogonal_projection(height, width, scale):
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    for kept in (mean_block(x, scale=scale), mean_colour(x)):
        again = mean_block(kept, scale=scale) if kept.shape[1] and kept is not mean_colour else kept
        assert abs(float((kept * (x - kept)).sum())) < 1e-9
        assert again.shape == x.shape
    block = mean_block(x, scale=scale)
    torch.testing.assert_close(mean_block(block, scale=scale), block)
    torch.testing.assert_close(mean_colour(mean_colour(x)), mean_colour(x))
    torch.testing.assert_close(
        block[0, 0, -1, -1], x[0, 0, (height - 1) // scale * scale :, (width - 1) // scale * scale :].mean()
    )


def test_zip_refuses_to_keep_all_of_a_grey_image(tmp_path):
    denoiser = Denoiser(UnitPrior(), LINEAR, channels=1)
    with pytest.raises(
        ValueError, match=r"grey images need other degradations than 'grey'.*Use degradations=\('pool',\)"
    ):
        Zip(denoiser)(pixels(1, 8, 8))
    assert Zip(denoiser, degradations=("pool",))(pixels(1, 8, 8)).shape == (1, 8, 8)


# Inpainting


@quick
@given(seed=st.integers(0, 10**6), share=st.floats(0, 0.99), height=st.integers(1, 9), width=st.integers(1, 9))
def test_fill_ignores_what_is_hidden_and_keeps_what_is_known(seed, share, height, width):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, height, width, generator=generator)
    mask = torch.rand(2, 1, height, width, generator=generator) < share
    result = fill(images, mask)
    assert torch.equal(result, fill(torch.where(mask, torch.rand(images.shape), images), mask))
    assert torch.equal(result.masked_fill(mask, 0), images.masked_fill(mask, 0))
    for image, hidden, filled in zip(images, mask, result, strict=True):
        known = image[:, ~hidden[0]]
        if known.shape[1]:  # an average of known pixels
            low, high = known.amin(1)[:, None, None], known.amax(1)[:, None, None]
            assert ((filled >= low - 1e-6) & (filled <= high + 1e-6)).all()
        else:
            assert (filled == 0.5).all()


def test_fill_takes_the_smallest_window_with_a_known_pixel():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4], image[0, 0, 0, 0] = 0.25, 1
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    mask[0, 0, 4, 4], mask[0, 0, 0, 0] = False, False
    filled = fill(image, mask)[0, 0]
    torch.testing.assert_close(filled[3:6, 3:6], torch.full((3, 3), 0.25))  # radius 1 reaches the centre only
    torch.testing.assert_close(filled[1, 1], torch.tensor(1.0))
    assert 0.25 < filled[2, 2] < 1  # radius 2 reaches both
    torch.testing.assert_close(filled[2, 4], torch.tensor(0.25))  # radius 2 reaches the centre only, 4 both


def test_inpainter_restores_a_known_image_inside_the_mask_only():
    known, images = pixels(3, 9, 12), pixels(2, 3, 9, 12, seed=1)
    mask = torch.rand(2, 1, 9, 12) < 0.5
    result = DiffusionInpainter(knowing(known), seed=0)(images, mask)
    torch.testing.assert_close(result, torch.where(mask, known, images), rtol=0, atol=1e-5)
    assert torch.equal(result.masked_fill(mask, 0), images.masked_fill(mask, 0))


def test_repaint_puts_the_known_pixels_back_after_each_step(wide):
    x0, mask = pixels(2, 3, 9, 12, dtype=torch.float64) * 2 - 1, torch.rand(2, 1, 9, 12) < 0.5
    ab = [1.0, *np.cumprod(1 - linear_betas())]  # by level
    draw = SeededNoise(x0, 3)

    def noised(level: int) -> Tensor:
        return math.sqrt(ab[level]) * x0 + math.sqrt(1 - ab[level]) * draw(x0)

    x = noised(100)
    for level, next_level in ((100, 60), (60, 20), (20, 0)):
        eps = wide(x, torch.full((2,), level - 1))
        clean = (x - math.sqrt(1 - ab[level]) * eps) / math.sqrt(ab[level])
        moved = math.sqrt(ab[next_level]) * clean + math.sqrt(1 - ab[next_level]) * eps
        x = torch.where(mask, moved, noised(next_level) if next_level else x0)
    result = repaint(x0, mask, wide, LINEAR, [100.0, 60.0, 20.0, 0.0], SeededNoise(x0, 3))
    torch.testing.assert_close(result, x.clamp(-1, 1), rtol=0, atol=1e-4)


def test_inpainter_does_not_look_at_what_the_mask_hides(wide):
    images, mask = pixels(2, 3, 9, 12), torch.rand(2, 1, 9, 12) < 0.5
    other = torch.where(mask, pixels(2, 3, 9, 12, seed=1), images)
    inpainter = DiffusionInpainter(wide, seed=0)
    assert torch.equal(inpainter(images, mask).where(mask, 0), inpainter(other, mask).where(mask, 0))
    assert_close(inpainter(images[1:], mask[1:]), inpainter(images, mask)[1:])


def test_inpainter_of_level_0_calls_no_network(forbidden):
    images, mask = pixels(2, 3, 9, 12), torch.rand(2, 1, 9, 12) < 0.5
    inpainter = DiffusionInpainter(forbidden, level=0)
    assert inpainter.denoiser_calls == 0
    assert torch.equal(inpainter(images, mask), fill(images, mask))


def test_inpainter_refuses_other_masks(unit):
    inpainter = DiffusionInpainter(unit)
    with pytest.raises(TypeError, match=r"mask must be a boolean tensor, .* got torch.float32. Use mask.bool\(\)"):
        inpainter(pixels(2, 3, 9, 12), torch.zeros(2, 1, 9, 12))
    with pytest.raises(ValueError, match=r"mask must have the shape \(b, 1, h, w\) .* got \(2, 1, 9, 9\)"):
        inpainter(pixels(2, 3, 9, 12), torch.zeros(2, 1, 9, 9, dtype=torch.bool))


# BDMAE


def patch_model(images: Tensor) -> Tensor:
    """Class 1 where at least half of the patch (rows 18 to 23, columns 6 to 11) is white, else class 0."""
    white = (images[..., 18:24, 6:12] > 0.95).float().mean((1, 2, 3))
    return torch.stack([0.5 - white, white - 0.5], dim=1)


def triggered(images: Tensor) -> Tensor:
    images = images.clone()
    images[..., 18:24, 6:12] = 1
    return images


def test_bdmae_restores_the_patch_and_nothing_else():
    clean = pixels(4, 3, 32, 32) * 0.8
    pairs = list(zip(triggered(clean), clean, strict=True))

    def oracle(images: Tensor, mask: Tensor) -> Tensor:
        """A perfect inpainter: it knows the clean image of every image."""
        return torch.stack([next(c for p, c in pairs if torch.equal(p, image)) for image in images])

    result = Bdmae(patch_model, oracle, seed=0)(triggered(clean))
    assert (patch_model(result).argmax(1) == 0).all()
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[18:24, 6:12] = True
    assert_close(result[..., ~inside], clean[..., ~inside])  # a perfect inpainter gives the clean pixels
    restored = ((result - clean).abs() < 1e-5)[..., inside].float().mean()
    assert restored > 0.5


def test_bdmae_leaves_clean_images_to_a_perfect_inpainter():
    clean = pixels(3, 3, 32, 32) * 0.8
    assert_close(Bdmae(patch_model, lambda images, mask: images, seed=0)(clean), clean)


def bdmae_reference(image, model, inpainter, masks, draws, d: Bdmae):
    """The algorithm for one image, token by token, on numpy; ``draws`` holds the numbers of each round."""
    size, height, width = d.grid, *image.shape[1:]
    cell = [[(i * size // height, j * size // width) for j in range(width)] for i in range(height)]

    def pixels_of(mask):
        return np.array([[mask[r * size + c] for r, c in row] for row in cell])

    def restore(mask):
        where = torch.tensor(pixels_of(mask))[None, None]
        return torch.where(where, inpainter(image[None], where), image[None])

    label = int(model(image[None]).argmax())
    label_score, image_score = np.zeros(size**2), np.zeros(size**2)
    total, count = np.zeros(tuple(image.shape)), np.zeros((height, width))
    for group in masks:
        for mask in group.numpy():
            restored = restore(mask)
            label_score += mask * (int(model(restored).argmax()) != label)
            total += pixels_of(mask) * restored[0].numpy()
            count += pixels_of(mask)
        average = np.where(count > 0, total / np.maximum(count, 1), image.numpy())
        similarity = gaussian_ssim(image.numpy().astype(float), average)
        for r in range(size):
            for c in range(size):
                image_score[r * size + c] += 1 - similarity[r * height // size, c * width // size]
    label_score, image_score = label_score / masks.shape[0] / masks.shape[1], image_score / masks.shape[0]
    scores = []
    for k, score in enumerate((image_score, label_score)):
        high = int((score >= 0.2).sum()) if k == 0 else math.floor(score.sum() + 1e-6)
        for round_draws in draws:
            if high == 0:
                break
            top = sorted(range(size**2), key=lambda n: -score[n])[:high]
            half = []
            for step in range(max(high // 2, 1)):
                value = {}
                for n in set(top) - set(half):
                    near = any(abs(n // size - m // size) + abs(n % size - m % size) == 1 for m in half)
                    value[n] = round_draws[k][step][n] * (score[n] + d.bonus * near)
                half.append(max(value, key=value.get))
            mask = np.isin(np.arange(size**2), half)
            rate = d.rate if int(model(restore(mask)).argmax()) == label else -d.rate
            for n in top:
                score[n] += -rate if n in half else rate
        scores.append(score)
    score = d.alpha * scores[0] + (1 - d.alpha) * scores[1]
    gaps = [1 - threshold for threshold in d.thresholds]
    for _ in range(200):
        if (score >= 1 - max(gaps)).mean() < d.max_masked:
            break
        gaps = [gap * 0.99 for gap in gaps]
    total, count = np.zeros(tuple(image.shape)), np.zeros((height, width))
    for gap in gaps:
        mask = score >= 1 - gap
        total += pixels_of(mask) * restore(mask)[0].numpy()
        count += pixels_of(mask)
    return np.where(count > 0, total / np.maximum(count, 1), image.numpy())


def gaussian_ssim(x, y):
    """scikit-image's map, averaged over the channels."""
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    return np.mean([structural_similarity(a, b, **options)[1] for a, b in zip(x, y, strict=True)], axis=0)


@pytest.mark.parametrize("thresholds", [(0.6, 0.55, 0.5, 0.45, 0.4), (0.3, 0.2, 0.1)])
def test_bdmae_equals_a_loop_over_tokens(thresholds):
    ramp = torch.linspace(0.1, 0.8, 32).expand(3, 32, 32)
    half = torch.where(torch.arange(32) < 16, ramp, pixels(3, 32, 32, seed=4))
    images = torch.stack(
        [ramp, triggered(ramp), half, triggered(half)]
    )  # scores of their own, with and without trigger
    defense = Bdmae(patch_model, fill, grid=6, outer=3, inner=3, rounds=5, thresholds=thresholds, seed=1)
    masks = random_masks(3, 3, 36, 0.75, torch.Generator().manual_seed(1))
    result = defense(images)
    assert not torch.equal(result[3], images[3])
    for i, image in enumerate(images):
        [generator] = SeededNoise(image[None] * 2 - 1, 1).generators
        draws = [torch.rand(2, 18, 36, generator=generator).numpy() for _ in range(5)]
        expected = bdmae_reference(image, patch_model, fill, masks, draws, defense)
        np.testing.assert_allclose(result[i], expected, rtol=0, atol=1e-5)


def test_random_masks_are_slices_of_orders():
    masks = random_masks(5, 5, 196, 0.75, torch.Generator().manual_seed(0))
    assert masks.shape == (5, 5, 196)
    assert (masks[:, 0].sum(-1) == 147).all() and (masks.sum(-1) <= 147).all()
    hidden = masks.sum(1)
    assert hidden.min() >= 2 and hidden.max() <= 4  # 735 places of 980, in five orders of all tokens
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize(("height", "width", "grid"), [(32, 32, 14), (224, 224, 14), (9, 12, 4), (32, 20, 5)])
def test_token_mask_is_nearest_resizing(height, width, grid):
    masks = torch.rand(3, grid**2) < 0.5
    images = torch.zeros(3, 3, height, width)
    result = token_mask(masks, grid, images)
    expected = nn.functional.interpolate(masks.view(3, 1, grid, grid).float(), size=(height, width), mode="nearest")
    assert torch.equal(result, expected.bool())


@quick
@given(seed=st.integers(0, 10**6), size=st.integers(0, 12), bonus=st.sampled_from([0.0, 0.5, 1e6]))
def test_a_grown_mask_is_of_its_size_allowed_and_connected(seed, size, bonus):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(4, 25, generator=generator)
    count = torch.tensor([25, 25, 12, size])
    allowed = top_tokens(scores, count)
    assert allowed.sum(1).tolist() == count.tolist()
    assert scores[2][allowed[2]].min() >= scores[2][~allowed[2]].max()
    sizes = torch.tensor([size, 0, min(size, 6), size])
    draws = torch.rand(4, 12, 25, generator=generator).clamp(min=1e-3)
    half = grow(scores, allowed, sizes, draws, bonus)
    assert half.sum(1).tolist() == sizes.tolist()
    assert not (half & ~allowed).any()
    if bonus == 1e6:  # neighbours before all others: one piece, where everything is allowed
        assert ndimage.label(half[0].view(5, 5).numpy())[1] == min(size, 1)


@quick
@given(seed=st.integers(0, 10**6), offset=st.floats(-1, 1))
def test_thresholds_are_raised_as_in_a_loop(seed, offset):
    scores = torch.rand(3, 30, generator=torch.Generator().manual_seed(seed)) + torch.tensor([[0.0], [offset], [5.0]])
    result = raised_thresholds(scores, (0.6, 0.4), 0.25)
    for row, levels in zip(scores, result, strict=True):
        gaps = np.array([0.4, 0.6])
        for _ in range(200):
            if float((row >= 1 - gaps[1]).float().mean()) < 0.25:
                break
            gaps = gaps * 0.99
        np.testing.assert_allclose(levels, 1 - gaps, rtol=0, atol=1e-5)


def test_bdmae_refuses_images_below_the_grid_and_results_of_another_size():
    with pytest.raises(ValueError, match=r"images must have 14 pixels a side at least, .* got \(9, 12\). Lower grid"):
        Bdmae(Sums().eval(), fill)(pixels(3, 9, 12))
    with pytest.raises(ValueError, match=r"inpainter must return images of the shape .* got .*6, 6\). Resize"):
        Bdmae(Sums().eval(), lambda x, m: x[..., :6, :6], grid=4)(pixels(3, 9, 12))


# Sancdifi


def corner_model(images: Tensor) -> Tensor:
    """Class 1 the surer, the brighter the corner (rows 0 to 3, columns 8 to 11) is."""
    bright = images[..., :4, 8:].mean((1, 2, 3))
    return torch.stack([torch.zeros_like(bright), 8 * bright - 6], dim=1)


def test_rise_masks_are_enlarged_cells_cropped():
    cells = (torch.rand(5, 3, 3) < 0.5).float()
    shifts = torch.tensor([[0.0, 0.0], [0.99, 0.99], [0.4, 0.8], [0.5, 0.0], [0.0, 0.7]])
    masks = rise_masks(cells, shifts, 10, 7)
    assert masks.shape == (5, 1, 10, 7) and masks.min() >= 0 and masks.max() <= 1
    for cell, shift, mask in zip(cells, shifts, masks, strict=True):
        large = resize(cell.double().numpy(), (4 * 4, 4 * 3), order=1, mode="edge", anti_aliasing=False)
        top, left = int(shift[0] * 4), int(shift[1] * 3)
        np.testing.assert_allclose(mask[0], large[top : top + 10, left : left + 7], rtol=0, atol=1e-6)


def test_saliency_is_the_sum_of_scores_times_masks():
    images = pixels(2, 3, 8, 12)
    images[0, :, :4, 8:] = 1
    defense = Sancdifi(corner_model, knowing(images[0]), masks=30, p=0.4, grid=3, grey=0.2, seed=6, batch_size=7)
    saliency = defense.saliency(images)
    generator = torch.Generator().manual_seed(6)
    cells = (torch.rand(30, 3, 3, generator=generator) < 0.4).float()
    masks = rise_masks(cells, torch.rand(30, 2, generator=generator), 8, 12)
    for image, found in zip(images, saliency, strict=True):
        label = int(corner_model(image[None]).argmax())
        expected = torch.zeros(8, 12)
        for mask in masks:
            masked = image * mask + 0.2 * (1 - mask)
            expected += corner_model(masked[None]).softmax(1)[0, label] * mask[0]
        torch.testing.assert_close(found, expected / (30 * 0.4), rtol=1e-5, atol=1e-5)


def test_sancdifi_restores_the_corner_and_keeps_the_rest():
    clean = pixels(3, 8, 12) * 0.3
    images = clean.clone()
    images[:, :4, 8:] = 1
    defense = Sancdifi(corner_model, knowing(clean), masks=400, threshold=0.9, grid=3, seed=0)
    mask = defense.salient(images[None])[0, 0]
    assert mask.sum() == 10  # the highest tenth of 96 pixels
    assert mask[:4, 8:].sum() == mask.sum()
    result = defense(images)
    torch.testing.assert_close(result, torch.where(mask, clean, images), rtol=0, atol=1e-5)
    assert torch.equal(result[:, ~mask], images[:, ~mask])


def test_sancdifi_and_the_inpainter_are_repaint_on_minus_one_to_one(wide):
    images = pixels(2, 3, 8, 12)
    defense = Sancdifi(corner_model, wide, masks=30, threshold=0.5, level=300, stride=150, seed=4)
    mask = defense.salient(images)
    noise = SeededNoise(images * 2 - 1, 4)
    expected = repaint(images * 2 - 1, mask, wide, LINEAR, [300.0, 150.0, 0.0], noise)
    torch.testing.assert_close(defense(images), (expected + 1) / 2, rtol=0, atol=1e-5)
    noise = SeededNoise(images.masked_fill(mask, 0) * 2 - 1, 4)
    expected = repaint(fill(images, mask) * 2 - 1, mask, wide, LINEAR, [300.0, 150.0, 0.0], noise)
    inpainter = DiffusionInpainter(wide, level=300, stride=150, seed=4)
    torch.testing.assert_close(inpainter(images, mask), (expected + 1) / 2, rtol=0, atol=1e-5)


def test_sancdifi_by_share_of_the_maximum(unit):
    image = pixels(1, 3, 8, 12)
    defense = Sancdifi(corner_model, unit, masks=50, threshold=0.7, rule="maximum", seed=0)
    saliency = defense.saliency(image)[0]
    assert torch.equal(defense.salient(image)[0, 0], saliency >= 0.7 * saliency.max())
    highest = Sancdifi(corner_model, unit, masks=50, threshold=1, rule="maximum", seed=0)
    assert torch.equal(highest.salient(image)[0, 0], saliency == saliency.max())
    lower = Sancdifi(corner_model, unit, masks=50, threshold=0.5, rule="maximum", seed=0)
    assert lower.salient(image).sum() > defense.salient(image).sum()


def test_defense_is_the_base_of_all(wide):
    for name in NAMES:
        assert isinstance(build(name, wide), Defense)
