"""Checkpoint files: written and read, strict, in diffusers' format, and refused where they are not what they claim."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import UnitPrior, tiny_config, write_tiny
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from sampdetox_transforms import Denoiser, DetoxWeights, Schedule, WeightsFileError, load_denoiser
from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.networks import checkpoints as checkpoints_module
from sampdetox_transforms.networks.catalogue import BUNDLED_FOLDER, parse_weights
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
from sampdetox_transforms.networks.hub import HubRepo
from sampdetox_transforms.networks.tiles import MAX_SIDE
from sampdetox_transforms.networks.unet import UNet

LINEAR = Schedule.named("linear")
BATCH = (2, 3, 8, 12)


def predict(network, batch=BATCH) -> torch.Tensor:
    x_t = torch.randn(batch, generator=torch.Generator().manual_seed(3))
    eps = network(x_t, torch.tensor([4, 150])[: batch[0]])
    return getattr(eps, "sample", eps)


def edit_json(path, **changes) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def edit_weights(folder, edit) -> None:
    state = load_file(folder / SAFETENSORS)
    edit(state)
    save_file(state, folder / SAFETENSORS)


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


def test_write_atomically_replaces_the_file_or_leaves_it_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with path.open() as reader:
        write_atomically(path, lambda part: part.write_text("new"))
        assert reader.read() == "old", "the file is written over, not replaced: a kill would leave half of it"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


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


@pytest.mark.parametrize("level", [0, -1, 1001, 12.5, "120", True, [120]])
def test_max_level_that_is_no_level_is_refused(tiny_copy, level):
    (tiny_copy / LEVELS).write_text(json.dumps({"max_level": level}))
    with pytest.raises(ValueError, match=r"max_level must be a whole number in \[1, 1000\], got"):
        load_denoiser(tiny_copy)


@pytest.mark.parametrize("content", [None, "{}", '{"max_level": null}'])
def test_without_a_max_level_all_levels_are_known(tiny_copy, content):
    (tiny_copy / LEVELS).unlink()
    if content is not None:
        (tiny_copy / LEVELS).write_text(content)
    assert load_denoiser(tiny_copy).max_level == 1000


# Pickled weights


def to_pickle(folder, content) -> None:
    (folder / SAFETENSORS).unlink()
    torch.save(content, folder / PICKLED)


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


# What ``weights`` may be


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ("bundled", DetoxWeights.BUNDLED),
        ("BUNDLED", DetoxWeights.BUNDLED),
        ("Ddpm-Cifar10-32", DetoxWeights.DDPM_CIFAR10_32),
        ("ddpm_cifar10_32", DetoxWeights.DDPM_CIFAR10_32),
        ("default", DetoxWeights.DDPM_CIFAR10_32),
        ("google/ddpm-cifar10-32", DetoxWeights.DDPM_CIFAR10_32),
    ],
)
def test_names_are_taken_in_any_case(text, member):
    assert parse_weights(text) is member


def test_default_weights_are_pinned():
    meta = DetoxWeights.DEFAULT.meta
    assert DetoxWeights.DEFAULT is DetoxWeights.DDPM_CIFAR10_32
    assert (meta.repo, meta.licence) == ("google/ddpm-cifar10-32", "Apache-2.0")
    assert meta.revision == "267b167dc01f0e4e61923ea244e8b988f84deb80"
    assert meta.sha256 == "1558dbe3fb093b0857d473e376b711eeda1b186c557be5e85b3a56300cd49f0f"


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("user/repo", "user/repo", None),
        ("user-1/re.po_2@main", "user-1/re.po_2", "main"),
        ("user/repo@refs/pr/1", "user/repo", "refs/pr/1"),
        ("user/repo@" + "a" * 40, "user/repo", "a" * 40),
    ],
)
def test_repository_is_told_from_its_revision(text, repo, revision):
    assert parse_weights(text) == HubRepo(repo, revision)
    assert str(parse_weights(text)) == text


def test_folder_comes_before_a_repository_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "repo").mkdir(parents=True)
    assert parse_weights("user/repo") == (tmp_path / "user" / "repo").relative_to(tmp_path)
    (tmp_path / "google" / "ddpm-cifar10-32").mkdir(parents=True)
    assert parse_weights("google/ddpm-cifar10-32") == (tmp_path / "google" / "ddpm-cifar10-32").relative_to(tmp_path)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("bundeld", "Did you mean BUNDLED"),
        ("ddpm-cifar10", "Did you mean DDPM_CIFAR10_32"),
        ("zzz", "weights='bundled' needs no network"),
        ("user/repo@", "weights='bundled' needs no network"),
        ("a/b/c", "'user/repo[@revision]'"),
        ("user/re po", "'user/repo[@revision]'"),
        ("../nowhere", "an existing folder"),
        ("/nowhere/at/all", "an existing folder"),
        ("", "an existing folder"),
    ],
)
def test_text_that_names_nothing_is_refused_with_a_hint(text, hint):
    with pytest.raises(ValueError, match="weights must be one of") as caught:
        parse_weights(text)
    assert hint in str(caught.value) and repr(text) in str(caught.value)


def test_folder_that_is_not_there_is_a_file_error(tmp_path):
    with pytest.raises(WeightsFileError, match="nowhere"):
        load_denoiser(tmp_path / "nowhere")
    with pytest.raises(WeightsFileError, match=CONFIG):
        load_denoiser(tmp_path)


def test_denoiser_is_taken_as_it_is(fast_denoiser):
    assert load_denoiser(fast_denoiser) is fast_denoiser


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        ("linear", "linear"),
        (LINEAR, "linear"),
        (DDPMScheduler(), "linear"),
        ("squaredcos_cap_v2", "cosine"),
        (DDPMScheduler(beta_schedule="squaredcos_cap_v2"), "cosine"),
    ],
    ids=["name", "Schedule", "scheduler", "alias", "cosine-scheduler"],
)
def test_callable_with_any_kind_of_schedule(schedule, name):
    denoiser = load_denoiser((lambda x_t, t: x_t / 2, schedule))
    torch.testing.assert_close(denoiser.schedule.betas, Schedule.named(name).betas, rtol=1e-4, atol=1e-7)
    assert (denoiser.channels, denoiser.size_multiple, denoiser.max_level, denoiser.device) == (3, 1, 1000, None)
    x_t = torch.randn(1, 3, 5, 7)
    assert torch.equal(denoiser(x_t, torch.tensor([3])), x_t / 2)


@pytest.mark.parametrize("as_pipeline", [False, True])
def test_diffusers_network_object_is_taken_with_its_sizes(as_pipeline):
    network = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
    ).train()
    scheduler = DDPMScheduler()
    denoiser = load_denoiser(DDPMPipeline(network, scheduler) if as_pipeline else (network, scheduler))
    assert (denoiser.channels, denoiser.size_multiple, denoiser.attention_scales) == (1, 4, (2, 4))
    assert not network.training
    with torch.no_grad():
        ours, theirs = predict(denoiser, (2, 1, 8, 12)), predict(network, (2, 1, 8, 12))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert predict(denoiser, (2, 1, 5, 7)).shape == (2, 1, 5, 7)


def test_own_network_object_is_taken_with_its_sizes():
    denoiser = adapt(UNet(tiny_config(1, add_attention=True)), "linear")
    assert (denoiser.channels, denoiser.size_multiple, denoiser.attention_scales) == (1, 2, (2,))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda x_t, t: x_t, r"must come with the schedule.*weights=\(network, 'linear'\)"),
        (nn.Identity(), "must come with the schedule.*got Identity alone"),
        ((UnitPrior(), 3), "must be a Schedule.*got int"),
        (3, "weights must be.*got int"),
        (None, "weights must be.*got NoneType"),
        (("network", "linear"), "weights must be.*got tuple"),
    ],
)
def test_what_is_no_denoiser_is_a_type_error(weights, message):
    with pytest.raises(TypeError, match=message):
        load_denoiser(weights)


# The denoiser


class Recorder(nn.Module):
    """Returns what it gets, and keeps it."""

    def forward(self, x_t, t):
        self.seen = x_t
        return x_t


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 16), (9, 8), (3, 33)])
def test_denoiser_pads_symmetrically_and_crops_back(size):
    recorder = Recorder()
    denoiser = Denoiser(recorder, LINEAR, size_multiple=8)
    x_t = torch.randn(2, 3, *size)
    assert torch.equal(denoiser(x_t, torch.tensor([1, 2])), x_t)
    borders = [(-length % 8 // 2, -length % 8 - -length % 8 // 2) for length in size]
    expected = np.pad(x_t.numpy(), [(0, 0), (0, 0), *borders], mode="symmetric")
    assert np.array_equal(recorder.seen.numpy(), expected)
    assert not any(length % 8 for length in expected.shape[2:])


def test_denoiser_computes_in_the_dtype_of_the_network_and_answers_in_that_of_the_image(tiny_denoiser):
    seen = []
    tiny_denoiser.network.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    exact = predict(tiny_denoiser)
    rounded = predict(tiny_denoiser.set_precision(torch.bfloat16))
    assert seen == [torch.float32, torch.bfloat16]
    assert tiny_denoiser.dtype == torch.bfloat16 and rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 0.1


def test_denoiser_stays_in_eval_mode_inside_a_module_that_trains():
    network = UNet(tiny_config(dropout=0.5)).train()
    denoiser = adapt(network, "linear")
    outer = nn.Sequential(nn.Linear(1, 1), denoiser)
    for _ in range(2):
        assert not any(module.training for module in denoiser.modules())
        assert torch.equal(predict(denoiser), predict(denoiser))
        assert outer.train().training


def test_denoiser_parameters_get_no_gradients_and_images_do(tiny_denoiser):
    assert not any(parameter.requires_grad for parameter in tiny_denoiser.parameters())
    x_t = torch.randn(1, 3, 5, 5, requires_grad=True)
    tiny_denoiser(x_t, torch.tensor([9])).square().sum().backward()
    assert x_t.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tiny_denoiser.parameters())


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_denoiser_of_another_channel_count_is_refused(channels):
    with pytest.raises(ValueError, match=f"channels must be 1 or 3, got {channels}"):
        Denoiser(UnitPrior(), LINEAR, channels=channels)


def test_tiles_are_no_larger_than_the_attention_takes():
    denoiser = Denoiser(UnitPrior(), LINEAR, size_multiple=4, attention_scales=(2, 4))
    assert denoiser.largest_side == 256
    assert Denoiser(UnitPrior(), LINEAR).largest_side == MAX_SIDE


def test_attention_scales_are_read_from_the_config(tmp_path):
    config = tiny_config(down_block_types=("AttnDownBlock2D", "DownBlock2D"), add_attention=True)
    denoiser = read_checkpoint(write_tiny(tmp_path, config=config))
    assert denoiser.attention_scales == (1, 2)
    assert denoiser.largest_side == 128


# The bundled weights


def test_bundled_weights_load_with_their_pinned_hash():
    denoiser = load_denoiser("bundled")
    assert denoiser.source == "bundled"
    assert denoiser.attention_scales == () and denoiser.channels == 3
    assert 121 <= denoiser.max_level < 1000, "the authors' levels need 121"
    eps = predict(denoiser, (1, 3, 32, 32))
    assert eps.shape == (1, 3, 32, 32) and bool(eps.isfinite().all())
    size = sum(path.stat().st_size for path in BUNDLED_FOLDER.iterdir())
    assert size <= 10 * 2**20
    assert abs(DetoxWeights.BUNDLED.meta.size_mb - size / 1e6) < 0.1


def test_bundled_weights_with_one_bit_flipped_are_refused(tmp_path, monkeypatch):
    copy = tmp_path / "bundled"
    shutil.copytree(BUNDLED_FOLDER, copy)
    content = bytearray((copy / SAFETENSORS).read_bytes())
    content[-1] ^= 1
    (copy / SAFETENSORS).write_bytes(content)
    read_checkpoint(copy)  # nothing but the hash tells
    monkeypatch.setattr(checkpoints_module, "BUNDLED_FOLDER", copy)
    with pytest.raises(WeightsFileError, match=f"sha256 {DetoxWeights.BUNDLED.meta.sha256}, got [0-9a-f]{{64}}"):
        load_denoiser("bundled")


def test_hash_guards_pickled_weights_too(tiny_copy):
    to_pickle(tiny_copy, load_file(tiny_copy / SAFETENSORS))
    with pytest.raises(WeightsFileError, match="must have the sha256"):
        read_checkpoint(tiny_copy, sha256="0" * 64)
