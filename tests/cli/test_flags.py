"""The options that commands share: what they say is what the library has, and several values after one flag."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sampdetox_transforms import PRESETS, SampDetox
from sampdetox_transforms.cli import flags, shared
from sampdetox_transforms.cli.purify import command
from sampdetox_transforms.method.algorithm1 import Algorithm1
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.transforms.presets import DEFAULT

SETTINGS = ("t1", "t2", "sampler", "stride")


def shown_default(alias) -> str:
    return get_args(alias)[1].show_default


def test_the_presets_are_the_librarys():
    assert set(flags.PRESETS) == set(PRESETS) and flags.PRESETS[0] == DEFAULT == shown_default(flags.Preset)
    assert flags.complete_preset("p") == ["paper", "paper-linear"]


@pytest.mark.parametrize("name", SETTINGS)
def test_help_tells_the_presets_defaults(name):
    """ "the preset's; restore 60, ddim 20, others 1" is read, and compared with each preset."""
    text = shown_default({"t1": flags.T1, "t2": flags.T2, "sampler": flags.Sampler, "stride": flags.Stride}[name])
    told = {}
    for part in text.replace("the preset's, ", "the preset's; others ").split("; ")[1].split(", "):
        names, value = part.replace(":", "").rsplit(" ", 1)
        told |= dict.fromkeys(names.split(" and "), value)
    for preset, settings in PRESETS.items():
        assert told.get(preset, told["others"]) == str(getattr(settings, name)), preset


def test_options_reach_the_transform(run, tiny, tmp_path, monkeypatch):
    from cli_pictures import colours, save

    source, made = save(tmp_path / "a.png", colours()), []

    def make(**settings):
        made.append(shared.make_detox(**settings))
        return made[-1]

    monkeypatch.setattr(command, "make_detox", make)

    def detox(*options) -> SampDetox:
        command_line = ("purify", source, tmp_path / "b.png", "--weights", tiny, "--device", "cpu", "--overwrite")
        assert run(*command_line, *options)[0] == 0
        return made[-1]

    assert detox().settings == SampDetox(str(tiny)).settings
    assert detox().seed is None and detox().denoiser.dtype == torch.float32 and detox().batch_size == 64
    paper = detox("--preset", "paper", "--t2", "80.5", "--stride", 30, "--seed", "7", "--dtype", "bfloat16")
    s = paper.settings
    assert (s.schedule, s.sampler, s.stride, s.t1, s.t2) == ("cosine", "ddpm", 30, 20, 80.5)
    assert (paper.seed, paper.denoiser.dtype) == (7, torch.bfloat16)
    s = detox("--sampler", "ddpm", "--stride", "10", "--t1", "30", "--batch-size", "5").settings
    assert (s.sampler, s.stride, s.t1, s.t1_large, s.t2) == ("ddpm", 10, 30, None, 120) and isinstance(s, Restore)
    assert isinstance(s.t1, int) and made[-1].batch_size == 5
    assert set(SETTINGS) < {field.name for field in fields(Restore)} & {field.name for field in fields(Algorithm1)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a --set x=1 y=2 --flip b", "a --set x=1 --set y=2 --flip b"),
        ("--set x=1 --set y=2", "--set x=1 --set y=2"),
        ("--set", "--set"),
        ("--set --flip", "--set --flip"),
        ("--other x y --set z", "--other x y --set z"),
        ("--set x -- y z", "--set x -- y z"),
        ("--set x - y", "--set x --set - --set y"),
        ("--set=x y", "--set=x y"),
    ],
)
def test_a_flag_takes_several_values(line, expected):
    assert flags.spread(line.split(), ["--set"]) == expected.split()


@given(st.lists(st.sampled_from(["a", "b", "-x", "--set", "--", "-"])))
def test_nothing_gets_lost(args):
    spread = flags.spread(args, ["--set"])
    assert [arg for arg in spread if arg != "--set"] == [arg for arg in args if arg != "--set"]
    assert flags.spread(spread, ["--set"]) == spread
    assert flags.spread(args, []) == args


def test_numbers():
    assert [type(flags.number(text)) for text in ("20", "20.0", "20.5")] == [int, int, float]
    assert flags.numbers("8", "--x") == (8,) and flags.numbers("8,64", "--x") == (8, 64)
    for bad in ("", "8,", "8;9", "1.5"):
        with pytest.raises(ValueError, match="--x must be whole numbers with commas between, got"):
            flags.numbers(bad, "--x")


def test_nothing_of_a_machine_stands_in_the_help():
    assert str(Path.home()) not in Path(flags.__file__).read_text()
