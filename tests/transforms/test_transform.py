"""The public classes: the contract on every input kind, seeds, workers, refusals, explanations, and the wrapper."""

import multiprocessing
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
from samples import CALIBRATION, CALIBRATIONS, WhiteIsForeign
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional
from workers import GIVE_UP, SameImage

from sampdetox_transforms import (
    PRESETS,
    Denoiser,
    DetoxWrapper,
    SampDetox,
    Schedule,
    WeightsFileError,
    load_denoiser,
    purify,
)
from sampdetox_transforms.method.algorithm1 import Algorithm1
from sampdetox_transforms.method.authors_code import AuthorsCode
from sampdetox_transforms.method.calibration import Calibration, Calibrations
from sampdetox_transforms.method.noise import SeededNoise
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.networks import precision, tiles
from sampdetox_transforms.networks.photographs import Photographs
from sampdetox_transforms.networks.restorer import Specialists
from sampdetox_transforms.networks.restorer_files import save_calibrations, save_restorer
from sampdetox_transforms.networks.restorers import Restorers, load_restorers
from sampdetox_transforms.transforms.presets import DEFAULT
from sampdetox_transforms.transforms.transform import in_pass

LINEAR = Schedule.named("linear")
# What a batch may change, on [0, 1], by the dtype that the network computes in.
DTYPES = {torch.float32: 0.0, torch.bfloat16: 0.02}
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


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.float32) for kind in IMAGES), *((kind, torch.bfloat16) for kind in ("pil-RGB", "uint8", "batch"))],
)
def test_contract(tiny, kind, dtype):
    check_transform(SampDetox(tiny, t2=40, seed=0, dtype=dtype), IMAGES[kind](), rounding=DTYPES[dtype])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in ("pil-L", "pil-RGB", "float32", "batch-of-grey", "two-leading-dimensions")),
        ("batch", torch.bfloat16),
    ],
)
def test_contract_of_a_grey_network(tiny_grey, kind, dtype):
    check_transform(SampDetox(tiny_grey, t2=40, seed=0, dtype=dtype), IMAGES[kind](), rounding=DTYPES[dtype])


def test_contract_behind_normalize(tiny):
    transform = SampDetox(tiny, t2=40, seed=0, mean=MEAN, std=STD)
    bounds = normalise(torch.tensor([0.0, 1.0]).expand(3, 1, 2))
    check_transform(transform, normalise(pixels(3, HEIGHT, WIDTH)), value_range=(bounds.min(), bounds.max()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_contract_of_ddpm_with_ssim(tiny, dtype):
    preset = Algorithm1(t1=3, t2=5, sampler="ddpm", stride=1)
    detox = SampDetox(tiny, preset=preset, seed=0, dtype=dtype)
    check_transform(detox, pixels(3, HEIGHT, WIDTH), rounding=DTYPES[dtype])


def test_contract_of_the_authors_code(tiny):
    check_transform(
        SampDetox(tiny, preset=AuthorsCode(t1=3, t2=5), seed=0), pixels(3, HEIGHT, WIDTH), batch_invariant=False
    )


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
    lead = shape[:-3]
    for preset in ("restore", "ddim", "authors-code"):
        detox = SampDetox(Denoiser(Forbidden(), LINEAR, channels=channels), preset=preset)
        assert_same_kind(detox(empty), empty)
        result = detox.explain(empty)
        assert_same_kind(result.image, empty)
        assert result.timestep_map.shape == result.sigma_map.shape == (*lead, 1, 8, 8)
        assert result.network_calls.shape == lead
        if preset == "restore":
            assert result.difference_map is None and result.lightened.shape == shape
            assert result.found.mask.shape == result.found.probability.shape == (*lead, 1, 8, 8)
            assert result.found.dense.shape == result.found.p_value.shape == lead
        else:
            assert result.difference_map.shape == (*lead, 1, 8, 8) and result.found is result.lightened is None


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

    def watched(self, x0):
        result = purify(self, x0)
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
    "settings",
    [
        {},
        {"preset": Restore(eta=1.0)},
        {"sampler": "ddpm"},
        {"preset": Algorithm1(map="squared_error")},
    ],
    ids=str,
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
    a, b = SampDetox(fast_denoiser, seed=0, preset="ddim").explain(images).stage1
    assert float((a - b).abs().mean()) > 1e-2
    a, b = SampDetox(fast_denoiser, seed=0).explain(images).stage1
    assert float((a - b).abs().mean()) > 5e-3  # the light denoiser leaves less of it


def test_batch_size_bounds_what_the_network_sees(tiny_denoiser):
    seen = []
    tiny_denoiser.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    SampDetox(tiny_denoiser, batch_size=2, preset="ddim")(pixels(5, 3, HEIGHT, WIDTH))
    assert set(seen) == {1, 2}
    SampDetox(tiny_denoiser, t1=90)(pixels(65, 3, 2, 2))  # more noise than the light denoiser knows
    assert max(seen) == 64


def test_batch_size_bounds_what_the_light_denoiser_sees(tiny_denoiser):
    detox, seen = SampDetox(tiny_denoiser, batch_size=2), []
    detox.restorer.small.light.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    detox(pixels(5, 3, HEIGHT, WIDTH))
    assert set(seen) <= {1, 2} and sum(seen) >= 5


def test_passes_draw_noise_of_their_own(detox):
    image = pixels(3, HEIGHT, WIDTH)
    purified = []
    for index in (0, 1, 1):
        with in_pass(index):
            purified.append(detox(image))
        assert torch.equal(detox.explain(image, pass_index=index).image, purified[-1])
    first, second, again = purified
    assert torch.equal(first, detox(image)) and not is_close(first, second) and torch.equal(again, second)


# Workers


# A machine with one free processor suggests one worker.
TWO_WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
FORK = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")


@FORK
@TWO_WORKERS
def test_forked_workers_do_not_repeat_noise(tiny):
    loader = DataLoader(
        SameImage(SampDetox(tiny), pixels(3, HEIGHT, WIDTH), 4),
        num_workers=2,
        multiprocessing_context="fork",
        timeout=GIVE_UP,
    )
    for a, b in combinations(torch.cat(list(loader)), 2):
        assert not is_close(a, b)


def test_spawned_worker_gives_the_same(detox):
    loader = DataLoader(
        SameImage(detox, pixels(3, HEIGHT, WIDTH), 1), num_workers=1, multiprocessing_context="spawn", timeout=GIVE_UP
    )
    assert_close(next(iter(loader))[0], detox(pixels(3, HEIGHT, WIDTH)))


@FORK
def test_cpu_in_a_forked_worker_is_fine(detox):
    loader = DataLoader(
        SameImage(detox, pixels(3, HEIGHT, WIDTH), 1), num_workers=1, multiprocessing_context="fork", timeout=GIVE_UP
    )
    assert_close(next(iter(loader))[0], detox(pixels(3, HEIGHT, WIDTH)))


# What it says of itself


def test_repr_is_one_line_without_the_network(detox):
    text = repr(detox)
    assert "\n" not in text and "Conv2d" not in text and len(text) < 400
    for part in (
        "SampDetox(",
        "weights=",
        "t1=12",
        "t2=40",
        "sampler='ddim'",
        "stride=60",
        "Restore(",
        "seed=0",
    ):
        assert part in text
    assert text in repr(v2.Compose([detox]))


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
    assert SampDetox(tiny, preset="paper", sampler="ddpm", stride=1).settings == PRESETS["paper"]


def test_the_default_is_to_look_for_triggers(tiny):
    assert SampDetox(tiny).settings == PRESETS["restore"] == PRESETS[DEFAULT]


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
        ({"sampler": "dimm"}, ValueError, ("sampler must be one of", "got 'dimm'", "Did you mean 'ddim'")),
        ({"schedule": "cosin"}, ValueError, ("Did you mean 'cosine'",)),
        ({"preset": "papre"}, ValueError, ("preset must be one of", "got 'papre'", "'paper'")),
        ({"preset": "authors_code"}, ValueError, ("Did you mean 'authors-code'",)),
        ({"preset": "authors-code", "stride": 5}, ValueError, ("settings of 'authors-code' are t1, t2, got stride=5",)),
        ({"preset": 3}, TypeError, ("preset must be a name or settings", "got 3")),
        ({"preset": "ddim", "restorer": "folder"}, ValueError, ("need a preset that searches", "got 'ddim'")),
        ({"preset": "paper", "calibration": "file"}, ValueError, ("restorer and calibration", "preset='restore'")),
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


# Seeds and dtypes


def test_numpys_seeds_are_seeds(tiny):
    image = pixels(3, HEIGHT, WIDTH)
    assert torch.equal(SampDetox(tiny, seed=np.int64(3))(image), SampDetox(tiny, seed=3)(image))


@pytest.mark.parametrize("weights", ["tiny", "bundled"])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("preset", ["restore", "ddim"])
def test_torchs_default_dtype_changes_nothing(tiny, weights, default, preset):
    """Neither where the transform is built, nor where it is called."""
    weights = tiny if weights == "tiny" else weights
    images = pixels(2, 3, HEIGHT, WIDTH)
    images[1, :, 2:5, 3:6] = 1
    before = SampDetox(weights, preset=preset, seed=0, dtype=torch.float32)
    expected = before(images)
    torch.set_default_dtype(default)
    try:
        found, told = [before(images)], before.explain(images)
        if default == torch.float64:  # built in bfloat16, networks are rounded to it as their weights are read
            found.append(SampDetox(weights, preset=preset, seed=0, dtype=torch.float32)(images))
    finally:
        torch.set_default_dtype(torch.float32)
    for result in (*found, told.image):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_copies_of_a_byte_image_in_other_dtypes_give_one_result(detox, dtype):
    image = pixels(3, HEIGHT, WIDTH, dtype=torch.uint8)
    expected = detox(image / 255)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 3e-2, torch.float64: 1e-6}[dtype]
    torch.testing.assert_close(detox((image / 255).to(dtype)).float(), expected, rtol=0, atol=tolerance)
    assert float((SampDetox(detox.denoiser, t2=40, seed=1)(image / 255) - expected).abs().max()) > 3e-2


# The doors of the search


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Search networks of another seed, and their thresholds."""
    torch.manual_seed(5)
    return save_restorer(tmp_path_factory.mktemp("doors") / "restorer", Specialists(), CALIBRATION)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_search_networks_come_from_a_folder_or_as_they_are(tiny, folder):
    own, other = SampDetox(tiny), SampDetox(tiny, restorer=folder)
    assert not same(own.restorer, other.restorer)
    assert other.calibration == Calibrations(CALIBRATION)
    networks, calibrations = load_restorers(folder)
    assert same(SampDetox(tiny, restorer=str(folder)).restorer, networks)
    handed = SampDetox(tiny, restorer=networks, calibration=calibrations)
    assert same(handed.restorer, networks) and handed.calibration is calibrations


def test_networks_that_are_handed_over_stay_as_they_are(tiny, folder):
    networks, calibrations = load_restorers(folder)
    detox = SampDetox(tiny, restorer=networks, calibration=calibrations, dtype=torch.bfloat16)
    assert {p.dtype for p in detox.restorer.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in networks.parameters()} == {torch.float32}


def test_thresholds_come_from_a_file_or_as_they_are(tiny, tmp_path, folder):
    given = Calibrations(CALIBRATION.at(0.2), CALIBRATION)
    save_calibrations(tmp_path / "thresholds.json", given)
    for door in (tmp_path / "thresholds.json", str(tmp_path / "thresholds.json"), given):
        assert SampDetox(tiny, calibration=door).calibration == given
        assert SampDetox(tiny, restorer=folder, calibration=door).calibration == given
    small = SampDetox(tiny, calibration=CALIBRATION).calibration
    assert small.small == CALIBRATION and small.large == SampDetox(tiny).calibration.large


@pytest.mark.parametrize(
    ("settings", "kind", "parts"),
    [
        ({"restorer": 3}, TypeError, ("restorer must be a folder or Restorers", "got int", "load_restorers")),
        ({"restorer": nn.Identity()}, TypeError, ("restorer must be a folder", "got Identity")),
        ({"restorer": "no/such/folder"}, WeightsFileError, ("no/such/folder", "must hold", "Write both anew")),
        ({"calibration": 3}, TypeError, ("calibration must be a file or a Calibrations", "got int", "calibrate(")),
        ({"calibration": "no/such/file"}, WeightsFileError, ("no/such/file must be a calibration", "Write one with")),
        ({"restorer": Restorers(Specialists())}, ValueError, ("must come with their calibration", "calibration=")),
    ],
    ids=str,
)
def test_what_is_no_search_is_refused(forbidden, settings, kind, parts):
    with pytest.raises(kind) as caught:
        SampDetox(forbidden, **settings)
    for part in parts:
        assert part in str(caught.value)


def test_a_file_of_something_else_is_no_calibration(forbidden, tmp_path):
    for content in ("[1]", "{", '{"small": 3}', '{"local": [1], "dense": [2, 1]}', '{"medium": null, "other": {}}'):
        (tmp_path / "file").write_text(content)
        with pytest.raises(WeightsFileError, match=r"file(:.*)? must (be|hold) .*, got.*\. (Write|Fetch|Give)"):
            SampDetox(forbidden, calibration=tmp_path / "file")


def test_calibrate_takes_batches_and_images_and_sets_the_thresholds(tiny):
    detox = SampDetox(tiny, restorer=Restorers(Specialists()), calibration=CALIBRATIONS)
    detox.restorer = Restorers(WhiteIsForeign())
    images = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    found = detox.calibrate(images, false_alarm_rate=0.1, data="noise")
    assert detox.calibration is found and found.large is CALIBRATIONS.large
    assert (found.small.images, found.small.data, found.small.false_alarm_rate) == (60, "noise", 0.1)
    assert detox.calibrate(list(images), false_alarm_rate=0.1, data="noise") == found
    with pytest.raises(ValueError, match="needs 200 clean images or more, got 60"):
        detox.calibrate(images, false_alarm_rate=0.01)
    with pytest.raises(ValueError, match="needs 40 clean images or more, got 0"):
        detox.calibrate([])
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        detox.calibrate(images * 255)
    assert detox.calibration == found
    with pytest.raises(ValueError, match=r"preset='restore' \(the default\) has thresholds to calibrate"):
        SampDetox(tiny, preset="ddim").calibrate(images)


def test_the_state_holds_the_thresholds(tiny, tmp_path):
    given = Calibrations(CALIBRATION.at(0.2), CALIBRATION)
    first, second = SampDetox(tiny, seed=0, calibration=given), SampDetox(tiny, seed=0)
    assert second.calibration != given
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.calibration == given
    wrapper = DetoxWrapper(nn.Identity(), SampDetox(tiny, seed=0))
    wrapper.load_state_dict(torch.load(save(DetoxWrapper(nn.Identity(), first), tmp_path), weights_only=True))
    assert wrapper.detox.calibration == given
    other = SampDetox(tiny, preset="ddim")
    other.load_state_dict(SampDetox(tiny, preset="ddim").state_dict())
    assert other.calibration is None


def save(module: nn.Module, folder) -> str:
    torch.save(module.state_dict(), folder / "wrapper.pt")
    return str(folder / "wrapper.pt")


# Large images by the networks for photographs


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Search networks for large images with random weights, and the tiny denoiser for small ones."""
    torch.manual_seed(3)
    small = Restorers(Specialists()).small
    return Restorers(small, Photographs()).eval().requires_grad_(False)


@pytest.mark.parametrize(("size", "name"), [((48, 300), "small"), ((49, 300), "medium"), ((400, 159), "medium"),
                                            ((160, 160), "large")])  # fmt: skip
def test_networks_are_those_of_the_size(photographs, size, name):
    found = photographs.of(torch.zeros(1, 3, *size))
    assert found.name == name and photographs.large.name == "large"
    if name != "small":
        assert found.search is photographs.large.search


LARGE = {
    "odd batch": lambda: pixels(2, 3, 67, 53),
    "one, grey": lambda: pixels(1, 70, 50),
    "batch of one, bytes": lambda: pixels(1, 3, 49, 51, dtype=torch.uint8),
    "picture": lambda: functional.to_pil_image(pixels(3, 50, 61, dtype=torch.uint8)),
}


@pytest.mark.parametrize("kind", LARGE)
def test_contract_of_large_images(tiny, photographs, kind):
    detox = SampDetox(tiny, seed=0, restorer=photographs, calibration=CALIBRATIONS)
    assert detox.explain(LARGE[kind]()).sigma1 == float(LINEAR.sigma(2))
    check_transform(detox, LARGE[kind]())


def test_small_images_do_not_go_to_the_networks_for_photographs(tiny, photographs):
    detox = SampDetox(tiny, seed=0, restorer=photographs, calibration=CALIBRATIONS)
    detox.restorer.large.search.register_forward_pre_hook(lambda *args: pytest.fail("a small image was asked about"))
    for size in ((1, 1), (1, 200), (48, 60)):
        assert detox(pixels(3, *size)).shape == (3, *size)
    with pytest.raises(pytest.fail.Exception):
        detox(pixels(3, 49, 49))


def test_tiles_of_a_photograph_are_the_whole(tiny, photographs, monkeypatch):
    """At 700 x 700 the restoring network goes by tiles; in a texture that is alike everywhere nothing tells them."""
    nothing_found = Calibration((1e6, 2e6), (1e6, 2e6))
    detox = SampDetox(tiny, seed=0, restorer=photographs, calibration=Calibrations(nothing_found, nothing_found))
    image = functional.resize(pixels(3, 175, 175), [700, 700]).clamp(0, 1)
    sizes = []
    detox.restorer.large.restoring.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[-1]))
    tiled = detox(image)
    assert len(sizes) > 1 and 256 < max(sizes) <= 512
    monkeypatch.setattr(tiles, "in_parts", lambda network, x, t, **options: network(x, t))
    sizes.clear()
    whole = detox(image)
    assert sizes == [704]  # a multiple of 16
    difference, change = (tiled - whole).square().mean(dim=0).sqrt(), (whole - image).square().mean(dim=0).sqrt()
    assert difference.median() < 0.02 * change.median()
    assert difference.flatten()[::7].quantile(0.99) < 0.3 * change.median()


# Hostile images


@pytest.mark.parametrize("preset", ["restore", "ddim", "authors-code"])
@pytest.mark.parametrize("size", [(1, 1), (2, 40), (320, 16)])
@pytest.mark.parametrize("weights", ["tiny", "bundled"])
def test_long_black_and_flat_images_give_images(tiny, weights, size, preset):
    levels = {"t1": 2, "t2": 3} if preset == "authors-code" else {"t2": 40}
    detox = SampDetox(tiny if weights == "tiny" else weights, preset=preset, seed=0, **levels)
    for colour in ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.5)):
        image = torch.tensor(colour)[:, None, None].expand(3, *size).contiguous()
        told = detox.explain(image)
        assert_same_kind(told.image, image)
        for values in (told.image, told.stage1, told.timestep_map, told.sigma_map):
            assert values.isfinite().all()
        assert told.found is None or told.found.p_value.isfinite().all()


@pytest.mark.parametrize(("size", "values"), [((49, 980), (0.0,)), ((64, 64), (0.0, 1.0, 0.3))])
def test_long_black_and_flat_photographs_give_images(tiny, photographs, size, values):
    detox = SampDetox(tiny, seed=0, restorer=photographs, calibration=CALIBRATIONS)
    for value in values:
        image = torch.full((3, *size), value)
        told = detox.explain(image)
        assert_same_kind(told.image, image)
        assert told.image.isfinite().all() and told.found.p_value.isfinite().all()
