"""Trees of pictures: what goes where, what is refused, and what a killed run leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_pictures import colours, files, pixels, save

from sampdetox_transforms.cli.purify import tree


def test_names_that_collide_are_kept_whole(run, weights, tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "c.jpg", "C.bmp"):
        save(tmp_path / "in" / name, colours())
    save(tmp_path / "in/d.png/e.png", colours())
    save(tmp_path / "in/d.jpg", colours())
    assert run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)[0] == 0
    expected = ["C.bmp.png", "a.jpg.png", "a.png.png", "b.png", "c.jpg.png", "d.jpg.png", "d.png/e.png"]
    assert files(tmp_path / "out") == expected


@pytest.mark.usefixtures("no_weights")
def test_names_that_collide_all_the_same_are_refused(run, tmp_path):
    for name in ("a.png", "a.jpg", "a.jpg.bmp"):
        save(tmp_path / "in" / name, colours())
    status, _, err = run("purify", tmp_path / "in", tmp_path / "out")
    assert status == 2 and "a.jpg.png" in err and "Rename one" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("out", ["in", "in/out", "in/../in/x", "link", "."])
def test_results_never_lie_among_the_pictures(run, tmp_path, out):
    save(tmp_path / "in/in/a.png", colours())
    (tmp_path / "link").symlink_to("in/in")
    status, _, err = run("purify", tmp_path / "in", tmp_path / out)
    assert status == 2 and "Give a folder beside IN" in err
    assert files(tmp_path / "in") == ["in/a.png"]


def test_linked_folders_are_followed_and_loops_are_not(run, weights, tmp_path):
    save(tmp_path / "elsewhere/b.png", colours())
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/linked").symlink_to("../elsewhere")
    (tmp_path / "in/deep/loop").symlink_to("..")
    os.mkfifo(tmp_path / "in/pipe.png")
    assert run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)[0] == 0
    assert files(tmp_path / "out") == ["linked/b.png"]
    for out in ("elsewhere", "elsewhere/below"):  # seen through the link, these are inside of IN
        assert "Give a folder beside IN" in run("purify", tmp_path / "in", tmp_path / out, "--weights", weights)[2]


# What a killed run leaves behind


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_half_written_files_of_a_killed_run_are_removed_by_the_next(run, weights, tmp_path, gone):
    """What belongs to living processes, or does not have our form, stays."""
    for name in ("a.png", "deep/b.png"):
        save(tmp_path / "in" / name, colours())
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / f".folder.png.{gone}.part").mkdir()
    living = f".b.png.{os.getppid()}.part"
    theirs = [
        "mine.part",
        ".a.png.part",
        f".a.txt.{gone}.part",
        f"a.png.{gone}.part",
        f".a.png.{gone}.part.txt",
        living,
    ]
    ours = [f".a.png.{gone}.part", f"deep/.b.png.{gone}.part", f".no longer there.png.{gone}.part"]
    for name in (*theirs, *ours):
        (out / name).write_bytes(b"half")
    command = ("purify", tmp_path / "in", out, "--weights", weights, "--seed", 0)
    assert run(*command)[0] == 0
    assert files(out) == sorted([*theirs, "a.png", "deep/b.png"])
    first = pixels(out / "a.png")

    (out / ours[0]).write_bytes(b"half")  # a run with nothing left to do tidies up, too
    status, printed, _ = run(*command)
    assert status == 0 and "skipped 2" in printed and not (out / ours[0]).exists()
    assert (pixels(out / "a.png") == first).all()


def test_beside_a_single_picture_and_a_report_they_are_removed_too(run, weights, tmp_path, gone):
    source = save(tmp_path / "in/a.png", colours())
    for name in (f".x.png.{gone}.part", f".f.html.{gone}.part", f".f.csv.{gone}.part"):
        (tmp_path / name).touch()
    report = ("--report", tmp_path / "f.html")
    assert run("purify", source, tmp_path / "x.png", "--weights", weights, *report)[0] == 0
    assert files(tmp_path) == [f".f.csv.{gone}.part", "f.html", "in/a.png", "x.png"]


@pytest.mark.usefixtures("no_weights")
def test_a_command_that_is_refused_removes_nothing(run, tmp_path, gone):
    save(tmp_path / "in/a.png", colours())
    (tmp_path / "out").mkdir()
    (tmp_path / f"out/.a.png.{gone}.part").touch()
    assert run("purify", tmp_path / "in", tmp_path / "out", "--report", tmp_path / "in/f.html")[0] == 2
    assert files(tmp_path / "out") == [f".a.png.{gone}.part"]


def test_a_process_of_somebody_else_is_not_gone(monkeypatch, gone):
    assert tree.is_gone(gone) and not tree.is_gone(os.getpid())

    def refuse(pid, signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not tree.is_gone(gone)


def test_folders_that_are_not_there_hold_no_leftovers(tmp_path):
    assert tree.remove_leftovers([tmp_path / "no/a.png", Path(f"{tmp_path}/file/b.png")]) == []
