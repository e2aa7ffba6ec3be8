"""Pictures in batches through the transform: what is written, what fails alone, what stops all."""

import errno
import io
import itertools
import os
import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_pictures import colours, files, pixels, save
from PIL import Image

from sampdetox_transforms import SampDetox
from sampdetox_transforms.cli.purify import run as running
from sampdetox_transforms.cli.purify.files import Picture
from sampdetox_transforms.transforms import transform


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_stops_and_leaves_nothing_half_written(run, weights, tmp_path, monkeypatch, code):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.png").write_text("no picture")
    for i in range(1, 5):
        save(tmp_path / f"in/{i}.png", colours(i))
    real, calls = Image.Image.save, []

    def full(self, path, *args, **kwargs):
        calls.append(path)
        if len(calls) > 2:
            Path(path).write_bytes(b"half")
            raise OSError(code, os.strerror(code))
        real(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full)
    status, out, err = run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)
    lines = err.splitlines()
    assert (status, out, len(lines)) == (2, "", 2)
    assert "0.png" in lines[0] and lines[1].startswith("sampdetox: error: ") and os.strerror(code) in lines[1]
    assert len(calls) == 3
    assert files(tmp_path / "out") == ["1.png", "2.png"]
    assert all(pixels(tmp_path / f"out/{i}.png").shape == (9, 12, 3) for i in (1, 2))


def test_a_name_that_is_too_long_fails_alone(run, weights, tmp_path):
    long = "x" * 245
    for name in (f"{long}.png", "y.png"):
        save(tmp_path / "in" / name, colours())
    status, out, err = run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)
    assert status == 1 and "purified 1, failed 1" in out and long in err
    assert files(tmp_path / "out") == ["y.png"]


def test_a_seeded_result_depends_on_nothing_else(run, weights, tmp_path):
    for i in range(5):
        save(tmp_path / f"in/{i}.png", colours(i))
    seeded = ("--weights", weights, "--seed", 3)
    assert run("purify", tmp_path / "in", tmp_path / "all", *seeded)[0] == 0
    assert run("purify", tmp_path / "in", tmp_path / "two", *seeded, "--batch-size", 2)[0] == 0
    assert run("purify", tmp_path / "in/3.png", tmp_path / "alone.png", *seeded)[0] == 0
    assert run("purify", tmp_path / "in/3.png", tmp_path / "other.png", "--weights", weights, "--seed", 4)[0] == 0
    together = pixels(tmp_path / "all/3.png").astype(int)
    assert np.abs(together - pixels(tmp_path / "two/3.png")).max() <= 1
    assert np.abs(together - pixels(tmp_path / "alone.png")).max() <= 1
    assert np.abs(together - pixels(tmp_path / "other.png")).max() > 1


def test_batches_are_of_one_kind_and_read_no_further_than_needed():
    sizes = [(3, 8, 8)] * 5 + [(1, 8, 8)] + [(3, 8, 8)] * 2 + [(3, 600, 600)] * 2
    read = []

    def pictures():
        for i, size in enumerate(sizes):
            read.append(i)
            yield i, Picture(torch.zeros(size, dtype=torch.uint8), None, None)

    found = []
    for batch in running.batches(pictures(), 3):
        assert len(read) <= batch[-1][0] + 2
        found.append([i for i, _ in batch])
    assert found == [[0, 1, 2], [3, 4], [5], [6, 7], [8, 9]]
    assert [len(batch) for batch in running.batches(pictures(), None)] == [5, 1, 2, 1, 1]


def test_pictures_that_the_transform_refuses_fail_alone(run, weights, tmp_path, monkeypatch):
    save(tmp_path / "in/a.png", colours(size=(20, 20, 3)))
    save(tmp_path / "in/b.png", colours())

    def limited(flat_inputs, normalisation):
        (image,) = flat_inputs
        if image.shape[-2] > 10:
            raise ValueError("images must be at most 10x10")
        return flat_inputs

    monkeypatch.setattr(transform, "check_sample", limited)
    status, _, err = run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)
    assert status == 1 and "a.png: images must be at most" in err
    assert files(tmp_path / "out") == ["b.png"]


# Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_bar_moves_inside_one_large_picture(run, weights, tmp_path, monkeypatch):
    """A picture of several tiles takes long, and each tile is told."""
    save(tmp_path / "in/large.png", colours(size=(900, 600, 3)))
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        clock = types.SimpleNamespace(monotonic=itertools.count(1).__next__)  # each call is late enough to be shown
        patch.setattr(running, "time", clock)
        assert run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights, "--preset", "ddim")[0] == 0
    counts = [int(n) for n in re.findall(r"large\.png: (\d+) network calls", terminal.getvalue())]
    assert counts == sorted(counts) and len(set(counts)) > 7, "not a step for each tile"
    assert "0/1" in terminal.getvalue() and "1/1" in terminal.getvalue()


@pytest.mark.parametrize("flags", [("--quiet",), ()])
def test_no_bar_is_drawn_where_nobody_looks(run, weights, tmp_path, monkeypatch, flags):
    save(tmp_path / "in/a.png", colours())
    stream = Terminal() if flags else io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        assert run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights, *flags)[0] == 0
    assert stream.getvalue() == ""


def test_network_calls_are_told_and_change_nothing(tiny):
    detox = SampDetox(str(tiny), preset="ddim", seed=0)
    image = torch.rand(3, 9, 12)
    alone = detox(image)
    told = []
    with running.on_network_calls(detox, lambda: told.append(1)):
        assert torch.equal(detox(image), alone)
    assert len(told) == 7
    detox(image)
    assert len(told) == 7, "a hook was left behind"
    with running.on_network_calls(object(), told.append):
        pass
