"""``sampdetox purify``: a picture or a folder tree of pictures."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.purify.files import MAX_PIXELS
from sampdetox_transforms.cli.purify.ranks import Rank, current_rank, device_of_rank, shard, status_of
from sampdetox_transforms.cli.purify.report import check_place, write_report
from sampdetox_transforms.cli.purify.rows import Changes, Row, collect, in_order
from sampdetox_transforms.cli.purify.run import BATCH_MOST, BATCH_PIXELS, Note, purify_pictures
from sampdetox_transforms.cli.purify.together import Carried, Together, check_together, matches_note
from sampdetox_transforms.cli.purify.tree import Failure, Job, plan, remove_leftovers
from sampdetox_transforms.cli.shared import (
    check_at_least,
    check_writable,
    choose_device,
    listen,
    make_detox,
    printable,
    say,
    say_json,
    settings_of,
)

if TYPE_CHECKING:
    from sampdetox_transforms.transforms.transform import SampDetox

LOG = logging.getLogger(__name__)

NOTES = """\
A folder is searched at any depth for pictures, by the ending of their names; other files, and names that begin with a
dot, are left out. OUT mirrors it: a/b.jpg becomes a/b.png. Pictures that would get one name, a/b.jpg and a/b.png, keep
theirs whole: a/b.jpg.png and a/b.png.png.

A result appears whole or not at all, and one that exists is skipped, whatever settings made it: after a kill, the same
command goes on where it stopped, and removes what was half-written. --overwrite makes all anew. Pictures that fail are
named at the end, and the exit status is 1 then.

The last line says how many pictures were changed beyond the light stage, which every picture goes through: those of
which something was filled, or noised more.

--report lists what was found in the pictures that this run purified, and those that failed; what was skipped is counted
only. The .html file shows pictures of the most suspicious ones, and needs no other file; the .csv file has plain
numbers in the order of the folder. It is written at the end: a run that is stopped writes none. Where a report exists
already, a run with nothing left to do keeps it, and any other ends before it begins, unless --overwrite makes results
and report anew.

Results are PNG, turned upright, without EXIF data. Transparency and the colour profile are kept, and grey pictures of
16 bits stay so. Not purified, but named at the end: 16-bit colour, 32-bit and floating-point pictures, pictures of
several frames (GIF, TIFF, APNG; of a phone's MPO file the first is taken), and those of more than --max-pixels.

--together compares what is taken out of the pictures, and looks for a trigger that some of them share; those that carry
one are purified anew without it. The results then depend on which pictures lie in IN together, and it is off unless
asked for. What covers much, or is in most pictures, is reported and left in. It needs 8 pictures or more of one size.

Several processes share the pictures where a launcher sets RANK and WORLD_SIZE:

\b
  torchrun --nproc-per-node 4 -m sampdetox_transforms purify IN OUT

On CUDA each takes a card of its own; on processors, set OMP_NUM_THREADS. Each writes a report of its own part:
report.rank0.html, report.rank1.html, ... Under torchrun the exit status is 0 where only pictures failed: for any other
it would stop the other processes.
"""


def purify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A picture, or a folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder outside of IN; for a picture also a .png file.")],
    weights: flags.Weights = None,
    restorer: flags.Restorer = None,
    calibration: flags.Calibration = None,
    trigger: flags.Trigger = None,
    together: Annotated[
        bool,
        typer.Option("--together", show_default="each by itself", help="Take out a trigger that pictures of IN share."),
    ] = False,
    preset: flags.Preset = None,
    t1: flags.T1 = None,
    t2: flags.T2 = None,
    sampler: flags.Sampler = None,
    stride: flags.Stride = None,
    seed: flags.FreshSeed = None,
    dtype: flags.DtypeFlag = flags.Dtype.AUTO,
    device: flags.Device = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            show_default=f"as many as have {BATCH_PIXELS // 1024} * 1024 pixels, at most {BATCH_MOST}",
            help="Pictures of equal size at once, 1 or more.",
        ),
    ] = None,
    max_pixels: flags.MaxPixels = MAX_PIXELS,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", show_default="keep them", help="Make results that exist anew, and the report."),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="none",
            help="List what was found where, one row a picture: a .html file with small pictures, or a .csv file, "
            "outside of IN.",
        ),
    ] = None,
    as_json: flags.Json = False,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Purify a picture, or a folder tree of pictures."""
    listen(verbose, quiet)
    check_at_least(1, max_pixels=max_pixels)
    rank = current_rank(os.environ)
    task = prepare(source, out, report, rank, overwrite)
    if together:
        check_together(task.todo + task.there, source, trigger, rank)
    settings: dict[str, Any] = {
        **{"weights": weights, "restorer": restorer, "calibration": calibration, "trigger": trigger},
        **{"preset": preset, "t1": t1, "t2": t2, "sampler": sampler, "stride": stride, "seed": seed},
        **{"dtype": dtype, "device": device, "batch_size": batch_size},
    }
    try:
        if task.todo or together:
            check_writable((task.todo or task.there)[0].target.parent)
            if rank.world > 1:
                settings["device"] = device_of_rank(choose_device(device), rank)
            carry_out(task, make_detox(**settings), batch_size, max_pixels, quiet, Together() if together else None)
    finally:
        for failure in task.failures:
            print(f"sampdetox: failed: {printable(failure)}", file=sys.stderr)
    if task.report is not None and not task.keep_report:
        write_report(task.report, in_order(task.rows, task.failures, task.todo), task.about, task.skipped)
    if as_json:
        say_json(as_document(task))
    else:
        say(as_text(task, rank), quiet=quiet)
    return status_of(len(task.failures), os.environ)


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

    source: Path
    out: Path
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
    matched: set[Path] | None = None
    carried: list[Carried] | None = None

    @property
    def skipped(self) -> int:
        """How many pictures have their result already."""
        return len(self.there)


def prepare(source: Path, out: Path, report: Path | None, rank: Rank, overwrite: bool) -> Task:
    """What there is to do, with all paths checked; removes what a run that was killed left half-written."""
    jobs, failures, left_out = plan(source, out)
    report = None if report is None else report_of_rank(report, rank)
    if report is not None:
        check_place(report, source, jobs)
        check_writable(report.parent)
    places = [job.target for job in jobs] + ([] if report is None else [report])
    jobs = shard(jobs, rank)
    if rank.index > 0:
        failures, left_out = [], 0  # rank 0 names what is the matter with the tree
    todo = [job for job in jobs if overwrite or not job.target.is_file()]
    missing = {job.source for job in todo}
    there = [job for job in jobs if job.source not in missing]
    keep = report is not None and report.exists() and not overwrite
    if keep and todo:
        raise ValueError(
            f"--report must be a file that does not exist yet, got {report}. Give another name; --overwrite replaces "
            "it, and makes all results anew."
        )
    if rank.world == 1:  # the others may be on another machine, where their numbers mean other processes
        for path in remove_leftovers(places):
            LOG.info("removed %s, which a run that was killed left half-written", path)
    return Task(source, out, todo, there, left_out, report, keep, failures)


def carry_out(
    task: Task,
    detox: "SampDetox",
    batch_size: int | None,
    max_pixels: int,
    quiet: bool,
    together: Together | None = None,
) -> None:
    """Purify what is to do, and note in ``task`` what was done."""
    for name, value in settings_of(detox).items():
        LOG.info("%s: %s", name, value)
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


def report_of_rank(report: Path, rank: Rank) -> Path:
    """The report of this process: the file itself, or with several processes report.rank0.html and so on."""
    return report if rank.world == 1 else report.with_name(f"{report.stem}.rank{rank.index}{report.suffix}")


def about_detox(detox: "SampDetox") -> list[str]:
    """How pictures are purified, as lines for a report."""
    from sampdetox_transforms import __version__

    lines = [f"{name.capitalize()}: {value}." for name, value in settings_of(detox).items()]
    if detox.calibration is not None:
        rate = detox.calibration.false_alarm_rate
        lines.append(f"Pictures are treated as triggered where the false-alarm rate is below {rate:.2%}.")
    seed = "fresh noise" if detox.seed is None else f"seed {detox.seed}"
    return [*lines, f"sampdetox {__version__}, {seed}."]


def as_text(task: Task, rank: Rank) -> str:
    """What was done, in a line or two."""
    parts: Sequence[str] = [
        f"purified {task.done}",
        f"skipped {task.skipped} that exist already (--overwrite makes them anew)" if task.skipped else "",
        f"failed {len(task.failures)}" if task.failures else "",
        f"left out {task.left_out} other files" if task.left_out else "",
    ]
    who = f"rank {rank.index} of {rank.world}: " if rank.world > 1 else ""
    listed = "" if task.report is None else f"; report {'of before kept' if task.keep_report else 'in'} {task.report}"
    lines = [f"{who}{', '.join(part for part in parts if part)}; results in {task.out}{listed}"]
    if task.matched is not None:
        lines.append(f"{who}the trigger was recognised in {len(task.matched)} of them, and taken out first")
    if task.carried is not None:
        lines += [each.sentence() for each in task.carried] or ["no trigger was found that pictures share"]
    if task.changes.shares:
        lines.append(who + task.changes.sentence(task.source))
    return "\n".join(map(printable, lines))


def as_document(task: Task) -> dict[str, Any]:
    """The same for programs, with all failures and all changed pictures."""
    changed = {str(path): share for path, share in task.changes.shares.items() if share > 0}
    return {
        "purified": task.done,
        "skipped": task.skipped,
        "left_out": task.left_out,
        "failed": [{"picture": str(failure.source), "reason": failure.reason} for failure in task.failures],
        "changed": {"count": task.changes.count, "most": task.changes.most, "share_of_pixels": changed},
        "matched": None if task.matched is None else sorted(map(str, task.matched)),
        "shared_triggers": None if task.carried is None else [each.document() for each in task.carried],
        "out": task.out,
        "report": task.report,
    }
