"""``sampdetox purify --ray``: the actors in this process, with a stand-in for Ray, and with Ray itself (slow)."""

import csv
import json
import os
import re
import signal
import sys
from pathlib import Path

import fake_ray
import numpy as np
import pytest
import torch
from cli_pictures import colours, files, pixels, save

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.purify import actors
from sampdetox_transforms.cli.purify.rows import Changes
from sampdetox_transforms.cli.purify.task import Task
from sampdetox_transforms.cli.purify.tree import Job

FLAGS = ("--seed", 0, "--device", "cpu", "--dtype", "float32")


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)  # an actor takes one


@pytest.fixture
def tree(tmp_path) -> Path:
    """Nine pictures, in colour and grey, of 8 and 16 bits and of two sizes, one that is none, and a text file."""
    for i in range(6):
        save(tmp_path / f"in/{'deep/' if i % 2 else ''}{i}.png", colours(i, (9, 8 + i // 3, 3)))
    save(tmp_path / "in/grey.png", colours(6, (9, 8)))
    save(tmp_path / "in/grey16.png", colours(7, (9, 8), "uint16"))
    save(tmp_path / "in/photo.jpg", colours(8, (16, 16, 3)))
    (tmp_path / "in/damaged.png").write_text("no picture")
    (tmp_path / "in/labels.txt").touch()
    return tmp_path / "in"


def assert_same_pictures(found: Path, expected: Path) -> None:
    """The same names, and values that are one grey level apart at most."""
    assert files(found) == files(expected)
    for name in files(found):
        a, b = pixels(found / name).astype(int), pixels(expected / name).astype(int)
        level = 257 if b.max() > 255 else 1
        assert a.shape == b.shape and np.abs(a - b).max() <= level


def rows(report: Path, out: Path) -> list[list[str]]:
    """A CSV report, with paths below ``out``, and numbers to four places: batches of other sizes sum differently."""
    with report.open() as file:
        table = list(csv.reader(file))
    return [[f"{float(cell):.4f}" if re.fullmatch(r"\d+\.\d+", cell) else cell for cell in row]
            for row in ([cell.replace(str(out), "OUT") for cell in row] for row in table)]  # fmt: skip


# What follows the flag


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["IN", "OUT", "--ray"], ["IN", "OUT", "--ray", "here"]),
        (["--ray", "IN", "OUT"], ["--ray", "here", "IN", "OUT"]),
        (["--ray", "--seed", "0", "IN"], ["--ray", "here", "--seed", "0", "IN"]),
        (["IN", "OUT", "--ray", "auto"], ["IN", "OUT", "--ray", "auto"]),
        (["IN", "OUT", "--ray", "head-1.local:6379"], ["IN", "OUT", "--ray", "head-1.local:6379"]),
        (["--ray", "ray://10.0.0.1:10001", "IN"], ["--ray", "ray://10.0.0.1:10001", "IN"]),
        (["--ray", "[::1]:6379", "IN"], ["--ray", "[::1]:6379", "IN"]),
        (["--", "--ray", "x"], ["--", "--ray", "x"]),
    ],
)
def test_the_address_may_be_left_out(given, read):
    assert flags.with_value(given, "--ray", flags.HERE, flags.ADDRESS) == read


@pytest.mark.parametrize("address", ["somewhere", "--ray=", "a b:1"])
def test_an_address_that_is_none_is_refused(run, weights, tree, tmp_path, monkeypatch, address):
    fake_ray.install(monkeypatch, CPU=2)
    flag = address if address.startswith("--") else f"--ray={address}"
    status, _, err = run("purify", tree, tmp_path / "out", "--weights", weights, flag)
    assert status == 2 and "--ray must be an address, HOST:PORT or ray://HOST:PORT, got" in err
    assert not (tmp_path / "out").exists()


def test_without_ray_the_error_says_what_to_install(run, weights, tree, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, err = run("purify", tree, tmp_path / "out", "--weights", weights, "--ray")
    assert status == 2 and "pip install 'sampdetox-transforms[ray]'" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "reason"), [("cuda:1", "must be cpu or cuda with --ray"), ("cuda", "needs cards in the Ray cluster")]
)
def test_a_device_that_ray_has_not_is_refused(run, weights, tree, tmp_path, monkeypatch, device, reason):
    fake_ray.install(monkeypatch, CPU=2)
    status, _, err = run("purify", tree, tmp_path / "out", "--weights", weights, "--device", device, "--ray")
    assert status == 2 and reason in err and not (tmp_path / "out").exists()


# What the actors do


def test_actors_make_what_one_process_makes(run, weights, tree, tmp_path, monkeypatch):
    fake_ray.install(monkeypatch, CPU=2)
    found = {}
    for name, flag in (("one", ()), ("ray", ("--ray",))):
        status, out, err = run(
            "purify", tree, tmp_path / name, "--weights", weights, *FLAGS, *flag, "--report", tmp_path / f"{name}.csv"
        )
        found[name] = status, out.replace(str(tmp_path / name), "OUT"), err
        assert status == 1 and "purified 9, failed 1, left out 1 other files" in out and "damaged.png" in err
    assert found["one"] == found["ray"]
    assert_same_pictures(tmp_path / "ray", tmp_path / "one")
    assert rows(tmp_path / "ray.csv", tmp_path / "ray") == rows(tmp_path / "one.csv", tmp_path / "one")
    assert fake_ray.SEEN == [{"batch_size": None, "compute": 2, "num_cpus": 1, "num_gpus": None}]


def test_a_page_and_json_are_of_all_actors_together(run, weights, tree, tmp_path, monkeypatch):
    fake_ray.install(monkeypatch, CPU=8)
    report = ("--report", tmp_path / "found.html")
    status, out, _ = run("purify", tree, tmp_path / "out", "--weights", weights, *FLAGS, "--ray", *report, "--json")
    document = json.loads(out)
    assert status == 1 and document["purified"] == 9 and len(document["failed"]) == 1
    assert (tmp_path / "found.html").read_text().count("data:image/png") == 3 * 9


def test_what_is_done_is_not_done_again(run, weights, tree, tmp_path, monkeypatch):
    fake_ray.install(monkeypatch, CPU=2)
    command = ("purify", tree, tmp_path / "out", "--weights", weights, *FLAGS, "--ray")
    run(*command)
    for name in ("0.png", "deep/1.png"):
        (tmp_path / "out" / name).unlink()
    assert "purified 2, skipped 7" in run(*command)[1]


def test_an_error_of_all_pictures_ends_the_run(run, weights, tree, tmp_path, monkeypatch):
    fake_ray.install(monkeypatch, CPU=2)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sampdetox_transforms.cli.purify.run.write_picture", full)
    status, out, err = run("purify", tree, tmp_path / "out", "--weights", weights, *FLAGS, "--ray")
    assert (status, out) == (2, "") and "No space left on device. 0 are done; start the same command again" in err


def test_each_card_gets_an_actor(monkeypatch, tmp_path):
    fake_ray.install(monkeypatch, CPU=64, GPU=2)
    jobs = [Job(tmp_path / f"{i}.png", tmp_path / f"out/{i}.png") for i in range(100)]
    places = []

    class Detox:
        def to(self, device):
            places.append(device)
            return self

    monkeypatch.setattr(actors, "carry_out", lambda task, *args, **options: None)
    for device in (None, "cuda", "cpu"):
        task = Task(tmp_path, tmp_path / "out", list(jobs), [], 0, None, False, [])
        actors.carry_out_on_ray(task, Detox(), flags.HERE, device, None, 10**6, True)  # type: ignore
    assert [(seen["compute"], seen["num_gpus"]) for seen in fake_ray.SEEN] == [(2, 1), (2, 1), (64, None)]
    assert places == ["cuda", "cuda", "cpu"]


class Died(BaseException):
    """What takes a process away: nothing in it can catch this."""


def test_a_picture_at_which_processes_die_fails_and_no_other(monkeypatch, tmp_path):
    """Ray calls anew, as here, until an actor answers."""
    fake_ray.install(monkeypatch, CPU=1)
    jobs = [Job(tmp_path / f"{i}.png", tmp_path / f"out/{i}.png") for i in range(5)]
    deaths = []

    def carry_out(task, *args, **options):
        for job in task.todo:
            if job.source.name == "3.png":
                deaths.append(len(task.todo))
                raise Died
            task.done += 1

    class Detox:
        def to(self, device):
            return self

    monkeypatch.setattr(actors, "carry_out", carry_out)
    task = Task(tmp_path, tmp_path / "out", [], [], 0, None, False, [])
    desk = fake_ray.Actor(actors.Desk(Detox(), task, None, 10**6))  # type: ignore
    batch = {"job": np.array([*jobs, None], dtype=object)[:-1]}
    for _ in range(9):
        try:
            part, error = actors.Purifier(desk, "cpu")(batch)["part"][0]
            break
        except Died:
            continue
    assert deaths == [5, 1, 1] and error == ""
    assert part.done == 4 and [failure.source.name for failure in part.failures] == ["3.png"]
    assert "2 processes died at it" in part.failures[0].reason


def test_parts_add_up():
    task = Task(Path("in"), Path("out"), [], [], 0, None, False, [])
    for done, shares in ((2, {Path("a"): 0.0, Path("b"): 0.5}), (1, {Path("c"): 0.25})):
        task.add(Task(Path("in"), Path("out"), [], [], 0, None, False, [], done, Changes(dict(shares)), about=["x"]))
    assert (task.done, task.changes.count, task.about) == (3, 2, ["x"])


# With Ray itself


@pytest.fixture
def killed(monkeypatch, tmp_path) -> Path:
    """A file with the number of the process of an actor that is killed between two of its pictures, once."""
    file = tmp_path / "killed"

    class Mortal(actors.Purifier):  # local, so that Ray sends it whole
        def purify(self, part, jobs):
            if len(jobs) > 2:
                try:
                    with file.open("x") as mark:
                        mark.write(str(os.getpid()))
                except FileExistsError:
                    pass
                else:
                    super().purify(part, jobs[:2])
                    os.kill(os.getpid(), signal.SIGKILL)
            super().purify(part, jobs)

    monkeypatch.setattr(actors, "Purifier", Mortal)
    return file


@pytest.mark.slow
def test_an_actor_that_is_killed_loses_nothing(run, weights, tmp_path, monkeypatch, killed):
    pytest.importorskip("ray.data")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a busy machine actors would starve
    for i in range(40):
        save(tmp_path / f"in/{'deep/' if i % 3 else ''}{i:02}.png", colours(i, (40, 40 + i % 2, 3)))
    command = ("purify", tmp_path / "in", tmp_path / "ray", "--weights", weights, *FLAGS)
    one = run(*command[:2], tmp_path / "one", *command[3:], "--report", tmp_path / "one.csv")
    assert one[0] == 0
    status, out, _ = run(*command, "--ray", "--report", tmp_path / "ray.csv")
    assert killed.exists() and int(killed.read_text()) != os.getpid()
    assert status == 0 and out == one[1].replace(str(tmp_path / "one"), str(tmp_path / "ray"))
    assert_same_pictures(tmp_path / "ray", tmp_path / "one")
    assert rows(tmp_path / "ray.csv", tmp_path / "ray") == rows(tmp_path / "one.csv", tmp_path / "one")
