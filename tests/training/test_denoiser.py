"""Training: settings, data, resuming, the moving average, and what a run leaves behind."""

import csv
import errno
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import UnitPrior
from contract import pixels
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load_file
from samples import Killed
from torchvision.transforms.v2 import functional

from sampdetox_transforms import Denoiser, Schedule, load_denoiser
from sampdetox_transforms.lab.metrics import denoise_once, psnr
from sampdetox_transforms.networks import checkpoints
from sampdetox_transforms.networks.checkpoints import CONFIG, LEVELS, SAFETENSORS, SCHEDULER
from sampdetox_transforms.networks.unet import UNet
from sampdetox_transforms.training import denoiser as training
from sampdetox_transforms.training import state as training_state
from sampdetox_transforms.training.config import TrainingConfig
from sampdetox_transforms.training.data import ImageCrops, ResumableSampler, list_images
from sampdetox_transforms.training.denoiser import denoising_loss, train
from sampdetox_transforms.training.loop import learning_rate_factor

LINEAR = Schedule.named("linear")
OUTPUTS = sorted([CONFIG, SCHEDULER, SAFETENSORS, LEVELS, "loss.csv"])
STATE = "training_state.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten random pictures, in a tree."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(10):
        path = folder / str(i % 2) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        functional.to_pil_image(pixels(3, 12, 10, dtype=torch.uint8, seed=i)).save(path)
    return folder


@pytest.fixture
def config(folder) -> TrainingConfig:
    """Four steps of the smallest network, in a few milliseconds each."""
    return TrainingConfig(
        data=(str(folder),),
        size=8,
        block_out_channels=(8, 8),
        network={"norm_num_groups": 4},
        steps=4,
        batch_size=4,
        warmup=1,
        workers=0,
        bf16=False,
        save_every=1,
    )


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / SAFETENSORS)


def assert_equal_weights(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def stop_at(step: int):
    def progress(done: int, loss: float) -> None:
        if done == step:
            raise Killed

    return progress


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "data must name one folder of images or more, got none"),
        ({"size": 0}, "size must be 1 or more, got 0"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"batch_size": -3}, "batch_size must be 1 or more, got -3"),
        ({"save_every": 0}, "save_every must be 1 or more, got 0"),
        ({"max_level": 0}, r"max_level must be in \[1, 1000\], got 0"),
        ({"max_level": 1001}, r"max_level must be in \[1, 1000\], got 1001"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"ema": -0.1}, "ema must be"),
        ({"zoom": 0.0}, r"zoom must be in \(0, 1\], got 0.0"),
        ({"zoom": 1.5}, "got 1.5"),
        ({"size": 7}, "size must be a multiple of 2 for this network, got 7"),
        ({"schedule": "sigmoid"}, "got 'sigmoid'"),
        ({"channels": 2}, "in_channels must be 1 or 3"),
        ({"network": {"shiny": 1}}, r"unknown \['shiny'\]"),
        ({"network": {"norm_num_groups": 3}}, "multiples of norm_num_groups"),
    ],
)
def test_setting_that_makes_no_sense_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


def test_network_has_no_attention_and_diffusers_keys(config):
    assert config.unet_config().attention_scales == ()
    assert config.unet_config().block_out_channels == (8, 8)
    assert replace(config, channels=1).unet_config().in_channels == 1


def test_learning_rate_warms_up_and_cools_down(config):
    config = replace(config, steps=100, warmup=9, cooldown=0.2)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(factors[9:81]) == {1.0}
    assert factors[80:] == pytest.approx([0.05 * i for i in range(20, 0, -1)])


# Data


def test_images_are_found_at_any_depth_and_a_folder_twice_counts_twice(folder):
    once = list_images([folder])
    assert len(once) == 10 and once == sorted(once)
    assert list_images([str(folder), folder]) == once * 2
    assert len(list_images([folder / "0", folder])) == 15


def test_other_files_are_passed_over(tmp_path):
    for name in ("a.PNG", "b.jpeg", "c.txt", "d.npy", "e.webp"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in list_images([tmp_path])] == ["a.PNG", "b.jpeg", "e.webp"]


def test_folder_without_images_or_not_there_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match=r"must hold images \(\.png, .*got none"):
        list_images([tmp_path])
    for wrong in (tmp_path / "nowhere", next(folder.rglob("*.png"))):
        with pytest.raises(FileNotFoundError, match=wrong.name):
            list_images([folder, wrong])


def test_refused_data_leaves_no_output_folder(config, tmp_path):
    with pytest.raises(FileNotFoundError):
        train(replace(config, data=(str(tmp_path / "nowhere"),)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unreadable_picture_is_named(config, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"broken\.png"):
        train(replace(config, data=(str(tmp_path / "data"),)), tmp_path / "out")


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_is_decided_by_its_key_alone(folder, channels):
    crops = ImageCrops(list_images([folder]), size=8, channels=channels, zoom=0.3)
    before = torch.get_rng_state()
    crop = crops[2, 77]
    assert torch.equal(torch.get_rng_state(), before)
    assert crop.shape == (channels, 8, 8) and type(crop) is torch.Tensor
    assert -1 <= float(crop.min()) < -0.2 and 0.2 < float(crop.max()) <= 1
    torch.manual_seed(5)
    assert torch.equal(crops[2, 77], crop)
    assert len({tuple(crops[2, key].flatten().tolist()) for key in range(8)}) > 4
    assert not torch.equal(crops[3, 77], crop)


def test_sampler_visits_all_in_every_epoch_and_goes_on_where_it_stopped():
    def take(first, count):
        return list(islice(ResumableSampler(7, seed=3, first=first), count))

    whole = take(0, 30)
    epochs = [[index for index, _ in whole[start : start + 7]] for start in (0, 7, 14, 21)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    assert len({key for _, key in whole}) == 30
    for first in (1, 7, 12):
        assert take(first, 30 - first) == whole[first:]
    assert list(islice(ResumableSampler(7, seed=4, first=0), 7)) != take(0, 7)


# The loss


def test_loss_of_the_true_noise_is_0_and_of_silence_its_square():
    x0, level = torch.rand(3, 3, 4, 4) * 2 - 1, torch.tensor([1, 60, 160])
    noise = torch.randn(3, 3, 4, 4)
    asked = []

    def oracle(x_t, t):
        asked.append(t)
        ab = LINEAR.alphas_cumprod[t][:, None, None, None].float()
        return (x_t - ab.sqrt() * x0) / (1 - ab).sqrt()

    torch.testing.assert_close(denoising_loss(oracle, LINEAR, x0, level, noise), torch.zeros(3), rtol=0, atol=1e-7)
    assert torch.equal(asked[0], level - 1)
    silence = denoising_loss(lambda x_t, t: torch.zeros_like(x_t), LINEAR, x0, level, noise)
    torch.testing.assert_close(silence, noise.square().mean(dim=(1, 2, 3)))


def test_levels_are_those_that_will_be_known_and_timesteps_one_less(config, tmp_path, monkeypatch):
    levels = []

    def spy(denoiser, schedule, x0, level, noise):
        levels.extend(level.tolist())
        assert schedule == LINEAR and x0.shape == (4, 3, 8, 8)
        return denoising_loss(denoiser, schedule, x0, level, noise)

    monkeypatch.setattr(training, "denoising_loss", spy)
    train(replace(config, max_level=3, steps=8), tmp_path)
    assert set(levels) == {1, 2, 3}


def test_loss_falls_on_flat_pictures(config, tmp_path):
    (tmp_path / "flat").mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i, 255 - 30 * i, 128)).save(tmp_path / "flat" / f"{i}.png")
    losses = []
    config = replace(config, data=(str(tmp_path / "flat"),), steps=40, batch_size=8, learning_rate=2e-2, save_every=40)
    train(config, tmp_path / "out", progress=lambda step, loss: losses.append(loss))
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    assert last < 0.5 * first


# Resuming


@pytest.mark.parametrize("killed_at", [2, 4])
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_run_resumes_to_the_same_weights(config, tmp_path, killed_at, workers):
    if workers and killed_at == 4:
        pytest.skip("one run with a worker is enough")
    config = replace(config, workers=workers, batch_size=3)
    train(config, tmp_path / "whole")
    with pytest.raises(Killed):
        train(config, tmp_path / "killed", progress=stop_at(killed_at))
    assert (tmp_path / "killed" / STATE).exists()
    steps = []
    train(config, tmp_path / "killed", progress=lambda step, loss: steps.append(step))
    assert steps == list(range(killed_at, 5))
    assert_equal_weights(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert (tmp_path / "killed" / "loss.csv").read_text() == (tmp_path / "whole" / "loss.csv").read_text()
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == OUTPUTS


def test_run_killed_after_its_last_step_only_finishes(config, tmp_path, monkeypatch):
    train(config, tmp_path / "whole")
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
    train(config, tmp_path / "killed")
    monkeypatch.undo()
    assert (tmp_path / "killed" / STATE).exists()
    train(config, tmp_path / "killed", progress=stop_at(1))
    assert_equal_weights(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert not (tmp_path / "killed" / STATE).exists()


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 1e-3}, {"max_level": 100}, {"batch_size": 2}, {"seed": 1}, {"ema": 0.5}], ids=str
)
def test_changed_settings_are_refused_and_nothing_is_lost(config, tmp_path, changes):
    with pytest.raises(Killed):
        train(config, tmp_path, progress=stop_at(2))
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(ValueError, match=r"resumed only with the settings.*remove that file to begin anew"):
        train(replace(config, **changes), tmp_path)
    assert (tmp_path / STATE).read_bytes() == before


def test_more_steps_are_no_other_settings(config, tmp_path):
    with pytest.raises(Killed):
        train(config, tmp_path, progress=stop_at(2))
    train(replace(config, steps=6, save_every=3), tmp_path)
    assert len((tmp_path / "loss.csv").read_text().splitlines()) == 7


# The moving average, and a start from other weights


def test_saved_weights_are_the_moving_average(config, tmp_path):
    config = replace(config, cooldown=0.0, warmup=0, learning_rate=1e-2)
    after = [weights(train(replace(config, steps=n, ema=0.0), tmp_path / str(n))) for n in (1, 2, 3)]
    torch.manual_seed(config.seed)
    average = UNet(config.unet_config()).state_dict()
    for step, value in enumerate(after):
        decay = min(0.15, (1 + step) / (10 + step))  # 0.1 at first, then 0.15
        average = {name: decay * average[name] + (1 - decay) * value[name] for name in average}
    saved = weights(train(replace(config, steps=3, ema=0.15), tmp_path / "ema"))
    for name, value in average.items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-6)
    assert max(float((saved[name] - after[-1][name]).abs().max()) for name in saved) > 1e-4


def test_training_moves_the_weights_and_the_seed_decides_where(config, tmp_path):
    seeds = {"first": 0, "again": 0, "other": 1}
    runs = [weights(train(replace(config, seed=seed), tmp_path / name)) for name, seed in seeds.items()]
    assert_equal_weights(runs[0], runs[1])
    assert not torch.equal(runs[0]["conv_in.weight"], runs[2]["conv_in.weight"])
    torch.manual_seed(0)
    start = UNet(config.unet_config()).state_dict()
    assert not torch.equal(runs[0]["conv_in.weight"], start["conv_in.weight"])


def test_init_is_where_fine_tuning_starts(config, tmp_path):
    train(replace(config, seed=9), tmp_path / "first")
    train(replace(config, learning_rate=0.0, ema=0.0), tmp_path / "second", init=tmp_path / "first")
    assert_equal_weights(weights(tmp_path / "second"), weights(tmp_path / "first"))


def test_init_of_another_network_is_refused(config, tmp_path):
    train(config, tmp_path / "first")
    with pytest.raises(ValueError, match="block_out_channels"):
        train(replace(config, block_out_channels=(8, 16)), tmp_path / "second", init=tmp_path / "first")


# What a run leaves behind


def test_outputs(config, folder, tmp_path):
    losses = []
    out = train(replace(config, max_level=77), tmp_path / "new" / "out", progress=lambda *args: losses.append(args))
    assert out == tmp_path / "new" / "out"
    assert sorted(path.name for path in out.iterdir()) == OUTPUTS
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    with (out / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["step"]), pytest.approx(float(row["loss"]), rel=1e-5)) for row in rows] == losses
    about = json.loads((out / LEVELS).read_text())
    assert about["max_level"] == 77
    assert (about["training"]["steps"], about["training"]["done"]) == (4, 4)
    [data] = about["training"]["data"]
    assert data.endswith(folder.name)
    assert str(folder.parent) not in (out / LEVELS).read_text(), "it tells of folders on the machine it came from"


def test_result_is_read_by_us_and_by_diffusers(config, tmp_path):
    out = train(replace(config, max_level=77, schedule="cosine"), tmp_path)
    ours = load_denoiser(out)
    assert ours.max_level == 77 and ours.schedule == Schedule.named("cosine")
    theirs, report = UNet2DModel.from_pretrained(out, output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(report.values())
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([0, 76])
    with torch.no_grad():
        torch.testing.assert_close(ours(x_t, t), theirs(x_t, t).sample, rtol=0, atol=1e-5)


def test_grey_network_in_half_precision(config, tmp_path):
    out = train(replace(config, channels=1, half=True), tmp_path)
    assert {value.dtype for value in weights(out).values()} == {torch.float16}
    denoiser = load_denoiser(out)
    assert denoiser.channels == 1 and denoiser.dtype == torch.float32


def test_bfloat16_trains_too(config, tmp_path):
    exact, rounded = (weights(train(replace(config, bf16=bf16), tmp_path / str(bf16))) for bf16 in (False, True))
    assert all(value.isfinite().all() for value in rounded.values())
    assert rounded["conv_in.weight"].dtype == torch.float32
    assert not torch.equal(exact["conv_in.weight"], rounded["conv_in.weight"])


@pytest.mark.parametrize("module", [checkpoints, training_state], ids=["result", "state"])
def test_full_disk_leaves_the_last_checkpoint_whole(config, tmp_path, monkeypatch, module):
    save_file, calls = module.save_file, []

    def run_out_of_space(tensors, path, *args):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, *args)

    train(config, tmp_path / "whole")
    monkeypatch.setattr(module, "save_file", run_out_of_space)
    with pytest.raises(OSError, match="No space left"):
        train(config, tmp_path / "full")
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == sorted([*OUTPUTS, STATE])
    assert_equal_weights(weights(tmp_path / "full"), weights(train(replace(config, steps=1), tmp_path / "one")))
    load_denoiser(tmp_path / "full")
    monkeypatch.undo()
    train(config, tmp_path / "full")
    assert_equal_weights(weights(tmp_path / "full"), weights(tmp_path / "whole"))


# Measuring a denoiser


def test_psnr_of_a_known_error():
    x0 = torch.zeros(2, 3, 4, 4)
    restored = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), -0.02)])
    torch.testing.assert_close(psnr(x0, restored), torch.tensor([20.0, 40.0]))


def test_one_call_of_an_exact_denoiser_is_the_posterior_mean():
    x0, sigma = torch.randn(2, 3, 8, 8).clamp(-3, 3) / 4, 0.3
    denoiser = Denoiser(UnitPrior(), LINEAR)
    result = denoise_once(denoiser, x0, sigma, torch.Generator().manual_seed(1))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(result, ((x0 + sigma * noise) / (1 + sigma**2)).clamp(-1, 1), rtol=0, atol=2e-2)
