"""A folder run in any order of kills, resumptions, changes and company: nothing half-written, nothing lost.

Runs are real processes, forked, which a signal ends in the middle of writing a picture. A stand-in takes the place of
the networks, so that they take milliseconds.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from PIL import Image

from sampdetox_transforms.cli.main import main
from sampdetox_transforms.cli.purify import command
from sampdetox_transforms.transforms.explanation import Explanation

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")

NAMES = ("a", "b", "deep/c", "deep/er/d", "e")

KILLED = -signal.SIGKILL


class StandIn:
    """Turns pictures into their negatives."""

    settings = types.SimpleNamespace(t1=12, t2=120, sampler="ddim", stride=60)
    restorer = calibration = None
    triggers = ()
    denoiser = types.SimpleNamespace(source="none", max_level=160)
    schedule = types.SimpleNamespace(name="linear")

    def explain(self, pixels: torch.Tensor) -> Explanation:
        levels = torch.zeros(len(pixels), 1, *pixels.shape[2:])
        calls = torch.zeros(len(pixels))
        return Explanation(255 - pixels, pixels, levels, levels, calls, 0.1, 0.5, difference_map=levels)


def picture(seed: int) -> np.ndarray:
    """Pixels that compress badly, of one of two sizes, so that there are several batches."""
    return np.random.default_rng(seed).integers(0, 256, (8 + seed % 2, 8, 3), dtype=np.uint8)


def start(source: Path, out: Path, *flags: str, kill_at: int | None = None, half: bool = True, wait: float = 0) -> int:
    """Fork a run and return its process number.

    Args:
        kill_at: the number of the picture at which it gets SIGKILL, counted from 0.
        half: when half of that picture is written; else when it is written, but not yet in its place.
        wait: seconds before each picture is written.
    """
    process = os.fork()
    if process:
        return process
    status = 99
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        command.make_detox = lambda **given: StandIn()
        save, count = Image.Image.save, 0

        def watched(self, path, *args, **kwargs):
            nonlocal count
            time.sleep(wait)
            save(self, path, *args, **kwargs)
            if count == kill_at:
                if half:
                    os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        Image.Image.save = watched
        status = main(["purify", str(source), str(out), *flags])
    finally:
        os._exit(status)


def end(process: int) -> int:
    """Wait for a process; its exit status, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


class FolderRuns(RuleBasedStateMachine):
    """``sources`` and ``results`` are what the folders must hold: the numbers of pictures by their names."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.source, self.out = self.root / "in", self.root / "out"
        self.source.mkdir()
        self.sources: dict[str, int] = {}
        self.results: dict[str, int] = {}
        self.seeds, self.killed = 0, 0

    def teardown(self):
        shutil.rmtree(self.root)

    # What people do

    @rule(name=st.sampled_from(NAMES))
    def add_or_change(self, name):
        """A picture is new, or another; the result of before stays until --overwrite."""
        self.seeds += 1
        self.sources[name] = self.seeds
        path = self.source / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(self.seeds)).save(path)

    @precondition(lambda self: self.results)
    @rule(data=st.data())
    def lose_a_result(self, data):
        name = data.draw(st.sampled_from(sorted(self.results)))
        (self.out / f"{name}.png").unlink()
        del self.results[name]

    @precondition(lambda self: self.sources)
    @rule(overwrite=st.booleans())
    def run_to_the_end(self, overwrite):
        assert end(start(self.source, self.out, *self.flags(overwrite))) == 0
        self.finished(overwrite)

    @precondition(lambda self: self.sources)
    @rule(overwrite=st.booleans(), at=st.integers(0, 4), half=st.booleans())
    def run_and_be_killed(self, overwrite, at, half):
        status = end(start(self.source, self.out, *self.flags(overwrite), kill_at=at, half=half))
        todo = len(self.sources) if overwrite else len(self.sources.keys() - self.results.keys())
        assert status == (KILLED if at < todo else 0)
        self.finished(overwrite) if status == 0 else self.stopped(overwrite)

    @precondition(lambda self: self.sources)
    @rule(overwrite=st.booleans(), at=st.none() | st.integers(0, 3), half=st.booleans(), delay=st.sampled_from((0, 5)))
    def run_two_at_once(self, overwrite, at, half, delay):
        """The first one is killed, or not; the second one ends, whatever the first does."""
        first = start(self.source, self.out, *self.flags(overwrite), kill_at=at, half=half, wait=0.002)
        time.sleep(delay / 1000)
        second = start(self.source, self.out, *self.flags(overwrite), wait=0.001)
        statuses = end(first), end(second)
        assert statuses[1] == 0 and statuses[0] in (0, KILLED) and (at is not None or statuses[0] == 0)
        self.finished(overwrite, left=statuses[0] == KILLED)

    # What must hold then

    def flags(self, overwrite: bool) -> list[str]:
        return ["--batch-size", "2", *(["--overwrite"] if overwrite else [])]

    def finished(self, overwrite: bool, *, left: bool = False) -> None:
        """Every picture has its result; those that were there are kept, or made anew."""
        self.results = {**self.sources, **({} if overwrite else self.results)}
        self.killed = int(left)  # of another run, which may have been killed after this one looked

    def stopped(self, overwrite: bool) -> None:
        """Each result is that of before, or the new one; what is there is what the next run starts from."""
        before, self.killed = self.results, 1
        self.results = {}
        for name, seed in self.sources.items():
            allowed = [before[name]] if name in before and not overwrite else [seed, before.get(name)]
            found = self.found().get(name)
            matching = [n for n in allowed if found is not None and n is not None and same(found, n)]
            assert matching or (found is None and name not in before), f"{name} was lost"
            if matching:
                self.results[name] = matching[0]

    def found(self) -> dict[str, np.ndarray]:
        """The pictures in OUT, every one of which can be read."""
        paths = [path for path in self.out.rglob("*") if path.is_file() and path.suffix != ".part"]
        return {str(path.relative_to(self.out).with_suffix("")): np.asarray(Image.open(path)) for path in paths}

    @invariant()
    def results_are_whole_and_the_same_pictures(self):
        found = self.found()
        assert found.keys() == self.results.keys()
        assert all(same(found[name], seed) for name, seed in self.results.items())

    @invariant()
    def pictures_are_as_they_were(self):
        for name, seed in self.sources.items():
            assert np.array_equal(np.asarray(Image.open(self.source / f"{name}.png")), picture(seed))
        assert len([path for path in self.source.rglob("*") if path.is_file()]) == len(self.sources)

    @invariant()
    def nothing_half_written_stays(self):
        assert len([path for path in self.out.rglob("*.part")]) <= self.killed


def same(result: np.ndarray, seed: int) -> bool:
    """Whether it is the result of picture number ``seed``."""
    return np.array_equal(result, 255 - picture(seed))


TestFolderRuns = FolderRuns.TestCase
TestFolderRuns.settings = settings(
    max_examples=8, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
)
