"""What was found in pictures, as a table for people (HTML) or for programs (CSV): a row a picture.

File names are untrusted: the template escapes all text, and the page forbids scripts and whatever lies outside of it.
"""

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from sampdetox_transforms.cli.purify.rows import SHOWN, Row, keep_pictures, most_suspicious
from sampdetox_transforms.cli.purify.thumbnails import shown_size
from sampdetox_transforms.cli.purify.tree import Job, Place

ENDINGS = (".html", ".htm", ".csv")

TEMPLATE = "report.html.jinja2"

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet computes where a cell begins with it


def check_place(report: Path, source: Place, jobs: Sequence[Job]) -> None:
    """Raise ValueError for a file that is no report by its ending, lies among pictures or takes a result's place.

    Args:
        report: where it is to go.
        source: the picture or folder of pictures, IN.
        jobs: the pictures in it, and where their results go.
    """
    if report.suffix.lower() not in ENDINGS:
        raise ValueError(f"--report must end in one of {ENDINGS}, got {str(report)!r}. Rename it to end in .html.")
    if report.is_dir():
        raise ValueError(f"--report must be a file, got the folder {report}. Name a file in it.")
    resolved = report.resolve()
    around = {resolved, *resolved.parents}
    inputs = {source, *(job.source.parent for job in jobs)} if source.is_dir() else {source}
    if any(path.resolve() in around for path in inputs):
        raise ValueError(f"--report must be outside of IN, got {report} for IN {source}. Give a file beside IN.")
    folders = {folder: folder.resolve() for folder in {job.target.parent for job in jobs}}
    results = {folders[job.target.parent] / job.target.name for job in jobs}
    places = {place for folder in folders.values() for place in (folder, *folder.parents)}
    if resolved in results | places or not results.isdisjoint(around):
        raise ValueError(f"--report must not be a result's file or folder, got {report}. Give another name.")


def write_report(report: Path, rows: Sequence[Row], about: Sequence[str], skipped: int) -> None:
    """Write the report, whole or not at all; OSError says that the pictures themselves are done."""
    from sampdetox_transforms._common import write_atomically

    as_csv = report.suffix.lower() == ".csv"
    text = render_csv(rows) if as_csv else render_html(rows, about=about, skipped=skipped)
    content = text.encode(errors="backslashreplace")  # file names need not be UTF-8
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(report, lambda path: path.write_bytes(content))
    except OSError as error:
        raise OSError(f"the pictures are done, but not the report {report}: {error.strerror or error}") from error


# CSV

COLUMNS = (
    *("source", "result", "p_value", "treated", "mask_share", "left", "top", "right", "bottom"),
    *("network_calls", "retouched", "largest_change", "mean_change", "failure"),
)


def render_csv(rows: Iterable[Row]) -> str:
    """One line a row in the order given, under ``COLUMNS``; what there is not is empty.

    A path that a spreadsheet would compute, =1.png, is written as the same path ./=1.png.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        treated = None if row.treated is None else "yes" if row.treated else "no"
        writer.writerow(
            (
                *(safe_path(row.source), safe_path(row.result), row.p_value, treated),
                *(row.mask_share, *(row.box or (None,) * 4)),
                *(row.network_calls, row.retouched, row.largest_change, row.mean_change, row.failure),
            )
        )
    return text.getvalue()


def safe_path(path: Place | None) -> str:
    """A path as text that no spreadsheet takes for a formula."""
    text = "" if path is None else str(path)
    return f"./{text}" if text.startswith(FORMULA) else text


# HTML


def render_html(rows: Sequence[Row], *, about: Sequence[str] = (), skipped: int = 0) -> str:
    """A page that needs nothing beside it, the most suspicious pictures first.

    Args:
        rows: in any order.
        about: lines on how the pictures were purified.
        skipped: how many pictures had a result before this run, and are not among the rows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=percent, base64=lambda png: base64.b64encode(png).decode(), size=shown_size)
    searched = any(row.treated is not None for row in rows)
    return environment.get_template(TEMPLATE).render(
        lines=[counts(rows, skipped), *about, *few_shown(rows)],
        rows=most_suspicious(keep_pictures(rows)),
        searched=searched,
        where="mask over it" if searched else "map: changed by stage 1",
    )


def counts(rows: Sequence[Row], skipped: int) -> str:
    """How many pictures were purified, treated, skipped, and failed."""
    failed = sum(bool(row.failure) for row in rows)
    parts = [f"{len(rows) - failed} purified"]
    if any(row.treated is not None for row in rows):
        parts.append(f"{sum(bool(row.treated) for row in rows)} of them treated as triggered")
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{skipped} skipped, whose results were there before this run: not listed"] if skipped else []
    return ", ".join(parts) + "."


def few_shown(rows: Sequence[Row]) -> list[str]:
    """The line that says so where some rows have no pictures."""
    purified = sum(not row.failure for row in rows)
    few = any(row.pictures for row in rows) and purified > SHOWN
    return [f"Pictures are shown of {SHOWN} rows at most, the first ones."] if few else []


def percent(share: float | None) -> str:
    """0.0125 -> 1.25 %; nothing for None."""
    return "" if share is None else f"{share * 100:.2f} %"
