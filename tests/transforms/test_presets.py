"""Presets: their published settings, changes to them, and what is refused."""

from dataclasses import asdict, replace

import pytest

from sampdetox_transforms.method.algorithm1 import Algorithm1
from sampdetox_transforms.method.authors_code import AuthorsCode
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.transforms.presets import DEFAULT, PRESETS, get_preset

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
    "rescale": "minmax",
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
    "rescale": "minmax",
}
RESTORE = {
    "schedule": None,
    "t1": 12,
    "t1_large": 2,
    "t1_doubt": 40,
    "t2": 120,
    "sampler": "ddim",
    "stride": 60,
    "eta": 0.0,
    "looks": 2,
    "largest": 0.4,
    "gain": 3.0,
}


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("paper", Algorithm1, PAPER),
        ("paper-linear", Algorithm1, PAPER | {"schedule": "linear"}),
        ("authors-code", AuthorsCode, {"t1": 120, "t2": 120}),
        ("ddim", Algorithm1, DDIM),
        ("restore", Restore, RESTORE),
    ],
)
def test_preset_has_its_published_settings(name, kind, settings):
    assert type(PRESETS[name]) is kind
    preset = asdict(get_preset(name))
    assert {key: preset[key] for key in settings} == settings


def test_there_are_no_other_presets_and_the_defaults_of_each_kind_are_presets():
    assert set(PRESETS) == {"ddim", "restore", "paper", "paper-linear", "authors-code"}
    assert Algorithm1() == get_preset("ddim") and Restore() == get_preset("restore") == get_preset(DEFAULT)
    assert AuthorsCode() == get_preset("authors-code")


@pytest.mark.parametrize(("name", "level"), [("ddim", 120), ("paper", 120), ("restore", 120), ("authors-code", 121)])
def test_highest_level_is_that_of_the_strongest_noise(name, level):
    assert get_preset(name).highest_level == level


@pytest.mark.parametrize("settings", [Algorithm1(t1=3), Restore(t1=3), AuthorsCode(t1=3)])
def test_settings_are_a_preset(settings):
    assert get_preset(settings) is settings or get_preset(settings) == settings
    assert get_preset(settings, t2=7) == replace(settings, t2=7)


def test_changes_that_are_none_are_no_changes():
    assert get_preset("ddim", t1=None, map=None, nonsense=None) == PRESETS["ddim"]
    assert get_preset("ddim", map="squared_error", eta=0) == replace(PRESETS["ddim"], map="squared_error")


def test_a_level_that_is_asked_for_is_meant_for_images_of_every_size():
    assert get_preset("restore", t1=5) == Restore(t1=5, t1_large=None, t1_doubt=None)
    assert get_preset("restore", t1=5, t1_large=3) == Restore(t1=5, t1_large=3, t1_doubt=None)
    assert get_preset("restore", t1=5, t1_doubt=30) == Restore(t1=5, t1_large=None, t1_doubt=30)
    assert get_preset("restore", t2=5) == Restore(t2=5, t1_large=2)


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


@pytest.mark.parametrize("preset", [None, 3, ("ddim",), Algorithm1])
def test_a_preset_of_another_kind_is_refused(preset):
    with pytest.raises(TypeError, match=r"preset must be a name or settings such as Restore\(\), got .*\. Choose one"):
        get_preset(preset)


@pytest.mark.parametrize(
    ("preset", "change"),
    [
        ("authors-code", {"schedule": "cosine"}),
        ("authors-code", {"stride": 20}),
        ("authors-code", {"window": "uniform"}),
        ("authors-code", {"direction": "similarity"}),
        ("authors-code", {"scale": 2}),
        ("authors-code", {"eta": 0.5}),
        ("restore", {"map": "squared_error"}),
        (Restore(), {"scale": 2}),
        ("ddim", {"looks": 3}),
        ("ddim", {"t1_large": 3}),
    ],
)
def test_a_setting_that_the_preset_does_not_have_is_refused(preset, change):
    ((name, value),) = change.items()
    kind = preset if isinstance(preset, str) else type(preset).__name__
    told = rf"the settings of '{kind}' are .*t1.*, got {name}='?{value}'?\. Leave it out"
    with pytest.raises(ValueError, match=told):
        get_preset(preset, **change)
