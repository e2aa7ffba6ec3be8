"""Checkpoint files: written and read, strict, in diffusers' format, and refused where they are not what they claim."""

import hashlib
import json
import re
import shutil
import time

import pytest
import torch
from checkpoint_tools import edit_json, edit_weights, predict, to_pickle
from conftest import UnitPrior, tiny_config, write_tiny
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

from sampdetox_transforms import Schedule, WeightsFileError, load_denoiser
from sampdetox_transforms.networks import checkpoints
from sampdetox_transforms.networks.checkpoints import (
    CONFIG,
    LEVELS,
    PICKLED,
    SAFETENSORS,
    SCHEDULER,
    read_checkpoint,
    save_checkpoint,
)
from sampdetox_transforms.networks.denoiser import adapt
from sampdetox_transforms.networks.unet import UNet

LINEAR = Schedule.named("linear")


# Writing and reading


@pytest.mark.parametrize("schedule", [LINEAR, Schedule.named("cosine"), Schedule([0.1, 0.2, 0.3])], ids=str)
@pytest.mark.parametrize("max_level", [3, None])
def test_round_trip(tmp_path, schedule, max_level):
    network = UNet(tiny_config()).eval()
    about = {} if max_level is None else {"max_level": max_level}
    save_checkpoint(tmp_path / "new" / "folder", network.config, network.state_dict(), schedule, about)
    read = load_denoiser(str(tmp_path / "new" / "folder"))
    assert read.network.config == network.config
    assert read.schedule == schedule
    assert read.max_level == (max_level or schedule.num_levels)
    assert (read.channels, read.size_multiple, read.attention_scales) == (3, 2, ())
    assert read.source == str(tmp_path / "new" / "folder")
    for name, value in network.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], value)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(
        [CONFIG, SCHEDULER, LEVELS, SAFETENSORS]
    )


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(1, resnet_time_scale_shift="scale_shift", downsample_padding=0, freq_shift=1),
        tiny_config(down_block_types=("DownBlock2D", "AttnDownBlock2D"), add_attention=True, flip_sin_to_cos=False),
    ],
)
def test_diffusers_reads_the_folder_and_predicts_the_same(tmp_path, config):
    folder = write_tiny(tmp_path, config=config)
    theirs, report = UNet2DModel.from_pretrained(folder, output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(report.values())
    batch = (2, config.in_channels, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(predict(load_denoiser(folder), batch), predict(theirs, batch), rtol=0, atol=1e-5)
    scheduler = DDPMScheduler.from_pretrained(folder)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), LINEAR.alphas_cumprod, rtol=1e-5, atol=0)
    assert scheduler.config.prediction_type == "epsilon"


def test_float16_storage_halves_the_file_and_is_read_as_float32(tmp_path):
    network = UNet(tiny_config()).eval()
    save_checkpoint(tmp_path, network.config, network.state_dict(), LINEAR, {}, torch.float16)
    assert {value.dtype for value in load_file(tmp_path / SAFETENSORS).values()} == {torch.float16}
    read = load_denoiser(tmp_path)
    assert read.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(predict(read), predict(network), rtol=0, atol=5e-3)
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}


def test_weights_file_is_as_readable_as_its_neighbours(tiny):
    assert (tiny / SAFETENSORS).stat().st_mode == (tiny / CONFIG).stat().st_mode


def test_pipeline_layout_is_read(tmp_path, tiny, tiny_denoiser):
    for folder, names in (("unet", (CONFIG, SAFETENSORS)), ("scheduler", (SCHEDULER,)), (".", (LEVELS,))):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            shutil.copy(tiny / name, tmp_path / folder / name)
    read = load_denoiser(tmp_path)
    assert read.max_level == 160
    assert torch.equal(predict(read), predict(tiny_denoiser))


# Strict loading

KEY = "down_blocks.0.resnets.0.conv1.weight"


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda state: state.pop(KEY), f"missing {KEY}"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda state: state.update({KEY: torch.zeros(8, 4, 3, 3)}), f"{KEY} of shape (8, 4, 3, 3), not (8, 8, 3, 3)"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_key_that_does_not_fit_is_named(tiny_copy, edit, problem):
    edit_weights(tiny_copy, edit)
    with pytest.raises(ValueError, match=r"must fit their config\.json") as caught:
        load_denoiser(tiny_copy)
    assert problem in str(caught.value) and str(tiny_copy) in str(caught.value)


def test_many_misfits_are_counted_and_some_are_named(tiny_copy):
    edit_json(tiny_copy / CONFIG, block_out_channels=[16, 16])
    with pytest.raises(ValueError, match=r"conv_in\.weight of shape \(8, 3, 3, 3\).* and \d+ more"):
        load_denoiser(tiny_copy)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_weights_are_refused(tiny_copy, length):
    content = (tiny_copy / SAFETENSORS).read_bytes()
    (tiny_copy / SAFETENSORS).write_bytes(content[:length])
    with pytest.raises(WeightsFileError, match=SAFETENSORS):
        load_denoiser(tiny_copy)


@pytest.mark.parametrize("name", [CONFIG, SCHEDULER, SAFETENSORS])
def test_missing_file_is_named(tiny_copy, name):
    (tiny_copy / name).unlink()
    with pytest.raises(WeightsFileError, match=name) as caught:
        load_denoiser(tiny_copy)
    assert isinstance(caught.value, OSError) and str(tiny_copy) in str(caught.value)


@pytest.mark.parametrize("name", [CONFIG, SCHEDULER, LEVELS])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe\x00"], ids=["cut", "list", "not-text"])
def test_file_that_is_not_a_json_object_is_named(tiny_copy, name, content):
    (tiny_copy / name).write_bytes(content)
    with pytest.raises(WeightsFileError, match=name):
        load_denoiser(tiny_copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shiny": 1, "other": 2}, r"unknown \['other', 'shiny'\]"),
        ({"down_block_types": ["DownBlock2D", "KDownBlock2D"]}, r"down_block_types.*\['KDownBlock2D'\]"),
        ({"up_block_types": ["UpBlock2D", "SkipUpBlock2D"]}, r"up_block_types.*\['SkipUpBlock2D'\]"),
        ({"act_fn": "gelu"}, "act_fn must be 'silu', got 'gelu'"),
        ({"in_channels": 4, "out_channels": 4}, "in_channels must be 1 or 3"),
        ({"out_channels": 6}, "out_channels must be equal"),
        ({"block_out_channels": [8]}, "equally long"),
        ({"norm_num_groups": 3}, "multiples of norm_num_groups"),
    ],
)
def test_config_that_is_not_supported_is_refused_by_name(tiny_copy, changes, message):
    edit_json(tiny_copy / CONFIG, **changes)
    with pytest.raises(ValueError, match=message):
        load_denoiser(tiny_copy)


def test_notes_of_diffusers_in_the_config_are_skipped(tiny_copy):
    edit_json(tiny_copy / CONFIG, _diffusers_version="0.1", _anything=3)
    assert load_denoiser(tiny_copy).channels == 3


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_network_that_does_not_predict_the_noise_is_refused(tiny_copy, prediction):
    edit_json(tiny_copy / SCHEDULER, prediction_type=prediction)
    with pytest.raises(ValueError, match=f"'epsilon'.*got '{prediction}'"):
        load_denoiser(tiny_copy)
    with pytest.raises(ValueError, match=f"'epsilon'.*got '{prediction}'"):
        adapt(UnitPrior(), DDPMScheduler(prediction_type=prediction))


def test_schedule_of_the_scheduler_config_is_read(tiny_copy):
    edit_json(tiny_copy / SCHEDULER, beta_schedule="squaredcos_cap_v2")
    assert load_denoiser(tiny_copy).schedule == Schedule.named("cosine")
    edit_json(tiny_copy / SCHEDULER, beta_schedule="linear", beta_end=0.03, num_train_timesteps=500)
    assert load_denoiser(tiny_copy).schedule == Schedule.named("linear", num_levels=500, beta_end=0.03)
    edit_json(tiny_copy / SCHEDULER, beta_schedule="sigmoid")
    with pytest.raises(ValueError, match="got 'sigmoid'"):
        load_denoiser(tiny_copy)


@pytest.mark.parametrize("level", [0, -1, 1001, 12.5, "120", True, [120], [8] * 10_000])
def test_max_level_that_is_no_level_is_refused(tiny_copy, level):
    (tiny_copy / LEVELS).write_text(json.dumps({"max_level": level}))
    with pytest.raises(ValueError, match=r"max_level must be a whole number in \[1, 1000\], got") as caught:
        load_denoiser(tiny_copy)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [None, "{}", '{"max_level": null}'])
def test_without_a_max_level_all_levels_are_known(tiny_copy, content):
    (tiny_copy / LEVELS).unlink()
    if content is not None:
        (tiny_copy / LEVELS).write_text(content)
    assert load_denoiser(tiny_copy).max_level == 1000


# Pickled weights


def test_pickled_weights_are_read(tiny_copy, tiny_denoiser):
    to_pickle(tiny_copy, load_file(tiny_copy / SAFETENSORS))
    assert torch.equal(predict(load_denoiser(tiny_copy)), predict(tiny_denoiser))


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickle_that_runs_code_is_refused_and_does_not_run(tiny_copy, tmp_path):
    marker = tmp_path / "created"
    to_pickle(tiny_copy, {"conv_in.weight": Payload(marker)})
    with pytest.raises(WeightsFileError, match="weights_only=True"):
        load_denoiser(tiny_copy)
    assert not marker.exists()
    torch.load(tiny_copy / PICKLED, weights_only=False)["conv_in.weight"].close()
    assert marker.exists(), "the payload is harmless: this test shows nothing"


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"conv_in.weight": torch.zeros(1)}}, {"epoch": 3}])
def test_pickle_that_is_no_state_dict_is_refused(tiny_copy, content):
    to_pickle(tiny_copy, content)
    with pytest.raises((WeightsFileError, ValueError)):
        load_denoiser(tiny_copy)


def test_truncated_pickle_is_refused(tiny_copy):
    to_pickle(tiny_copy, load_file(tiny_copy / SAFETENSORS))
    content = (tiny_copy / PICKLED).read_bytes()
    (tiny_copy / PICKLED).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsFileError, match=PICKLED):
        load_denoiser(tiny_copy)


def hashes(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_hash_guards_pickled_weights_too(tiny_copy):
    to_pickle(tiny_copy, load_file(tiny_copy / SAFETENSORS))
    pins = hashes(tiny_copy)
    read_checkpoint(tiny_copy, sha256=pins)
    with pytest.raises(WeightsFileError, match=f"{PICKLED} must have the sha256 0000"):
        read_checkpoint(tiny_copy, sha256=pins | {PICKLED: "0" * 64})


@pytest.mark.parametrize("name", [CONFIG, SCHEDULER, LEVELS, SAFETENSORS])
def test_hash_guards_every_file_that_is_read(tiny_copy, name):
    pins = hashes(tiny_copy)
    read_checkpoint(tiny_copy, sha256=pins)
    if name == SAFETENSORS:
        edit_weights(tiny_copy, lambda state: state[KEY].add_(1e-6))
    else:
        (tiny_copy / name).write_bytes((tiny_copy / name).read_bytes() + b" ")
    read_checkpoint(tiny_copy)
    with pytest.raises(WeightsFileError, match=f"{name} must have the sha256 {pins[name]}, got [0-9a-f]{{64}}"):
        read_checkpoint(tiny_copy, sha256=pins)
    del pins[name]
    with pytest.raises(WeightsFileError, match=f"may hold only .*got .*{name} as well, of which no hash is known"):
        read_checkpoint(tiny_copy, sha256=pins)


def test_architecture_and_schedule_pin_what_the_files_say(tiny_copy):
    pins = hashes(tiny_copy)
    del pins[CONFIG], pins[SCHEDULER]
    read_checkpoint(tiny_copy, sha256=pins, architecture=tiny_config(), schedule=LINEAR)
    with pytest.raises(WeightsFileError, match=f"{CONFIG} of .* must say UNetConfig.*got UNetConfig.*not the pinned"):
        read_checkpoint(tiny_copy, sha256=pins, architecture=tiny_config(norm_eps=1e-4), schedule=LINEAR)
    with pytest.raises(WeightsFileError, match=f"{SCHEDULER} of .* must say Schedule.*not the pinned"):
        read_checkpoint(tiny_copy, sha256=pins, architecture=tiny_config(), schedule=Schedule.named("cosine"))


# What an untrusted file asks for


class Built(Exception):
    """Something was made of weights that do not fit."""


@pytest.fixture
def nothing_built(monkeypatch):
    """No weight is read and no memory is taken, whatever the test does."""

    def fail(*args, **kwargs):
        raise Built

    monkeypatch.setattr(checkpoints, "filled", fail)
    monkeypatch.setattr(checkpoints, "load_file", fail)
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda x, *a, **k: x if x.is_meta else fail())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": [8192, 8192]}, r"block_out_channels\[0\] must be a whole number in \[1, 4096\]"),
        ({"block_out_channels": [8, 4096]}, r"must fit their config\.json"),
        ({"block_out_channels": [10**30, 8]}, r"block_out_channels\[0\] must be"),
        ({"layers_per_block": 10**6}, r"layers_per_block must be a whole number in \[1, 16\], got 1000000"),
        ({"layers_per_block": 16}, r"must fit their config\.json"),
        ({"time_embedding_dim": 10**9}, "time_embedding_dim must be"),
        ({"norm_num_groups": 10**9}, "norm_num_groups must be"),
        ({"down_block_types": ["DownBlock2D"] * 50, "up_block_types": ["UpBlock2D"] * 50,
          "block_out_channels": [8] * 50}, "must have at most 10 entries, got 50"),
    ],
)  # fmt: skip
def test_numbers_that_ask_for_too_much_are_refused_before_anything_is_built(tiny_copy, nothing_built, changes, message):
    edit_json(tiny_copy / CONFIG, **changes)
    start = time.process_time()
    with pytest.raises(ValueError, match=message):
        load_denoiser(tiny_copy)
    assert time.process_time() - start < 5


NO_NUMBERS = (None, [], [8], {}, {"a": 1}, "8", True, -1, 1e308, 0.5, 10**400, [[[[8]]]])


@pytest.mark.parametrize("key", sorted(tiny_config().to_dict()))
def test_every_value_of_the_config_has_its_rule(tiny_copy, nothing_built, key):
    """Whatever stands there is taken, or refused with the rule, the value and what to do."""
    for value in NO_NUMBERS:
        edit_json(tiny_copy / CONFIG, **{key: value})
        with pytest.raises((Built, ValueError)) as caught:
            load_denoiser(tiny_copy)
        if caught.type is not Built:
            assert re.search(r"(?s)must .*, got .*\. [A-Z].*\.$", str(caught.value))
            assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", [CONFIG, SCHEDULER, LEVELS])
def test_json_that_is_deep_or_long_is_refused(tiny_copy, nothing_built, name):
    """Deep JSON ends the parser, and a long file is not read."""
    (tiny_copy / name).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(WeightsFileError, match=f"{name} must be a flat JSON file, got one nested too deeply. Fetch"):
        load_denoiser(tiny_copy)
    (tiny_copy / name).write_text("{}" + " " * 2**20)
    with pytest.raises(WeightsFileError, match=f"{name} must have 1048576 bytes or fewer, got 1048578. Take weights"):
        load_denoiser(tiny_copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_timesteps": 10**12}, r"num_train_timesteps must be a whole number in \[1, 100000\], got 10{12}"),
        ({"num_train_timesteps": None}, "num_train_timesteps must be .*got None"),
        ({"num_train_timesteps": [1000]}, r"num_train_timesteps must be .*got \[1000\]"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be .*got 0"),
        ({"trained_betas": [0.1] * 100_001}, r"trained_betas must be a list of at most 100000 .*\(100001 of them\)"),
        ({"trained_betas": 0.5}, "trained_betas must be a list"),
        ({"trained_betas": [0.1, None]}, "trained_betas must be a list"),
        ({"trained_betas": [0.1, [0.1]]}, "trained_betas must be a list"),
        ({"trained_betas": [0.1, True]}, "trained_betas must be a list|betas must be a non-empty list"),
        ({"trained_betas": []}, "betas must be a non-empty list"),
        ({"beta_start": None}, r"beta_start must be a number in \(0, 1\), got None"),
        ({"beta_end": 10**400}, "beta_end must be a number"),
        ({"beta_end": "0.02"}, "beta_end must be a number"),
        ({"beta_end": 0}, "betas must be a non-empty list of numbers in"),
        ({"beta_schedule": ["linear"]}, "beta_schedule must be a name"),
        ({"prediction_type": ["epsilon"]}, "must predict the noise"),
        ({"prediction_type": None}, "must predict the noise"),
        ({"beta_schedule": "x" * 100_000}, "beta_schedule must be a name"),
        ({"prediction_type": "x" * 100_000}, "must predict the noise"),
    ],
)
def test_schedule_that_asks_for_too_much_or_is_none_is_refused(tiny_copy, nothing_built, changes, message):
    edit_json(tiny_copy / SCHEDULER, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_denoiser(tiny_copy)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [SAFETENSORS, PICKLED])
def test_weights_that_are_not_finite_are_refused_by_name(tiny_copy, value, kind):
    edit_weights(tiny_copy, lambda state: state[KEY].view(-1)[5].fill_(value))
    if kind == PICKLED:
        to_pickle(tiny_copy, load_file(tiny_copy / SAFETENSORS))
    with pytest.raises(WeightsFileError, match=f"finite numbers, got NaN or infinity in {re.escape(KEY)}. Fetch"):
        load_denoiser(tiny_copy)


def test_weights_that_are_no_floating_point_numbers_are_refused_by_name(tiny_copy):
    edit_weights(tiny_copy, lambda state: state.update({KEY: state[KEY].int()}))
    with pytest.raises(WeightsFileError, match=f"floating-point weights, got others in {re.escape(KEY)}. Fetch"):
        load_denoiser(tiny_copy)
