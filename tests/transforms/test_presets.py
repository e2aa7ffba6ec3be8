"""Presets: their fields, what they compute on small images, and what they refuse."""

import math
from dataclasses import FrozenInstanceError, asdict, replace
from functools import partial

import numpy as np
import pytest
import reference
import torch
from reference import DrawnNoise, toy_denoiser
from scipy import ndimage

from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.transforms.presets import PRESETS, Preset, get_preset

LINEAR = Schedule.named("linear")
TABLE = reference.log_table(reference.linear_betas())

PAPER = {
    "schedule": "cosine",
    "t1": 20,
    "t2": 120,
    "sampler": "ddpm",
    "stride": 1,
    "variance_type": "fixed_small",
    "map": "ssim",
    "window": "uniform",
    "data_range": 1.0,
    "direction": "dissimilarity",
    "normalisation": "minmax",
    "gate": "own-level",
    "noise": "fresh",
}
AUTHORS_CODE = {
    "schedule": "linear",
    "t1": 120,
    "t2": 120,
    "sampler": "ddpm",
    "stride": 1,
    "variance_type": "fixed_large",
    "map": "ssim",
    "window": "gaussian",
    "data_range": 255,
    "direction": "dissimilarity",
    "normalisation": "minmax",
    "gate": "authors-code",
    "noise": "shared",
}
DDIM = {
    "schedule": None,
    "t1": 20,
    "t2": 120,
    "sampler": "ddim",
    "stride": 20,
    "eta": 0.0,
    "map": "ssim",
    "window": "uniform",
    "data_range": 255,
    "direction": "dissimilarity",
    "normalisation": "minmax",
    "gate": "own-level",
    "noise": "fresh",
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("paper", PAPER),
        ("paper-linear", PAPER | {"schedule": "linear"}),
        ("authors-code", AUTHORS_CODE),
        ("ddim", DDIM),
    ],
)
def test_preset_has_its_published_settings(name, settings):
    preset = asdict(get_preset(name))
    assert {key: preset[key] for key in settings} == settings


def test_there_are_no_other_presets_and_those_settings_are_of_ddim():
    assert set(PRESETS) == {"ddim", "restore", "paper", "paper-linear", "authors-code"}
    assert Preset() == get_preset("ddim")


@pytest.mark.parametrize(("name", "level"), [("ddim", 120), ("paper", 120), ("authors-code", 121)])
def test_highest_level_is_that_of_the_strongest_noise(name, level):
    assert get_preset(name).highest_level == level


def test_highest_level_may_be_that_of_the_global_stage():
    assert Preset(t1=200, t2=50).highest_level == 200


def test_a_preset_is_its_own_name():
    preset = Preset(t1=3)
    assert get_preset(preset) is preset


def test_a_preset_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Preset().t1 = 3


# Each preset, at lower levels, against the naive loop with scikit-image's and scipy's maps.


def stretched(per_image, x, y):
    return np.stack([reference.minmax(per_image(a, b)) for a, b in zip(x, y, strict=True)])


def blurred_squared_error(x, y):
    return ndimage.gaussian_filter(np.tensordot([0.299, 0.587, 0.114], ((x - y) / 2) ** 2, 1), 1.0, mode="reflect")


def dissimilarity(x, y, **options):
    return 1 - reference.similarity(x, y, **({"win_size": 7, "data_range": 1.0} | options))


def similarity(x, y):
    return reference.similarity(x, y, win_size=7, data_range=1.0)


SQUARED = Preset(t1=20, t2=50, map="squared_error")
GAUSSIAN_255 = {"gaussian_weights": True, "sigma": 1.5, "win_size": None, "data_range": 255}
CASES = [
    (Preset(t1=20, t2=50), reference.ddim_pixel, partial(stretched, partial(dissimilarity, data_range=255))),
    (replace(SQUARED, eta=0.5), partial(reference.ddim_pixel, eta=0.5), partial(stretched, blurred_squared_error)),
    (replace(PRESETS["paper"], t1=3, t2=5), reference.ddpm_pixel, partial(stretched, dissimilarity)),
    (
        replace(PRESETS["paper"], t1=4, t2=6, stride=2, variance_type="fixed_large"),
        partial(reference.ddpm_pixel, variance_type="fixed_large"),
        partial(stretched, dissimilarity),
    ),
    (
        replace(PRESETS["paper"], t1=3, t2=5, direction="similarity"),
        reference.ddpm_pixel,
        partial(stretched, similarity),
    ),
    (
        replace(PRESETS["paper"], t1=3, t2=5, window="gaussian", data_range=255),
        reference.ddpm_pixel,
        partial(stretched, partial(dissimilarity, **GAUSSIAN_255)),
    ),
    (
        replace(SQUARED, normalisation="absolute", scale=0.01),
        reference.ddim_pixel,
        lambda x, y: np.stack([np.clip(blurred_squared_error(a, b) / 0.01, 0, 1) for a, b in zip(x, y, strict=True)]),
    ),
]


@pytest.mark.parametrize(("preset", "pixel_step", "make_map"), CASES)
def test_algorithm_of_a_preset_equals_the_naive_loop(preset, pixel_step, make_map):
    x0 = torch.rand(2, 3, 11, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    noise = DrawnNoise(x0.shape, calls=12)
    result = preset.algorithm()(x0, toy_denoiser, LINEAR, noise=noise)
    image, stage1, level_map = reference.purify(
        x0.numpy(),
        toy_denoiser,
        TABLE,
        t1=preset.t1,
        t2=preset.t2,
        stride=preset.stride,
        step=pixel_step,
        make_map=make_map,
        draw=noise.arrays(),
        draws_at_steps=preset.sampler == "ddpm" or preset.eta > 0,
    )
    np.testing.assert_allclose(result.stage1, stage1, atol=1e-9)
    np.testing.assert_allclose(result.timestep_map[:, 0], level_map, atol=1e-5)
    np.testing.assert_allclose(result.image, image, atol=1e-5)
    assert level_map.std() > 0


def test_algorithm_of_the_authors_code_equals_its_transcription():
    x0 = torch.rand(2, 3, 11, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    noise = DrawnNoise(x0.shape, calls=12)
    result = replace(PRESETS["authors-code"], t1=3, t2=5).algorithm()(x0, toy_denoiser, LINEAR, noise=noise)
    betas = reference.linear_betas()
    image = reference.authors_code(x0.numpy(), toy_denoiser, betas, t1=3, t2=5, draw=noise.arrays())[0]
    np.testing.assert_allclose(result.image, image, atol=1e-9)


@pytest.mark.parametrize("name", ["ssim", "squared_error"])
@pytest.mark.parametrize("normalisation", ["minmax", "absolute"])
def test_similarity_noises_most_what_changed_least(name, normalisation):
    x0 = torch.rand(1, 3, 11, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    preset = Preset(map=name, normalisation=normalisation, direction="similarity", t2=50)
    result = preset.algorithm()(x0, toy_denoiser, LINEAR)
    change = Preset(map=name).dissimilarity(x0, result.stage1)
    assert result.timestep_map.max() > 0
    assert result.timestep_map.flatten()[change.argmin()] == result.timestep_map.max()
    assert result.timestep_map.flatten()[change.argmax()] == result.timestep_map.min()


# What is refused


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("papers", "'paper'"), ("DDIM", "'ddim'"), ("authors_code", "'authors-code'"), ("paper_linear", "'paper-linear'")],
)
def test_unknown_preset_suggests_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"preset must be one of .*got '{name}'. Did you mean .*{nearest}"):
        get_preset(name)


def test_unknown_preset_unlike_any_lists_them_all():
    with pytest.raises(ValueError, match=r"ddim.*paper.*paper-linear.*authors-code.*got 'zzz'\. Choose one"):
        get_preset("zzz")


@pytest.mark.parametrize("name", ["t1", "t2"])
@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, -math.inf])
def test_levels_must_be_finite_and_not_negative(name, value):
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, got {value}"):
        Preset(**{name: value})


@pytest.mark.parametrize("value", ["20", None, True])
def test_levels_must_be_numbers(value):
    with pytest.raises(TypeError, match="t1 must be a number, a noise level, got"):
        Preset(t1=value)


@pytest.mark.parametrize("name", ["stride", "data_range", "scale"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_strides_and_ranges_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
        Preset(**{name: value})


@pytest.mark.parametrize("name", ["data_range", "scale"])
def test_ranges_must_be_finite(name):
    with pytest.raises(ValueError, match=f"{name} must be .*got inf"):
        Preset(**{name: math.inf})


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan, math.inf])
def test_eta_must_be_between_0_and_1(eta):
    with pytest.raises(ValueError, match=rf"eta must be in \[0, 1\], got {eta}"):
        Preset(eta=eta)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("schedule", "linaer", "linear"),
        ("sampler", "DDPM", "ddpm"),
        ("map", "sim", "ssim"),
        ("window", "gauss", "gaussian"),
        ("direction", "similar", "similarity"),
        ("normalisation", "min-max", "minmax"),
        ("gate", "own_level", "own-level"),
        ("variance_type", "fixed-small", "fixed_small"),
        ("noise", "frehs", "fresh"),
    ],
)
def test_unknown_choice_suggests_the_nearest(name, value, nearest):
    with pytest.raises(ValueError, match=f"{name} must be one of .*got '{value}'. Did you mean .*'{nearest}'"):
        Preset(**{name: value})


def test_the_authors_gate_and_shared_noise_go_together():
    with pytest.raises(ValueError, match="go together, got 'own-level' and 'shared'"):
        Preset(noise="shared")
    with pytest.raises(ValueError, match="go together, got 'authors-code' and 'fresh'"):
        replace(PRESETS["authors-code"], noise="fresh")


@pytest.mark.parametrize(
    "change", [{"schedule": "cosine"}, {"stride": 20}, {"window": "uniform"}, {"direction": "similarity"}, {"scale": 2}]
)
def test_the_authors_code_fixes_all_but_its_levels(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"the authors' code fixes {name} = "):
        replace(PRESETS["authors-code"], **change)
    assert replace(PRESETS["authors-code"], t1=10, t2=30).highest_level == 31


def test_the_authors_levels_are_whole_numbers():
    with pytest.raises(ValueError, match=r"the authors' levels must be whole numbers, got 2\.5 and 120"):
        replace(PRESETS["authors-code"], t1=2.5)
