"""Several processes that share the pictures of ``sampdetox purify``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sampdetox_transforms.cli import main as cli
from sampdetox_transforms.cli.purify.ranks import Rank, current_rank, device_of_rank, shard, status_of
from sampdetox_transforms.cli.purify.tree import Job

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tree(tmp_path) -> Path:
    """Five pictures of two sizes in two folders, and a text file."""
    rng = np.random.default_rng(0)
    for name, size in (("a", 9), ("b", 9), ("deep/c", 9), ("deep/d", 7), ("deep/e", 9)):
        path = tmp_path / f"in/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, 8, 3), dtype="uint8")).save(path)
    (tmp_path / "in/labels.txt").touch()
    return tmp_path / "in"


@pytest.fixture
def run(capsys, monkeypatch, tiny):
    """Call ``purify`` as one of several processes; returns the exit status, stdout and stderr."""

    def call(source, out, *, rank=None, world=None, flags=("--seed", "0")) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            if world is not None:
                patch.setenv("RANK", str(rank))
                patch.setenv("WORLD_SIZE", str(world))
            capsys.readouterr()
            status = cli.main(["purify", str(source), str(out), "--weights", str(tiny), "--device", "cpu", *flags])
            return status, *capsys.readouterr()

    return call


def pictures(folder: Path) -> dict[str, np.ndarray]:
    """All pictures under a folder, by name, as arrays."""
    return {
        str(path.relative_to(folder)): np.asarray(Image.open(path)).astype(int)
        for path in sorted(folder.rglob("*"))
        if path.suffix == ".png"
    }


def assert_same_pictures(found: Path, expected: Path) -> None:
    """The same names, and values that are one grey level apart at most."""
    a, b = pictures(found), pictures(expected)
    assert list(a) == list(b)
    assert all(a[name].shape == b[name].shape and np.abs(a[name] - b[name]).max() <= 1 for name in a)


@given(st.integers(0, 30), st.integers(1, 7))
def test_every_picture_goes_to_one_process(n, world):
    jobs = [Job(Path(f"{i:03}.png"), Path(f"out/{i:03}.png")) for i in range(n)]
    parts = [shard(jobs, Rank(i, world)) for i in range(world)]
    assert sorted((job for part in parts for job in part), key=lambda job: job.source) == jobs
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_processes_together_make_what_one_makes(run, tree, tmp_path):
    assert run(tree, tmp_path / "one")[0] == 0
    status, printed, err = run(tree, tmp_path / "two", rank=0, world=2)
    assert (status, err) == (0, "")
    first, changed = printed.splitlines()
    assert first == f"rank 0 of 2: purified 3, left out 1 other files; results in {tmp_path / 'two'}"
    assert re.match(r"rank 0 of 2: \d of 3 pictures were changed beyond the light stage", changed)
    assert list(pictures(tmp_path / "two")) == ["a.png", "deep/c.png", "deep/e.png"]
    status, printed, err = run(tree, tmp_path / "two", rank=1, world=2)
    assert (status, err) == (0, "")
    assert printed.startswith(f"rank 1 of 2: purified 2; results in {tmp_path / 'two'}\nrank 1 of 2: ")
    assert_same_pictures(tmp_path / "two", tmp_path / "one")
    assert any(np.abs(x - pictures(tree)[name]).max() > 1 for name, x in pictures(tmp_path / "two").items())


def test_results_that_exist_change_no_part(run, tree, tmp_path):
    """A process that starts late does its own part, and a part that was done is not done again."""
    for rank, purified in ((1, "purified 2;"), (0, "purified 3,")):
        assert f"rank {rank} of 2: {purified}" in run(tree, tmp_path / "out", rank=rank, world=2)[1]
    (tmp_path / "out/b.png").unlink()
    assert "rank 0 of 2: purified 0, skipped 3" in run(tree, tmp_path / "out", rank=0, world=2)[1]
    assert not (tmp_path / "out/b.png").exists()
    assert "rank 1 of 2: purified 1, skipped 1" in run(tree, tmp_path / "out", rank=1, world=2)[1]
    assert len(pictures(tmp_path / "out")) == 5


def test_more_processes_than_pictures(run, tree, tmp_path):
    status, printed, _ = run(tree, tmp_path / "out", rank=6, world=9)
    assert status == 0 and "rank 6 of 9: purified 0;" in printed


def test_failures_are_named_by_the_process_that_met_them(run, tree, tmp_path):
    (tree / "b.png").write_text("no picture")
    assert run(tree, tmp_path / "out", rank=0, world=2)[0] == 0
    status, printed, err = run(tree, tmp_path / "out", rank=1, world=2)
    assert status == 1 and "purified 1, failed 1" in printed and "b.png" in err


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1", "WORLD_SIZE": "2"},
     {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "0"},
     {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}],
)  # fmt: skip
def test_variables_that_do_not_fit_are_refused(variables, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"must be whole numbers, RANK in \[0.*got RANK=.*unset both"):
        current_rank(variables)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["purify", str(tmp_path), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("sampdetox: error: RANK and WORLD_SIZE must")


def test_the_rank_is_read_from_the_environment():
    assert current_rank({}) == current_rank({"RANK": "", "WORLD_SIZE": ""}) == Rank(0, 1, 0)
    assert current_rank({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Rank(5, 8, 1)
    assert current_rank({"RANK": "5", "WORLD_SIZE": "8"}) == Rank(5, 8, 5)


def test_each_process_of_a_machine_takes_a_card_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_of_rank("cuda", Rank(i, 4, i % 3)) for i in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:0"]
    assert device_of_rank("cuda:1", Rank(0, 2)) == "cuda:1" and device_of_rank("cpu", Rank(1, 2)) == "cpu"


def test_under_torchrun_pictures_that_fail_are_no_error_status(run, tree, tmp_path, monkeypatch):
    """Issue 14, defect 10: for any other status torchrun prints a traceback, and ends the other processes."""
    (tree / "b.png").write_text("no picture")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    status, printed, err = run(tree, tmp_path / "out", rank=1, world=2)
    assert status == 0 and "purified 1, failed 1" in printed and "b.png: not a picture" in err
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert run(tree, tmp_path / "out", rank=1, world=2)[0] == 1


def test_under_torchrun_an_error_is_still_one(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert run(tmp_path / "absent", tmp_path / "out", rank=0, world=2)[0] == 2


def test_only_torchrun_is_spared():
    assert (status_of(2, {}), status_of(0, {})) == (1, 0)
    assert status_of(2, {"TORCHELASTIC_RUN_ID": "none"}) == 0


def command(*arguments) -> list[str]:
    return [sys.executable, *map(str, arguments)]


@pytest.mark.slow
def test_two_processes_at_the_same_time(run, tree, tmp_path, tiny):
    assert run(tree, tmp_path / "one")[0] == 0
    started = [
        subprocess.Popen(
            command(
                "-m",
                "sampdetox_transforms",
                "purify",
                tree,
                tmp_path / "two",
                "--weights",
                tiny,
                "--seed",
                0,
                "--dtype",
                "float32",
            ),
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert printed[0].startswith("rank 0 of 2: purified 3") and printed[1].startswith("rank 1 of 2: purified 2")
    assert_same_pictures(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_torchrun(run, tree, tmp_path, tiny, damaged):
    """A picture that fails does not keep the other process from ending its part, and torchrun has nothing to say."""
    if damaged:
        (tree / "b.png").write_text("no picture")
    assert run(tree, tmp_path / "one")[0] == int(damaged)
    done = subprocess.run(
        command("-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone", "-m", "sampdetox_transforms",
                "purify", tree, tmp_path / "two", "--weights", tiny, "--seed", 0, "--dtype", "float32"),
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert ("failed: " in done.stderr) == damaged
    assert "rank 0 of 2: purified 3" in done.stdout and "rank 1 of 2: purified" in done.stdout
    assert_same_pictures(tmp_path / "two", tmp_path / "one")
