"""``sampdetox train``, on four pictures and a network of 10,000 parameters."""

from dataclasses import fields

import pytest
import torch
from cli_pictures import colours, files, pixels, save
from safetensors import SafetensorError
from safetensors.torch import load_file

from sampdetox_transforms import load_denoiser
from sampdetox_transforms.cli import train as cli
from sampdetox_transforms.networks.checkpoints import SAFETENSORS
from sampdetox_transforms.training import denoiser as training
from sampdetox_transforms.training.config import TrainingConfig

TINY_RUN = (
    *("--size", 8, "--block-out-channels", "8,8", "--batch-size", 2),
    *("--workers", 0, "--no-bf16", "--warmup", 0, "--device", "cpu", "--only-denoiser"),
)


def train_tiny(run, tmp_path, out: str, *flags) -> tuple[int, str, str]:
    if not (tmp_path / "data").exists():
        for i in range(4):
            save(tmp_path / f"data/{i % 2}/{i}.png", colours(i, (10, 10, 3)))
    return run("train", tmp_path / "data", tmp_path / out, *TINY_RUN, *flags)


def test_train_resumes_after_a_kill_and_the_result_loads(run, tmp_path, monkeypatch):
    kept = cli.training_progress
    seen = []

    def stopping(bar, last):
        def progress(name, step, total, loss):
            assert (name, total) == ("denoiser", 6)
            seen.append(step)
            if step > last:
                raise KeyboardInterrupt

        return progress

    flags = ("--steps", 6, "--save-every", 3)
    monkeypatch.setattr(cli, "training_progress", lambda bar: stopping(bar, last=3))
    assert train_tiny(run, tmp_path, "out", *flags)[0] == 130
    assert seen == [1, 2, 3, 4] and "loss.png" not in files(tmp_path / "out")
    seen.clear()
    monkeypatch.setattr(cli, "training_progress", lambda bar: stopping(bar, last=6))
    status, out, err = train_tiny(run, tmp_path, "out", *flags)
    assert (status, err) == (0, "")
    assert seen == [4, 5, 6]
    assert "trained 6 steps" in out and f"--weights {tmp_path / 'out'}" in out
    assert files(tmp_path / "out") == sorted(
        ["config.json", SAFETENSORS, "loss.csv", "loss.png", "sampdetox.json", "scheduler_config.json"]
    )
    assert pixels(tmp_path / "out/loss.png").shape[1] > 500

    monkeypatch.setattr(cli, "training_progress", kept)
    assert train_tiny(run, tmp_path, "whole", *flags)[0] == 0
    resumed, whole = (load_file(tmp_path / name / SAFETENSORS) for name in ("out", "whole"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)

    denoiser = load_denoiser(str(tmp_path / "out"))
    assert denoiser.max_level == 160
    x, t = torch.rand(1, 3, 8, 8), torch.tensor([50])
    model = pytest.importorskip("diffusers").UNet2DModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(denoiser(x, t), model(x, t).sample, atol=1e-5)


def test_train_starts_from_other_weights(run, tmp_path):
    assert train_tiny(run, tmp_path, "first", "--steps", 1)[0] == 0
    flags = ("--steps", 1, "--init", tmp_path / "first", "--half", "--seed", 1, "--learning-rate", 1e-9)
    assert train_tiny(run, tmp_path, "next", *flags)[::2] == (0, "")
    first, following = (load_file(tmp_path / name / SAFETENSORS)["conv_in.weight"] for name in ("first", "next"))
    assert following.dtype == torch.float16
    assert torch.allclose(following.float(), first, atol=1e-3) and first.abs().mean() > 0.01


def test_train_refuses_at_once(run, tmp_path, monkeypatch):
    assert train_tiny(run, tmp_path, "done", "--steps", 1)[0] == 0
    (tmp_path / "file").touch()
    monkeypatch.setattr(training, "UNet", None)
    for out, flags, reason in (
        ("done", (), "finished weights"),
        ("data/out", (), "outside of DATA"),
        ("file", (), "Not a directory"),
        ("file/below", (), "Not a directory"),
        ("new", ("--max-level", 1001), "max_level must be in"),
        ("new", ("--size", 7), "size must be a multiple of"),
        ("new", ("--steps", 0), "steps must be 1 or more"),
        ("new", ("--device", "cuda:99"), "device must be one that is available"),
    ):
        status, _, err = train_tiny(run, tmp_path, out, *flags)
        assert status == 2 and reason in err and err.count("\n") == 1
    status, _, err = run("train", tmp_path / "absent", tmp_path / "new")
    assert status == 2 and "absent" in err and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SafetensorError("No space left on device"), "No space left on device"),
        (RuntimeError("CUDA error:\n  out of memory"), "CUDA error: out of memory"),
        (OSError("Caught OSError in worker 0.\nOriginal Traceback (most recent call last):\nTraceback\nOSError: a.png"),
         "OSError: a.png"),
    ],
)  # fmt: skip
def test_errors_of_training_are_one_line(run, tmp_path, monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(training, "train", fail)
    status, _, err = train_tiny(run, tmp_path, "out")
    assert status == 2 and err == f"sampdetox: error: {message}\n"


def test_the_bar_of_a_resumed_run_starts_where_it_does():
    class Bar:
        total, initial, n, text = 0, 0, 0, ""

        def set_postfix_str(self, text, refresh):
            self.text = text

        def update(self, steps):
            self.n += steps

    bar = Bar()
    progress = cli.training_progress(bar)
    for step in (4, 5):
        progress("denoiser", step, 9, 0.25)
    assert (bar.total, bar.initial, bar.n, bar.text) == (9, 3, 5, "denoiser, loss 0.2500")
    progress("local", 6, 9, 0.5)
    assert (bar.total, bar.initial, bar.n, bar.text) == (9, 3, 6, "local, loss 0.5000")


def test_options_have_the_librarys_defaults(run, tmp_path, monkeypatch):
    """All of them reach the config, those with a default too."""
    seen = []
    monkeypatch.setattr(cli, "check_training_folder", lambda out, data, finished: None)
    monkeypatch.setattr(
        cli, "run_training", lambda config, out, *others, **rest: seen.append((config, out, others, rest))
    )
    monkeypatch.setattr(cli, "summary", lambda out: "")
    assert run("train", "data", "more", tmp_path / "out", "--device", "cpu")[0] == 0
    given = {"--size": 16, "--max-level": 99, "--schedule": "cosine", "--channels": 1, "--block-out-channels": "16,8"}
    given |= {"--layers-per-block": 2, "--steps": 7, "--batch-size": 3, "--learning-rate": 0.5, "--warmup": 1}
    given |= {"--cooldown": 0.1, "--ema": 0.5, "--zoom": 0.25, "--seed": 8, "--workers": 2, "--save-every": 4}
    flat = [part for item in given.items() for part in item]
    assert run("train", "data", tmp_path / "out", *flat, "--bf16", "--half", "--device", "cpu")[0] == 0
    assert seen[0][0] == TrainingConfig(data=("data", "more")) and seen[0][1] == tmp_path / "out"
    changed = dict(zip((name[2:].replace("-", "_") for name in given), given.values(), strict=True))
    changed |= {"block_out_channels": (16, 8), "bf16": True, "half": True}
    assert seen[1][0] == TrainingConfig(data=("data",), **changed)
    assert set(changed) == {field.name for field in fields(TrainingConfig)} - {"data", "network"}


@pytest.mark.parametrize(
    ("options", "search", "large"),
    [
        ((), 10_000, None),
        (("--only-denoiser",), None, None),
        (("--photographs",), 10_000, 20_000),
        (("--photographs", "--search-steps", 3, "--photograph-steps", 4), 3, 4),
    ],
)
def test_networks_are_trained_that_are_asked_for(run, tmp_path, monkeypatch, options, search, large):
    seen = []
    monkeypatch.setattr(cli, "check_training_folder", lambda out, data, finished: seen.append(finished))
    monkeypatch.setattr(cli, "run_training", lambda config, out, *others, **rest: seen.extend(others))
    monkeypatch.setattr(cli, "summary", lambda out: "")
    assert run("train", "data", tmp_path / "out", "--seed", 5, "--device", "cpu", *options)[0] == 0
    finished, *others = seen
    assert finished is (search is None)
    for settings, steps in zip(others, (search, large), strict=True):
        wanted = None if steps is None else {"steps": steps, "workers": 1, "bf16": None, "seed": 5}
        assert settings == wanted


def test_pictures_go_to_the_search_networks(run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "run_training", lambda config, out, search, large, **rest: seen.append(search))
    monkeypatch.setattr(cli, "summary", lambda out: "")
    (tmp_path / "data").mkdir()
    given = ("--pictures", "a", "--pictures", "b", "--device", "cpu")
    assert run("train", tmp_path / "data", tmp_path / "out", *given)[0] == 0
    assert seen[0]["blend_data"] == ("a", "b")


def test_quiet_says_nothing_but_errors(run, tmp_path):
    assert train_tiny(run, tmp_path, "out", "--steps", 1, "--quiet") == (0, "", "")
    status, _, err = train_tiny(run, tmp_path, "new", "--block-out-channels", "8;8", "--quiet")
    assert status == 2 and "--block-out-channels must be whole numbers with commas between, got '8;8'" in err
