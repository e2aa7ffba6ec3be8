"""The pictures of ``sampdetox purify`` through actors of Ray Data, on this machine or on many.

An actor takes a few pictures at a time, reads them, purifies them and writes the results. Ray gives the pictures of an
actor that died to another one, as often as it takes; a picture at which actors die again and again is found out by
counting how often it was begun.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sampdetox_transforms._common import one_line
from sampdetox_transforms.cli.flags import ADDRESS, HERE
from sampdetox_transforms.cli.purify.rows import Changes
from sampdetox_transforms.cli.purify.run import BATCH_MOST
from sampdetox_transforms.cli.purify.task import Task, carry_out, tidy
from sampdetox_transforms.cli.purify.tree import Failure, Job
from sampdetox_transforms.cli.shared import bar_off

if TYPE_CHECKING:
    import numpy as np

    from sampdetox_transforms.transforms.transform import SampDetox

LOG = logging.getLogger(__name__)

SHARES = 4  # of an actor at least, so that none is left waiting for the last one long

DEATHS = 2  # of an actor at one picture before the picture is given up


def carry_out_on_ray(
    task: Task,
    detox: "SampDetox",
    address: str,
    device: str | None,
    batch_size: int | None,
    max_pixels: int,
    quiet: bool,
) -> None:
    """Purify what is to do, and note in ``task`` what was done.

    Args:
        detox: on the CPU; each actor gets a copy.
        address: of a cluster, as for ``ray.init``; "here" for a running one, or else one of this machine for this run.
        device: "cpu", "cuda", or None for cards where the cluster has them.

    Raises:
        ValueError: no Ray, no cluster at the address, or one without the cards that are asked for.
        RuntimeError, OSError: what an actor met that would end a run in one process, too.
    """
    check_device(device)
    with cluster(address, quiet) as ray:
        resources = ray.cluster_resources()
        cards = int(resources.get("GPU", 0))
        if device == "cuda" and not cards:
            raise ValueError("--device cuda needs cards in the Ray cluster, got none. Leave --device out.")
        on_cards = cards > 0 and device != "cpu"
        actors = max(1, min(cards if on_cards else int(resources.get("CPU", 1)), len(task.todo)))
        share = max(batch_size or 1, min(BATCH_MOST, -(-len(task.todo) // (SHARES * actors))))
        desk = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Desk).remote(
            detox, replace(task, todo=[], there=[], failures=[], rows=[], changes=Changes()), batch_size, max_pixels
        )
        data = ray.data.from_items([{"job": job} for job in task.todo], override_num_blocks=-(-len(task.todo) // share))
        parts = data.map_batches(
            Purifier,
            batch_size=None,  # a block a time
            fn_constructor_kwargs={"desk": desk, "device": "cuda" if on_cards else "cpu"},
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=1 if on_cards else None,
        )
        LOG.info("%d actors of Ray on %s, %d pictures at a time", actors, "cards" if on_cards else "processors", share)
        gather(task, parts, quiet)
    tidy([job.target for job in task.todo])


def gather(task: Task, parts: Any, quiet: bool) -> None:
    """Add up what the actors did, as it comes in."""
    from tqdm import tqdm

    with tqdm(total=len(task.todo), unit="picture", file=sys.stderr, disable=bar_off(quiet)) as bar:
        for row in parts.iter_rows():
            part, error = row["part"]
            task.add(part)
            bar.update(len(part.todo))
            if error:
                raise RuntimeError(error)


def check_device(device: str | None) -> None:
    """Raise ValueError for a device that Ray does not hand out."""
    if device not in (None, "cpu", "cuda"):
        raise ValueError(
            f"--device must be cpu or cuda with --ray, got {device!r}. Ray chooses the card of each actor."
        )


@contextmanager
def cluster(address: str, quiet: bool) -> Iterator[Any]:
    """Within it, the module ``ray`` is connected; one that was before stays so."""
    if not ADDRESS.fullmatch(address):
        raise ValueError(f"--ray must be an address, HOST:PORT or ray://HOST:PORT, got {address!r}. Leave it out here.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no message to Ray's makers unless the user says so
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"--ray needs Ray Data, got none ({error}). pip install 'sampdetox-transforms[ray]', or leave --ray out."
        ) from error
    connected = ray.is_initialized()
    if not connected:
        where = None if address == HERE else address
        try:
            ray.init(
                address=where,
                include_dashboard=None if where else False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except (ConnectionError, ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"--ray must be the address of a cluster, got {address}: {one_line(error)}.") from error
    context = ray.data.DataContext.get_current()
    bars, level = context.enable_progress_bars, logging.getLogger("ray.data").level
    context.enable_progress_bars = False  # there is a bar of pictures
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr):  # where Ray says that a worker died, while it ends, too; stdout is for the result
        try:
            yield ray
        finally:
            context.enable_progress_bars = bars
            logging.getLogger("ray.data").setLevel(level)
            if not connected:
                ray.shutdown()


class Desk:
    """An actor that holds what all others need, and counts how often pictures were begun."""

    def __init__(self, detox: "SampDetox", task: Task, batch_size: int | None, max_pixels: int):
        self.needed = detox, task, batch_size, max_pixels
        self.begun: Counter[tuple[Job, bool]] = Counter()

    def get(self) -> tuple["SampDetox", Task, int | None, int]:
        """The transform, a task without pictures, and the settings of ``carry_out``."""
        return self.needed

    def begin(self, job: Job, alone: bool) -> int:
        """How often a picture alone, or several of which it is the first, have been begun and not ended, with now."""
        self.begun[job, alone] += 1
        return self.begun[job, alone]

    def end(self, job: Job, alone: bool) -> None:
        """What was begun is done."""
        del self.begun[job, alone]


class Purifier:
    """What Ray Data starts once a worker, and calls with a few pictures at a time."""

    def __init__(self, desk: Any, device: str):
        import ray  # pyright: ignore[reportMissingImports]
        import torch

        if device == "cpu":
            torch.set_num_threads(1)  # as many actors as there are cores
        self.desk, self.ray = desk, ray
        detox, self.task, self.batch_size, self.max_pixels = self.ask("get")
        self.detox = detox.to(device)

    def __call__(self, batch: "dict[str, np.ndarray]") -> "dict[str, np.ndarray]":
        """A column of jobs -> one row: what became of them as a ``Task``, and an error that ends the run, or ""."""
        import numpy as np

        jobs = list(batch["job"])
        part = replace(self.task, todo=jobs, failures=[], rows=[], changes=Changes())
        error = ""
        try:
            if self.ask("begin", jobs[0], False) == 1:
                self.purify(part, jobs)
            else:  # an actor died at one of them
                for job in jobs:
                    self.purify_alone(part, job)
        except Exception as reason:
            error = one_line(reason)
        result = np.empty(1, dtype=object)
        result[0] = (part, error)
        return {"part": result}

    def ask(self, what: str, *about: Any) -> Any:
        """Call the desk."""
        return self.ray.get(getattr(self.desk, what).remote(*about))

    def purify(self, part: Task, jobs: list[Job]) -> None:
        done = replace(part, todo=jobs, failures=[], rows=[], changes=Changes(), matched=None, done=0)
        try:
            carry_out(done, self.detox, self.batch_size, self.max_pixels, quiet=True)
        finally:
            part.add(done)

    def purify_alone(self, part: Task, job: Job) -> None:
        """Purify one picture, unless actors died at it before."""
        if self.ask("begin", job, True) > DEATHS:
            reason = f"{DEATHS} processes died at it: out of memory, or a fault in a decoder"
            part.failures.append(Failure(job.source, reason))
        else:
            self.purify(part, [job])
            self.ask("end", job, True)
