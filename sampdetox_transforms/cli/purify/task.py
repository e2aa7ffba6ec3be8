"""What a run of ``sampdetox purify`` has to do, and what became of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sampdetox_transforms.cli.purify.report import check_place
from sampdetox_transforms.cli.purify.rows import SHOWN, Changes, Row, collect, keep_pictures
from sampdetox_transforms.cli.purify.run import Note, purify_pictures
from sampdetox_transforms.cli.purify.together import Carried, Together, matches_note
from sampdetox_transforms.cli.purify.tree import Failure, Job, Place, plan, remove_leftovers, results_there
from sampdetox_transforms.cli.shared import check_writable, settings_of

if TYPE_CHECKING:
    from sampdetox_transforms.transforms.transform import SampDetox

LOG = logging.getLogger(__name__)


@dataclass
class Task:
    """What a run has to do, and what it did.

    Attributes:
        source, out: IN and OUT.
        todo: the pictures to purify; those in ``there`` have their result already.
        left_out: files that are no pictures.
        report: where to list what was found, or None; ``keep_report`` where one of before stays.
        failures, done, changes, rows, about: what became of the pictures, and how they were purified.
        matched: those in which a trigger was recognised; None where none was known.
        carried: triggers that pictures share; None where they were not compared.
    """

    source: Place
    out: Place
    todo: list[Job]
    there: list[Job]
    left_out: int
    report: Path | None
    keep_report: bool
    failures: list[Failure]
    done: int = 0
    changes: Changes = field(default_factory=Changes)
    rows: list[Row] = field(default_factory=list)
    about: list[str] = field(default_factory=list)
    matched: set[Place] | None = None
    carried: list[Carried] | None = None

    @property
    def skipped(self) -> int:
        """How many pictures have their result already."""
        return len(self.there)

    def add(self, part: "Task") -> None:
        """Note what became of some of the pictures."""
        self.failures += part.failures
        self.done += part.done
        self.changes.shares.update(part.changes.shares)
        before = len(self.rows)
        self.rows += part.rows
        if before // SHOWN < len(self.rows) // SHOWN:  # now and then, since it sorts
            self.rows = keep_pictures(self.rows)
        self.about = part.about or self.about
        if part.matched is not None:
            self.matched = (self.matched or set()) | part.matched


def prepare(source: Place, out: Place, report: Path | None, overwrite: bool) -> Task:
    """What there is to do, with all paths checked; removes what a run that was killed left half-written."""
    jobs, failures, left_out = plan(source, out)
    if report is not None:
        check_place(report, source, jobs)
        check_writable(report.parent)
    results = set() if overwrite else results_there(jobs, out)
    todo = [job for job in jobs if job.target not in results]
    there = [job for job in jobs if job.target in results]
    keep = report is not None and report.exists() and not overwrite
    if keep and todo:
        raise ValueError(
            f"--report must be a file that does not exist yet, got {report}. Give another name; --overwrite replaces "
            "it, and makes all results anew."
        )
    tidy([job.target for job in jobs] + ([] if report is None else [report]))
    return Task(source, out, todo, there, left_out, report, keep, failures)


def tidy(places: Sequence[Place]) -> None:
    """Remove what processes that are gone left half-written."""
    for path in remove_leftovers(places):
        LOG.info("removed %s, which a run that was killed left half-written", path)


def carry_out(
    task: Task,
    detox: "SampDetox",
    batch_size: int | None,
    max_pixels: int,
    quiet: bool,
    together: Together | None = None,
) -> None:
    """Purify what is to do, and note in ``task`` what was done."""
    notes: list[Note] = [task.changes.note(detox.settings.t1)]
    if detox.triggers:
        task.matched = set()
        notes.append(matches_note(task.matched))
    if task.report is not None:
        task.about = about_detox(detox)
        notes.append(collect(task.rows, detox.calibration, pictures=task.report.suffix.lower() != ".csv"))

    def run(jobs: list[Job], detox: "SampDetox", notes: list[Note]) -> int:
        return purify_pictures(jobs, detox, batch_size, task.failures, quiet=quiet, notes=notes, max_pixels=max_pixels)

    task.done = run(task.todo, detox, notes if together is None else [*notes, together.note])
    if together is not None:
        failed = {failure.source for failure in task.failures}
        done, there = ([job for job in jobs if job.source not in failed] for jobs in (task.todo, task.there))
        task.carried = together.take_out(done, there, detox, lambda jobs, detox: run(jobs, detox, notes), max_pixels)
    task.changes.forget(task.failures)


def about_detox(detox: "SampDetox") -> list[str]:
    """How pictures are purified, as lines for a report."""
    from sampdetox_transforms import __version__

    lines = [f"{name.capitalize()}: {value}." for name, value in settings_of(detox).items()]
    if detox.calibration is not None:
        rate = detox.calibration.false_alarm_rate
        lines.append(f"Pictures are treated as triggered where the false-alarm rate is below {rate:.2%}.")
    seed = "fresh noise" if detox.seed is None else f"seed {detox.seed}"
    return [*lines, f"sampdetox {__version__}, {seed}."]
