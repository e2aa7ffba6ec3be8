"""The public classes: the contract on every input kind, seeds, workers, refusals, explanations, and the wrapper."""

import copy
import multiprocessing
import pickle
import re
import weakref
from dataclasses import replace
from itertools import combinations

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import Forbidden, UnitPrior
from contract import (
    HEIGHT,
    IMAGES,
    WIDTH,
    assert_close,
    assert_same_kind,
    check_transform,
    is_close,
    picture,
    pixels,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from sampdetox_transforms import PRESETS, Denoiser, DetoxWrapper, SampDetox, Schedule, load_denoiser, purify
from sampdetox_transforms.method.noise import SeededNoise
from sampdetox_transforms.networks import precision
from sampdetox_transforms.transforms import transform as transforms_module
from sampdetox_transforms.transforms.presets import DEFAULT

LINEAR = Schedule.named("linear")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def detox(tiny) -> SampDetox:
    """Seeded, with tiny weights and three network calls."""
    return SampDetox(tiny, t2=40, seed=0)


@pytest.fixture
def grey_detox(tiny_grey) -> SampDetox:
    return SampDetox(tiny_grey, t2=40, seed=0)


def normalise(x: Tensor, mean=MEAN, std=STD) -> Tensor:
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


# The contract


@pytest.mark.parametrize("kind", IMAGES)
def test_contract(detox, kind):
    check_transform(detox, IMAGES[kind]())


@pytest.mark.parametrize("kind", ["pil-L", "pil-RGB", "float32", "batch", "batch-of-grey", "two-leading-dimensions"])
def test_contract_of_a_grey_network(grey_detox, kind):
    check_transform(grey_detox, IMAGES[kind]())


def test_contract_behind_normalize(tiny):
    transform = SampDetox(tiny, t2=40, seed=0, mean=MEAN, std=STD)
    bounds = normalise(torch.tensor([0.0, 1.0]).expand(3, 1, 2))
    check_transform(transform, normalise(pixels(3, HEIGHT, WIDTH)), value_range=(bounds.min(), bounds.max()))


def test_contract_of_ddpm_with_ssim(tiny):
    check_transform(SampDetox(tiny, t1=3, t2=5, sampler="ddpm", stride=1, map="ssim", seed=0), pixels(3, HEIGHT, WIDTH))


def test_contract_of_the_authors_code(tiny):
    preset = replace(PRESETS["authors-code"], t1=3, t2=5)
    check_transform(SampDetox(tiny, preset=preset, seed=0), pixels(3, HEIGHT, WIDTH), batch_invariant=False)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 7), (33, 20)])
def test_any_size(detox, size):
    for image in (pixels(3, *size), pixels(1, *size), pixels(2, 3, *size, dtype=torch.uint8)):
        assert_same_kind(detox(image), image)
    image = functional.to_pil_image(pixels(3, *size, dtype=torch.uint8))
    assert_same_kind(detox(image), image)


def test_result_is_that_of_purify_on_minus_one_to_one(fast_denoiser):
    images = pixels(2, 3, 6, 5)
    x0 = images * 2 - 1
    expected = purify(x0, fast_denoiser, LINEAR, t1=30, t2=90, stride=15, noise=SeededNoise(x0, 4))
    result = SampDetox(fast_denoiser, preset="ddim", t1=30, t2=90, stride=15, seed=4).explain(images)
    torch.testing.assert_close(result.image, (expected.image + 1) / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.stage1, (expected.stage1 + 1) / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.timestep_map, expected.timestep_map)


def test_byte_image_gives_what_the_float_image_gives_rounded(detox):
    image = pixels(3, HEIGHT, WIDTH, dtype=torch.uint8)
    as_float = detox(image / 255)
    assert torch.equal(detox(image), (as_float * 255).round().to(torch.uint8))
    assert_close(functional.pil_to_tensor(detox(functional.to_pil_image(image))), detox(image), exact=True)


def test_grey_image_is_the_mean_of_three_equal_channels(detox):
    grey = pixels(1, HEIGHT, WIDTH)
    assert_close(detox(grey), detox(grey.expand(3, -1, -1)).mean(0, keepdim=True))


def test_grey_network_takes_the_colours_one_by_one(grey_detox):
    image = pixels(2, 3, HEIGHT, WIDTH)
    assert_close(grey_detox(image), torch.cat([grey_detox(image[:, c : c + 1]) for c in range(3)], dim=1))


@pytest.mark.parametrize("kind", IMAGES)
def test_levels_of_zero_are_the_identity_and_call_no_network(forbidden, kind):
    image = IMAGES[kind]()
    result = SampDetox(forbidden, preset="ddim", t1=0, t2=0)(image)
    exact = isinstance(image, PIL.Image.Image) or image.dtype == torch.uint8
    assert_same_kind(result, image)
    assert_close(result, image, exact=exact)
    if not exact:
        torch.testing.assert_close(result, image, rtol=1e-3 if image.element_size() == 2 else 0, atol=2e-7)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (0, 1, 8, 8), (2, 0, 3, 8, 8), (0, 2, 1, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("channels", [1, 3])
def test_empty_batch_returns_empty(shape, dtype, channels):
    empty = tv_tensors.Image(torch.zeros(shape, dtype=dtype))
    result = SampDetox(Denoiser(Forbidden(), LINEAR, channels=channels)).explain(empty)
    assert_same_kind(result.image, empty)
    lead = shape[:-3]
    assert result.timestep_map.shape == result.sigma_map.shape == result.ssim_map.shape == (*lead, 1, 8, 8)
    assert result.network_calls.shape == lead


def test_the_fastest_dtype_is_the_default_for_weights_and_another_device_chooses_anew(tiny, monkeypatch):
    fast = {"cpu"}
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: device.type in fast)
    detox = SampDetox(tiny)
    assert detox.denoiser.dtype == torch.bfloat16
    assert SampDetox(tiny, dtype=torch.float32).denoiser.dtype == torch.float32
    wrapper = DetoxWrapper(nn.Identity(), detox).to("meta")
    assert wrapper.detox.denoiser.dtype == torch.float32  # nothing is fast there
    fast.clear()
    assert SampDetox(tiny).denoiser.dtype == torch.float32


def test_what_is_handed_over_keeps_its_dtype(tiny, monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: True)
    denoiser, network = load_denoiser(tiny), nn.Conv2d(3, 3, 1)
    assert SampDetox(denoiser).denoiser.dtype == torch.float32
    pair = SampDetox((network, "linear"))
    assert pair.denoiser.dtype == network.weight.dtype == torch.float32
    assert SampDetox(tiny).to(torch.float64).denoiser.dtype == torch.float64  # asked for: no second choice


def test_both_networks_compute_in_the_same_dtype(monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: True)
    detox = SampDetox("bundled", preset="restore")
    assert {p.dtype for p in detox.parameters()} == {torch.bfloat16}
    image = pixels(2, 3, 32, 32)
    assert detox(image).dtype == torch.float32
    detox = SampDetox("bundled", preset="restore", dtype=torch.float32)
    assert {p.dtype for p in detox.parameters()} == {torch.float32}


def test_a_call_keeps_only_the_result_of_each_batch(tiny, monkeypatch):
    alive, purify = [], SampDetox._purify

    def watched(self, x0, pass_index):
        result = purify(self, x0, pass_index)
        alive.append(weakref.ref(result.stage1))
        return result

    monkeypatch.setattr(SampDetox, "_purify", watched)
    SampDetox(tiny, batch_size=2, t2=40)(pixels(6, 3, 8, 8))
    assert len(alive) == 3 and all(ref() is None for ref in alive)


def test_network_computes_in_the_dtype_that_is_asked_for(tiny):
    image = pixels(3, HEIGHT, WIDTH)
    exact = SampDetox(tiny, seed=0, t2=40)(image)
    rounded = SampDetox(tiny, seed=0, t2=40, dtype=torch.bfloat16)
    assert rounded.denoiser.dtype == torch.bfloat16
    assert rounded(image).dtype == torch.float32
    assert 0 < float((rounded(image) - exact).abs().mean()) < 0.05


def test_compose_takes_lists_of_images_and_pairs_of_them(detox):
    images = [tv_tensors.Image(pixels(3, HEIGHT, WIDTH, seed=seed)) for seed in (1, 2)]
    out = v2.Compose([v2.Identity(), detox])([*images, 5])
    for result, image in zip(out[:2], images, strict=True):
        assert_close(result, detox(image))
    picture_and_tensor = (torch.tensor([1.5]), picture(3), "text")
    label, image, text = detox(picture_and_tensor)
    assert (label, text) == (torch.tensor([1.5]), "text") and not is_close(image, picture(3))


# Seeds


def test_without_a_seed_noise_is_fresh_and_from_torch(tiny):
    detox, image = SampDetox(tiny, t2=40), pixels(3, HEIGHT, WIDTH)
    torch.manual_seed(1)
    first, second = detox(image), detox(image)
    assert not is_close(first, second)
    torch.manual_seed(1)
    assert torch.equal(detox(image), first), "the noise is not torch's own: forked workers may repeat it"
    assert not is_close(*detox(torch.stack([image, image])))


def test_seed_decides_the_result(tiny):
    image = pixels(3, HEIGHT, WIDTH)
    first = SampDetox(tiny, t2=40, seed=3)(image)
    assert torch.equal(SampDetox(tiny, t2=40, seed=3)(image), first)
    assert not is_close(SampDetox(tiny, t2=40, seed=4)(image), first)
    assert_same_kind(SampDetox(tiny, t2=40, seed=-(2**70))(image), image)


@pytest.mark.parametrize(
    "settings", [{}, {"eta": 1.0}, {"sampler": "ddpm"}, {"preset": "ddim", "map": "squared_error"}], ids=str
)
def test_result_depends_on_neither_batch_nor_order(tiny, settings):
    images = pixels(5, 3, HEIGHT, WIDTH)
    expected = torch.stack([SampDetox(tiny, t2=40, seed=0, **settings)(image) for image in images])
    order = torch.tensor([3, 1, 4, 0, 2])
    for batch_size in (None, 1, 2):
        detox = SampDetox(tiny, t2=40, seed=0, batch_size=batch_size, **settings)
        torch.testing.assert_close(detox(images), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(detox(images[order]), expected[order], rtol=0, atol=1e-4)
    for a, b in combinations(expected, 2):
        assert not is_close(a, b)


def test_images_of_a_batch_get_noise_of_their_own(fast_denoiser):
    images = torch.full((2, 3, 8, 8), 0.5)
    images[1, 0, 0, 0] += 0.1
    a, b = SampDetox(fast_denoiser, seed=0).explain(images).stage1
    assert float((a - b).abs().mean()) > 1e-2


def test_batch_size_bounds_what_the_network_sees(tiny_denoiser):
    seen = []
    tiny_denoiser.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    SampDetox(tiny_denoiser, batch_size=2)(pixels(5, 3, HEIGHT, WIDTH))
    assert set(seen) == {1, 2}
    SampDetox(tiny_denoiser)(pixels(65, 3, 2, 2))
    assert max(seen) == 64


def test_passes_draw_noise_of_their_own(detox):
    image = pixels(3, HEIGHT, WIDTH)
    first, second = detox.purify_pass(image, 0), detox.purify_pass(image, 1)
    assert torch.equal(first, detox(image)) and not is_close(first, second)
    assert torch.equal(detox.purify_pass(image, 1), second)


# Workers


class SameImage(Dataset):
    """One image, as often as is asked for, through a transform."""

    def __init__(self, transform, length: int):
        self.transform, self.length = transform, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(pixels(3, HEIGHT, WIDTH))


# A machine with one free processor suggests one worker.
TWO_WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
FORK = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")


@FORK
@TWO_WORKERS
def test_forked_workers_do_not_repeat_noise(tiny):
    loader = DataLoader(SameImage(SampDetox(tiny), 4), num_workers=2, batch_size=1, multiprocessing_context="fork")
    for a, b in combinations(torch.cat(list(loader)), 2):
        assert not is_close(a, b)


def test_spawned_worker_gives_the_same(detox):
    loader = DataLoader(SameImage(detox, 1), num_workers=1, batch_size=1, multiprocessing_context="spawn")
    assert_close(next(iter(loader))[0], detox(pixels(3, HEIGHT, WIDTH)))


@pytest.fixture
def pretend_cuda(monkeypatch):
    monkeypatch.setattr(Denoiser, "device", property(lambda self: torch.device("cuda")))


@FORK
@pytest.mark.parametrize("context", ["fork", None])
def test_cuda_in_a_forked_worker_is_refused(detox, pretend_cuda, context):
    """``None`` is how nearly everyone writes it: the loader forks because the system does so by default."""
    if context is None and multiprocessing.get_start_method() != "fork":
        pytest.skip("this system does not fork by default")

    def message(image):
        try:
            return f"no refusal, but {detox(image)}"
        except RuntimeError as error:
            return str(error)

    loader = DataLoader(SameImage(message, 1), num_workers=1, batch_size=1, multiprocessing_context=context)
    [[text]] = loader
    for part in ("forked DataLoader worker", "DetoxWrapper", "multiprocessing_context='spawn'", "device='cpu'"):
        assert part in text


def test_cuda_is_refused_in_forked_workers_only(detox, pretend_cuda, monkeypatch):
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "_start_method", "fork", raising=False)
    detox.check_inputs([pixels(3, 4, 4)])
    monkeypatch.setattr(transforms_module, "get_worker_info", lambda: object())
    with pytest.raises(RuntimeError, match="forked DataLoader worker"):
        detox.check_inputs([pixels(3, 4, 4)])
    monkeypatch.setattr(process, "_start_method", "spawn", raising=False)
    detox.check_inputs([pixels(3, 4, 4)])


@FORK
def test_cpu_in_a_forked_worker_is_fine(detox):
    loader = DataLoader(SameImage(detox, 1), num_workers=1, batch_size=1, multiprocessing_context="fork")
    assert_close(next(iter(loader))[0], detox(pixels(3, HEIGHT, WIDTH)))


# What it says of itself


def test_repr_is_one_line_without_the_network(detox):
    text = repr(detox)
    assert "\n" not in text and "Conv2d" not in text and len(text) < 300
    for part in (
        "SampDetox(",
        "weights=",
        "t1=12",
        "t2=40",
        "sampler='ddim'",
        "stride=60",
        "local_stage='restore'",
        "seed=0",
    ):
        assert part in text
    assert text in repr(v2.Compose([detox]))


@pytest.mark.parametrize("lead", [(), (2,), (2, 1)])
def test_explanation_of_a_tensor(tiny, lead):
    images = pixels(*lead, 3, HEIGHT, WIDTH)
    detox = SampDetox(tiny, preset="ddim", seed=0)
    told = detox.explain(images)
    assert torch.equal(told.image, detox(images))
    assert_same_kind(told.stage1, images)
    assert not is_close(told.stage1, images) and not is_close(told.stage1, told.image)
    for values in (told.ssim_map, told.timestep_map, told.sigma_map):
        assert values.shape == (*lead, 1, HEIGHT, WIDTH)
    assert torch.equal(told.network_calls, torch.full(lead, 7))
    highest = told.timestep_map.amax(dim=(-3, -2, -1))
    torch.testing.assert_close(highest, torch.full(lead, 120.0, dtype=torch.float64))
    assert float(told.timestep_map.amin()) == 0
    torch.testing.assert_close(told.sigma_map, LINEAR.sigma(told.timestep_map))
    assert told.sigma1 == pytest.approx(float(LINEAR.sigma(20))) and told.sigma2 == pytest.approx(
        float(LINEAR.sigma(120))
    )


def test_explanation_of_a_picture(tiny):
    detox = SampDetox(tiny, preset="ddim", seed=0)
    told = detox.explain(picture(1))
    assert_close(told.image, detox(picture(1)))
    assert_same_kind(told.stage1, picture(1))
    assert told.timestep_map.shape == (1, HEIGHT, WIDTH)
    assert told.network_calls.shape == () and int(told.network_calls) == 7


def test_explanation_of_a_grey_network_covers_the_three_colours(tiny_grey):
    detox = SampDetox(tiny_grey, preset="ddim", seed=0)
    image = pixels(3, HEIGHT, WIDTH)
    told, parts = detox.explain(image), [detox.explain(image[c : c + 1]) for c in range(3)]
    assert int(told.network_calls) == 21
    highest = torch.stack([part.timestep_map for part in parts]).amax(0)
    torch.testing.assert_close(told.timestep_map, highest, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("name", "calls"), [("ddim", 7), ("paper", 140), ("paper-linear", 140), ("authors-code", 240)])
def test_presets_run(tiny, name, calls):
    detox = SampDetox(tiny, preset=name, seed=0)
    told = detox.explain(pixels(3, 4, 4))
    assert int(told.network_calls) == calls
    assert_same_kind(told.image, pixels(3, 4, 4))
    assert detox.settings == PRESETS[name]


def test_preset_may_be_an_object_and_settings_change_it(tiny):
    changed = replace(PRESETS["paper"], t2=30)
    assert SampDetox(tiny, preset=changed).settings == changed
    assert SampDetox(tiny, preset="paper", t2=30).settings == changed
    assert SampDetox(tiny, preset="paper", map="ssim", stride=1).settings == PRESETS["paper"]


def test_the_default_is_to_look_for_triggers(tiny):
    assert SampDetox(tiny).settings == PRESETS["restore"] == PRESETS[DEFAULT]


def test_levels_of_another_schedule_mean_its_noise(fast_denoiser):
    told = SampDetox(fast_denoiser, schedule="cosine", t1=20, t2=120).explain(pixels(3, 4, 4))
    cosine = Schedule.named("cosine")
    assert told.sigma1 == pytest.approx(float(cosine.sigma(20))) and told.sigma1 < float(LINEAR.sigma(20))
    torch.testing.assert_close(told.sigma_map, cosine.sigma(told.timestep_map))


# Normalised images


def test_mean_and_std_are_undone_and_redone(tiny):
    images = pixels(2, 3, HEIGHT, WIDTH)
    plain, behind = SampDetox(tiny, seed=0), SampDetox(tiny, seed=0, mean=list(MEAN), std=np.array(STD))
    torch.testing.assert_close(behind(normalise(images)), normalise(plain(images)), rtol=0, atol=1e-3)
    told = behind.explain(normalise(images))
    torch.testing.assert_close(told.stage1, normalise(plain.explain(images).stage1), rtol=0, atol=1e-3)
    grey = SampDetox(tiny, seed=0, mean=0.5, std=0.5)
    torch.testing.assert_close(grey(images * 2 - 1), plain(images) * 2 - 1, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (picture(3), TypeError, "with mean and std images must be float tensors, got PIL"),
        (pixels(3, 4, 4, dtype=torch.uint8), TypeError, "must be float tensors, got uint8"),
        (pixels(1, 4, 4), ValueError, "one value, or one a channel, got 3 for 1 channels"),
        (pixels(3, 4, 4) * 255, ValueError, "Do mean and std fit the data"),
        (pixels(3, 4, 4) * float("nan"), ValueError, "NaN"),
    ],
)
def test_images_that_mean_and_std_do_not_fit_are_refused(forbidden, image, kind, message):
    with pytest.raises(kind, match=message):
        SampDetox(forbidden, mean=MEAN, std=STD)(image)


# Refusals: every one before the denoiser runs, which fails the test

POISONED = {name: pixels(3, 4, 4) for name in ("nan", "inf", "-inf")}
for name, values in POISONED.items():
    values[1, 2, 3] = float(name)


@pytest.mark.parametrize(
    ("sample", "kind", "parts"),
    [
        (pixels(3, 4, 4) + 0.5, ValueError, ("[0, 1]", "got values in [", "Normalize", "mean=")),
        (pixels(3, 4, 4) - 0.5, ValueError, ("[0, 1]", "got values in [-0.", "Normalize")),
        (pixels(3, 4, 4) * 255, ValueError, ("[0, 1]", "0...255", "divide by 255")),
        (POISONED["nan"], ValueError, ("finite", "got NaN")),
        (POISONED["nan"].bfloat16(), ValueError, ("finite", "got NaN")),
        (POISONED["inf"], ValueError, ("[0, 1]", "inf]")),
        (POISONED["-inf"].half(), ValueError, ("[0, 1]", "[-inf")),
        (tv_tensors.Image(POISONED["nan"]), ValueError, ("finite",)),
        (
            (torch.tensor([3, 1]), pixels(2, 3, 4, 4)),
            ValueError,
            ("(..., c, h, w)", "got (2,)", "labels", "image first"),
        ),
        ((torch.tensor(3), pixels(3, 4, 4)), ValueError, ("(..., c, h, w)", "got ()", "Put the image first")),
        ((torch.tensor(3), pixels(1, 4, 4)), ValueError, ("(..., c, h, w)", "got ()", "Put the image first")),
        (pixels(4, 4), ValueError, ("(..., c, h, w)", "got (4, 4)", "image[None]")),
        (pixels(4, 8, 8), ValueError, ("1 or 3 channels", "(4, 8, 8)", "alpha")),
        (pixels(2, 2, 8, 8), ValueError, ("1 or 3 channels", "(2, 2, 8, 8)")),
        (pixels(8, 8, 3), ValueError, ("1 or 3 channels", "(8, 8, 3)", "Permute (h, w, c)")),
        (pixels(3, 0, 4), ValueError, ("a pixel at least", "(3, 0, 4)")),
        (pixels(3, 4, 4).long(), TypeError, ("uint8, or floating-point", "torch.int64", "v2.ToDtype")),
        (pixels(3, 4, 4).int(), TypeError, ("torch.int32",)),
        (pixels(3, 4, 4).bool(), TypeError, ("torch.bool",)),
        (pixels(3, 4, 4).cfloat(), TypeError, ("torch.complex64",)),
        (pixels(3, 4, 4).to(torch.uint16), TypeError, ("torch.uint16",)),
        ("cat.png", TypeError, ("must hold an image", "got str", "v2.ToImage")),
        (np.zeros((4, 4, 3), np.uint8), TypeError, ("must hold an image", "got ndarray", "v2.ToImage")),
        (("cat.png", 3, np.zeros(2)), TypeError, ("got int, ndarray, str",)),
        ({"label": 3}, TypeError, ("must hold an image", "got int")),
        ([], TypeError, ("must hold an image",)),
        (tv_tensors.Mask(torch.zeros(1, 4, 4)), TypeError, ("must hold an image", "got Mask")),
        (
            (pixels(3, 4, 4), pixels(3, 4, 4)),
            ValueError,
            ("first pure tensor", "(3, 4, 4)", "Stack", "tv_tensors.Image"),
        ),
        ([tv_tensors.Image(pixels(3, 4, 4)), tv_tensors.Image(pixels(2, 4, 4))], ValueError, ("1 or 3 channels",)),
        (PIL.Image.new("RGBA", (4, 4)), ValueError, ("'L', 'RGB'", "got 'RGBA'", "convert('RGB')", "alpha")),
        (PIL.Image.new("P", (4, 4)), ValueError, ("got 'P'",)),
        (PIL.Image.new("I;16", (4, 4)), ValueError, ("got 'I;16'",)),
        (PIL.Image.new("CMYK", (4, 4)), ValueError, ("got 'CMYK'",)),
        (PIL.Image.new("RGB", (4, 0)), ValueError, ("a pixel at least", "got 4x0")),
    ],
)
def test_sample_that_cannot_be_purified_is_refused(forbidden, sample, kind, parts):
    detox = SampDetox(forbidden)
    with pytest.raises(kind) as caught:
        detox(sample)
    for part in parts:
        assert part in str(caught.value)


def test_rounding_of_short_floats_is_no_reason_to_refuse(detox):
    assert_same_kind(detox(pixels(3, 4, 4).half()), pixels(3, 4, 4).half())
    nearly = pixels(3, 4, 4).clamp(0, 1)
    nearly[0, 0, 0], nearly[0, 0, 1] = 1 + 1e-6, -1e-6
    assert_same_kind(detox(nearly), nearly)
    normalised = normalise(torch.tensor([0.0, 1.0]).expand(3, 2, 2)).half()
    detox.with_normalisation(MEAN, STD)(normalised)


@pytest.mark.parametrize(
    ("settings", "kind", "parts"),
    [
        ({"t1": -1}, ValueError, ("t1 must be 0 or more, got -1",)),
        ({"t2": -0.5}, ValueError, ("t2 must be 0 or more, got -0.5",)),
        ({"t1": float("nan")}, ValueError, ("t1 must be",)),
        ({"t2": float("inf")}, ValueError, ("t2 must be",)),
        ({"t1": "20"}, TypeError, ("t1 must be a number", "'20'")),
        ({"t2": True}, TypeError, ("t2 must be a number", "True")),
        ({"t1": 161}, ValueError, ("[0, 160]", "t1=161", "'custom'", "Lower them")),
        ({"t2": 1200}, ValueError, ("[0, 160]", "t2=1200", "Lower them")),
        ({"t2": 160.5}, ValueError, ("[0, 160]", "t2=160.5")),
        ({"stride": 0}, ValueError, ("stride must be above 0, got 0",)),
        ({"eta": 1.5}, ValueError, ("eta must be in [0, 1], got 1.5",)),
        ({"data_range": -1}, ValueError, ("data_range must be above 0, got -1",)),
        ({"scale": 0}, ValueError, ("scale must be above 0, got 0",)),
        ({"sampler": "dimm"}, ValueError, ("sampler must be one of", "got 'dimm'", "Did you mean 'ddim'")),
        ({"map": "ssmi"}, ValueError, ("map must be one of", "Did you mean 'ssim'")),
        ({"window": "gauss"}, ValueError, ("Did you mean 'gaussian'",)),
        ({"schedule": "cosin"}, ValueError, ("Did you mean 'cosine'",)),
        ({"direction": "both"}, ValueError, ("direction must be one of", "got 'both'")),
        ({"normalisation": "max"}, ValueError, ("Did you mean 'minmax'",)),
        ({"variance_type": "large"}, ValueError, ("Did you mean 'fixed_large'",)),
        ({"preset": "papre"}, ValueError, ("preset must be one of", "got 'papre'", "'paper'")),
        ({"preset": "authors_code"}, ValueError, ("Did you mean 'authors-code'",)),
        ({"map": "squared_error"}, ValueError, ("map must be left out", "got 'squared_error'", "preset='ddim'")),
        ({"preset": "authors-code", "eta": 0.5}, ValueError, ("authors' code fixes eta = 0.0, got 0.5",)),
        ({"batch_size": 0}, ValueError, ("batch_size must be", "got 0")),
        ({"batch_size": True}, ValueError, ("batch_size", "got True")),
        ({"batch_size": 2.5}, (ValueError, TypeError), ("batch_size", "got 2.5")),
        ({"seed": 1.5}, TypeError, ("seed must be a whole number or None, got 1.5",)),
        ({"seed": "1"}, TypeError, ("seed must be a whole number", "'1'")),
        ({"seed": False}, TypeError, ("seed must be a whole number",)),
        ({"dtype": torch.int8}, ValueError, ("floating-point dtype, got torch.int8",)),
        ({"device": "nonsense"}, ValueError, ("device must be one that is available, got 'nonsense'", "'cpu'")),
        ({"device": "cuda:99"}, ValueError, ("got 'cuda:99'",)),
        ({"mean": MEAN}, ValueError, ("mean and std must be given together", "std=None")),
        ({"mean": MEAN, "std": (1, 0, 1)}, ValueError, ("std above 0",)),
        ({"mean": MEAN, "std": (1, 1)}, ValueError, ("equally long",)),
    ],
)
def test_setting_that_makes_no_sense_is_refused(forbidden, settings, kind, parts):
    with pytest.raises(kind) as caught:
        SampDetox(forbidden, **settings)
    for part in parts:
        assert part in str(caught.value)


def test_unknown_weights_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"got 'bundle'.*Did you mean BUNDLED"):
        SampDetox("bundle")


def test_authors_code_needs_one_level_more_than_it_says():
    def denoiser(max_level):
        return Denoiser(Forbidden(), LINEAR, max_level=max_level, source="low")

    with pytest.raises(ValueError, match=r"\[0, 120\].*'low'.*level 121 is needed, one more than t for the authors"):
        SampDetox(denoiser(120), preset="authors-code")
    SampDetox(denoiser(121), preset="authors-code")
    SampDetox(denoiser(120), preset="paper-linear")


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_limit_in_the_message_is_the_limit(forbidden, schedule):
    with pytest.raises(ValueError, match="must be in") as caught:
        SampDetox(forbidden, schedule=schedule, t2=999)
    limit = int(re.search(r"\[0, (\d+)\]", str(caught.value)).group(1))
    SampDetox(forbidden, schedule=schedule, t1=limit, t2=limit)
    with pytest.raises(ValueError, match=f"t1={limit + 1}"):
        SampDetox(forbidden, schedule=schedule, t1=limit + 1, t2=0)
    assert float(Schedule.named(schedule).sigma(limit)) <= float(LINEAR.sigma(160)) * (1 + 1e-9)


# The wrapper


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
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
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


# Devices


def test_device_of_the_result_is_that_of_the_image(detox):
    assert SampDetox(detox.denoiser, device="cpu", seed=0, t2=40)(pixels(3, 4, 4)).device == torch.device("cpu")


@CUDA
@pytest.mark.parametrize("kind", ["pil-RGB", "uint8", "float32", "batch"])
def test_contract_on_cuda(tiny, kind):
    image = IMAGES[kind]()
    detox = SampDetox(tiny, t2=40, seed=0, device="cuda")
    check_transform(detox, image)
    if isinstance(image, Tensor):
        check_transform(SampDetox(tiny, t2=40, seed=0), image.cuda())


@CUDA
def test_cuda_gives_what_the_processor_gives(tiny):
    image = pixels(3, HEIGHT, WIDTH)
    there = SampDetox(tiny, seed=0, device="cuda")(image)
    torch.testing.assert_close(there, SampDetox(tiny, seed=0)(image), rtol=0, atol=5e-3)


@CUDA
def test_module_follows_an_image_on_cuda_and_to_moves_it():
    detox = SampDetox(Denoiser(UnitPrior(), LINEAR), seed=0)
    assert detox(pixels(3, 4, 4).cuda()).is_cuda
    assert detox.cuda()(pixels(3, 4, 4)).device.type == "cpu"


def test_bundled_weights_purify_any_size_offline():
    detox = SampDetox("bundled", seed=0)
    image = pixels(3, 5, 7, dtype=torch.uint8)
    assert_same_kind(detox(image), image)
