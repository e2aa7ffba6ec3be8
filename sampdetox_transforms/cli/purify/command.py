"""``sampdetox purify``: a picture or a folder tree of pictures."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.purify.actors import carry_out_on_ray
from sampdetox_transforms.cli.purify.buckets import place
from sampdetox_transforms.cli.purify.files import MAX_PIXELS
from sampdetox_transforms.cli.purify.report import write_report
from sampdetox_transforms.cli.purify.rows import in_order
from sampdetox_transforms.cli.purify.run import BATCH_MOST, BATCH_PIXELS
from sampdetox_transforms.cli.purify.task import Task, carry_out, prepare
from sampdetox_transforms.cli.purify.together import Together, check_together
from sampdetox_transforms.cli.shared import (
    check_at_least,
    check_writable,
    listen,
    make_detox,
    printable,
    say,
    say_json,
    settings_of,
)

LOG = logging.getLogger(__name__)

NOTES = """\
A folder is searched at any depth for pictures, by the ending of their names; other files, and names that begin with a
dot, are left out. OUT mirrors it: a/b.jpg becomes a/b.png. Pictures that would get one name, a/b.jpg and a/b.png, keep
theirs whole: a/b.jpg.png and a/b.png.png.

A result appears whole or not at all, and one that exists is skipped, whatever settings made it: after a kill, the same
command goes on where it stopped, and removes what was half-written. --overwrite makes all anew. Pictures that fail are
named at the end, and the exit status is 1 then.

The last line says how many pictures were changed beyond the light stage, which every picture goes through: those of
which something was filled, or noised more. A small picture loses smooth colour and faint detail before it, the
more of them the search takes for a trigger's; that is not counted, and --report says how much of the colour it was.

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

With --ray, actors of Ray Data share the pictures: one a card where the cluster has cards, else one a processor core,
each on one thread. There is one report. Pictures of an actor that dies are purified by another; one at which two die
fails. Without ADDRESS, the cluster is the one that RAY_ADDRESS names or that was started here, else one is started for
the run. The machines of a cluster must all see IN and OUT; they may be in a bucket.
"""


def purify(
    source: Annotated[str, typer.Argument(metavar="IN", help="A picture, or a folder; s3://bucket/folder, too.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A folder outside of IN; for a picture also a .png file.")],
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
    ray: flags.Ray = None,
    as_json: flags.Json = False,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Purify a picture, or a folder tree of pictures."""
    listen(verbose, quiet)
    check_at_least(1, max_pixels=max_pixels)
    task = prepare(place(source), place(out), report, overwrite)
    if together:
        check_together(task.todo + task.there, task.source, trigger, ray)
    settings: dict[str, Any] = {
        **{"weights": weights, "restorer": restorer, "calibration": calibration, "trigger": trigger},
        **{"preset": preset, "t1": t1, "t2": t2, "sampler": sampler, "stride": stride, "seed": seed},
        **{"dtype": dtype, "batch_size": batch_size},
    }
    try:
        if task.todo or together:
            folder = (task.todo or task.there)[0].target.parent
            if isinstance(folder, Path):
                check_writable(folder)
            detox = make_detox(device=device if ray is None else "cpu", **settings)
            for name, value in settings_of(detox).items():
                LOG.info("%s: %s", name, value)
            if ray is None:
                carry_out(task, detox, batch_size, max_pixels, quiet, Together() if together else None)
            else:
                carry_out_on_ray(task, detox, ray, device, batch_size, max_pixels, quiet)
    finally:
        for failure in task.failures:
            print(f"sampdetox: failed: {printable(failure)}", file=sys.stderr)
    if task.report is not None and not task.keep_report:
        write_report(task.report, in_order(task.rows, task.failures, task.todo), task.about, task.skipped)
    if as_json:
        say_json(as_document(task))
    else:
        say(as_text(task), quiet=quiet)
    return 1 if task.failures else 0


def as_text(task: Task) -> str:
    """What was done, in a line or two."""
    parts: Sequence[str] = [
        f"purified {task.done}",
        f"skipped {task.skipped} that exist already (--overwrite makes them anew)" if task.skipped else "",
        f"failed {len(task.failures)}" if task.failures else "",
        f"left out {task.left_out} other files" if task.left_out else "",
    ]
    listed = "" if task.report is None else f"; report {'of before kept' if task.keep_report else 'in'} {task.report}"
    lines = [f"{', '.join(part for part in parts if part)}; results in {task.out}{listed}"]
    if task.matched is not None:
        lines.append(f"the trigger was recognised in {len(task.matched)} of them, and taken out first")
    if task.carried is not None:
        lines += [each.sentence() for each in task.carried] or ["no trigger was found that pictures share"]
    if task.changes.shares:
        lines.append(task.changes.sentence(task.source))
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
