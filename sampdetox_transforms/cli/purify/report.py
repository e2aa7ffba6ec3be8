"""What was found in pictures, as a table for people (HTML) or for programs (CSV): a row a picture, then the text.

File names are untrusted: all text is escaped, and the HTML forbids scripts and whatever lies outside of it.
"""

import base64
import csv
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sampdetox_transforms.cli.purify.tree import Failure, Job, Note

if TYPE_CHECKING:
    from torch import Tensor

    from sampdetox_transforms.method.calibration import Calibration
    from sampdetox_transforms.transforms.explanation import Explanation


ENDINGS = (".html", ".htm", ".csv")

SIDE = 256  # pixels: larger pictures are shown smaller

LEAST_SIDE = 128  # pixels: smaller pictures are shown larger, by a whole factor

SHOWN = 200  # rows of an HTML report that have pictures, so that neither it nor the memory grows without end

MARK = (255, 0, 255)  # of masked pixels

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet computes where a cell begins with it


@dataclass(frozen=True)
class Row:
    """One picture; None where a preset does not search, or where the picture failed.

    Attributes:
        source, result: the file, and that of the result.
        false_alarm_rate, suspicion: as in ``Explanation``.
        treated: whether the rate is below the calibration's.
        mask_share: the share of the pixels in the mask.
        box: left, top, right, bottom of the mask in pixels, right and bottom exclusive; None for an empty mask.
        network_calls: how often the picture went through a network.
        largest_change, mean_change: between picture and result, in grey levels of 255.
        failure: why there is no result; empty where there is one.
        pictures: PNG files of the original, where it was changed, and the result; none for CSV.
    """

    source: Path
    result: Path | None = None
    false_alarm_rate: float | None = None
    suspicion: float | None = None
    treated: bool | None = None
    mask_share: float | None = None
    box: tuple[int, int, int, int] | None = None
    network_calls: int | None = None
    largest_change: float | None = None
    mean_change: float | None = None
    failure: str = ""
    pictures: tuple[bytes, ...] = ()


def check_place(report: Path, source: Path, jobs: Sequence[Job]) -> None:
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


# From explanations to rows


def collect(rows: list[Row], calibration: "Calibration | None", *, pictures: bool) -> Note:
    """What ``purify_pictures`` tells of each batch, and ``rows`` grows by; few of them keep their small pictures."""
    rate = None if calibration is None else calibration.false_alarm_rate

    def note(jobs: Sequence[Job], images: "Tensor", explained: "Explanation") -> None:
        before = len(rows)
        for i, job in enumerate(jobs):
            one = pick(explained, i)
            rows.append(describe_result(job.source, job.target, images[i], one, rate, pictures=pictures))
        if before // SHOWN < len(rows) // SHOWN:  # now and then, since it sorts
            rows[:] = keep_pictures(rows)

    return note


def pick(explained: "Explanation", index: int) -> "Explanation":
    """What an explanation of a batch says of one of its images."""
    from torch import Tensor

    parts = {name: value[index] if isinstance(value, Tensor) else value for name, value in vars(explained).items()}
    return replace(explained, **parts)


def describe_result(
    source: Path, result: Path, pixels: "Tensor", explained: "Explanation", rate: float | None, *, pictures: bool
) -> Row:
    """The row of a purified picture.

    Args:
        source, result: the files.
        pixels: the picture, (c, h, w), uint8, or floats in [0, 1].
        explained: of that picture alone, as from ``SampDetox.explain(pixels)``.
        rate: the calibration's false-alarm rate; None for a preset without search.
        pictures: whether to keep small pictures for HTML.
    """
    scale = 255 if pixels.is_floating_point() else 1
    change = (explained.image.double() - pixels.double()).abs() * scale
    row = Row(
        source,
        result,
        network_calls=int(explained.network_calls),
        largest_change=change.amax().item(),
        mean_change=change.mean().item(),
        pictures=draw(pixels, explained) if pictures else (),
    )
    if explained.mask is None or explained.false_alarm_rate is None or explained.suspicion is None or rate is None:
        return row
    found = explained.false_alarm_rate.item()
    return replace(
        row,
        false_alarm_rate=found,
        suspicion=explained.suspicion.item(),
        treated=found < rate,
        mask_share=explained.mask.double().mean().item(),
        box=bounding_box(explained.mask[0]),
    )


def bounding_box(mask: "Tensor") -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of a mask (h, w), right and bottom exclusive; None where it is empty."""
    rows, columns = (mask.any(dim=dim).nonzero()[:, 0].tolist() for dim in (1, 0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if rows else None


def draw(pixels: "Tensor", explained: "Explanation") -> tuple[bytes, bytes, bytes]:
    """PNG files of at most ``SIDE`` pixels: the original, the mask over it (else the map), the result."""
    before, after = shrink(as_bytes(pixels)), shrink(as_bytes(explained.image))
    where = stretch(shrink(explained.ssim_map)) if explained.mask is None else overlay(before, explained.mask)
    return encode(before), encode(where), encode(after)


def as_bytes(pixels: "Tensor") -> "Tensor":
    """(c, h, w), uint8 or floats in [0, 1] -> uint8."""
    import torch

    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8) if pixels.is_floating_point() else pixels


def small_size(height: int, width: int) -> tuple[int, int]:
    """Height and width with at most ``SIDE`` pixels, in proportion, 1 or more."""
    factor = min(1, SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def shrink(pixels: "Tensor") -> "Tensor":
    """(c, h, w) with at most ``SIDE`` pixels in height and width, each the mean of its area; the dtype is kept."""
    from torch.nn.functional import adaptive_avg_pool2d

    size = small_size(*pixels.shape[-2:])
    if size == pixels.shape[-2:]:
        return pixels
    mean = adaptive_avg_pool2d(pixels.float(), size)
    return (mean if pixels.is_floating_point() else mean.round()).to(pixels.dtype)


def stretch(values: "Tensor") -> "Tensor":
    """Numbers (1, h, w) -> uint8 with the largest as white, and 0, or what lies below it, as black."""
    import torch

    low, high = min(0.0, values.amin().item()), values.amax().item()
    return ((values - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8)


def overlay(small: "Tensor", mask: "Tensor") -> "Tensor":
    """A small picture, uint8, as (3, h, w) with the mask (1, h, w), of any size, marked; no masked pixel gets lost."""
    import torch
    from torch.nn.functional import adaptive_max_pool2d

    marked = adaptive_max_pool2d(mask.float(), small.shape[-2:]) > 0
    mixed = 0.4 * small.float() + 0.6 * torch.tensor(MARK, dtype=torch.float32, device=small.device)[:, None, None]
    return torch.where(marked, mixed.round().to(torch.uint8), small)


def encode(pixels: "Tensor") -> bytes:
    """(1 or 3, h, w), uint8, as a PNG file."""
    from PIL import Image

    x = pixels.detach().cpu()
    file = io.BytesIO()
    Image.fromarray((x[0] if len(x) == 1 else x.movedim(0, -1).contiguous()).numpy()).save(file, "PNG")
    return file.getvalue()


# The order of rows


def in_order(rows: Iterable[Row], failures: Iterable[Failure], jobs: Sequence[Job]) -> list[Row]:
    """Rows of what was purified, and of what failed, in the order of the jobs; folders that failed come last.

    A picture among the failures is failed, whatever its row says: its result could not be written.
    """
    found = {row.source: row for row in rows}
    found |= {failure.source: Row(failure.source, failure=failure.reason) for failure in failures}
    places = {job.source: i for i, job in enumerate(jobs)}
    return sorted(found.values(), key=lambda row: places.get(row.source, len(places)))


def most_suspicious(rows: Iterable[Row]) -> list[Row]:
    """Rows by how suspicious they are; then those without a search, and those that failed, each in their order."""

    def key(row: Row) -> tuple:
        found = row.false_alarm_rate is not None and row.suspicion is not None
        return (bool(row.failure), not found, row.false_alarm_rate or 0.0, -(row.suspicion or 0.0))

    return sorted(rows, key=key)


def keep_pictures(rows: Sequence[Row], limit: int = SHOWN) -> list[Row]:
    """The same rows in the same order, with pictures for the ``limit`` most suspicious ones only."""
    shown = {row.source for row in most_suspicious(rows)[:limit]}
    return [row if row.source in shown or not row.pictures else replace(row, pictures=()) for row in rows]


# CSV

COLUMNS = (
    *("source", "result", "false_alarm_rate", "suspicion", "treated", "mask_share", "left", "top", "right", "bottom"),
    *("network_calls", "largest_change", "mean_change", "failure"),
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
                *(safe_path(row.source), safe_path(row.result), row.false_alarm_rate, row.suspicion, treated),
                *(row.mask_share, *(row.box or (None,) * 4)),
                *(row.network_calls, row.largest_change, row.mean_change, row.failure),
            )
        )
    return text.getvalue()


def safe_path(path: Path | None) -> str:
    """A path as text that no spreadsheet takes for a formula."""
    text = "" if path is None else str(path)
    return f"./{text}" if text.startswith(FORMULA) else text


# HTML

STYLE = """\
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 1.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
caption { text-align: start; padding-block: .5rem; }
th, td { border-block-end: 1px solid GrayText; padding: .4rem .6rem; text-align: start; vertical-align: top; }
th[scope=row], .path { overflow-wrap: anywhere; min-width: 10rem; font-weight: normal; }
.number { text-align: end; font-variant-numeric: tabular-nums; white-space: nowrap; }
.treated th { border-inline-start: .3rem solid #c0392b; }
img { display: block; image-rendering: pixelated; max-width: none; }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

HEADINGS = (
    *("picture", "original", "{where}", "result", "result file", "false-alarm rate", "suspicion", "treated"),
    *("share in the mask", "mask: left, top, right, bottom", "network calls", "largest change", "mean change"),
)


def render_html(rows: Sequence[Row], *, about: Sequence[str] = (), skipped: int = 0) -> str:
    """A page that needs nothing beside it, the most suspicious pictures first.

    Args:
        rows: in any order.
        about: lines on how the pictures were purified.
        skipped: how many pictures had a result before this run, and are not among the rows.
    """
    failed = sum(bool(row.failure) for row in rows)
    searched = any(row.treated is not None for row in rows)
    counts = [f"{len(rows) - failed} purified"]
    if searched:
        counts.append(f"{sum(bool(row.treated) for row in rows)} of them treated as triggered")
    counts += [f"{failed} failed"] if failed else []
    counts += [f"{skipped} skipped, whose results were there before this run: not listed"] if skipped else []
    lines = [", ".join(counts) + ".", *about]
    shown = keep_pictures(rows)
    if any(row.pictures for row in rows) and len(rows) - failed > SHOWN:
        lines.append(f"Pictures are shown of {SHOWN} rows at most, the first ones.")
    where = "mask over it" if searched else "map: changed by stage 1"
    headings = "".join(f'<th scope="col">{heading.format(where=where)}</th>' for heading in HEADINGS)
    body = "\n".join(render_row(row, where) for row in most_suspicious(shown))
    paragraphs = "\n".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>What was found in the pictures</title>
<style>
{STYLE}</style>
</head>
<body>
<h1>What was found in the pictures</h1>
{paragraphs}
<div class="wide">
<table>
<caption>{caption(searched)}</caption>
<thead><tr>{headings}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
</body>
</html>
"""


def caption(searched: bool) -> str:
    """What the columns mean."""
    changes = "Changes are between picture and result, in grey levels of 255."
    if not searched:
        return f"These settings search for no trigger. White in the map is what stage 1 changed most. {changes}"
    return (
        "The most suspicious first. The false-alarm rate is the share of clean images that look at least as "
        "suspicious. Treated without a mask: a trigger all over the picture was suspected. Boxes are in pixels, right "
        f"and bottom exclusive. {changes}"
    )


def render_row(row: Row, where: str) -> str:
    """A row of the HTML table."""
    name = html.escape(str(row.source))
    head = f'<th scope="row">{name}</th>'
    if row.failure:
        return f'<tr>{head}<td colspan="{len(HEADINGS) - 1}">failed: {html.escape(row.failure)}</td></tr>'
    views = row.pictures or (None,) * 3
    texts = (f"{name}: original", f"{name}: {where}", f"{name}: result")
    images = "".join(f"<td>{embed(png, alt) if png else ''}</td>" for png, alt in zip(views, texts, strict=True))
    numbers = (
        percent(row.false_alarm_rate),
        "" if row.suspicion is None else f"{row.suspicion:.2f}",
        "" if row.treated is None else "yes" if row.treated else "no",
        percent(row.mask_share),
        "" if row.box is None else ", ".join(map(str, row.box)),
        str(row.network_calls),
        f"{row.largest_change:.1f}",
        f"{row.mean_change:.2f}",
    )
    cells = "".join(f'<td class="number">{text}</td>' for text in numbers)
    kind = ' class="treated"' if row.treated else ""
    return f'<tr{kind}>{head}{images}<td class="path">{html.escape(str(row.result))}</td>{cells}</tr>'


def percent(share: float | None) -> str:
    """0.0125 -> 1.25 %; nothing for None."""
    return "" if share is None else f"{share * 100:.2f} %"


def embed(png: bytes, alt: str) -> str:
    """A PNG file as an image element; small ones are shown larger by a whole factor, pixel by pixel."""
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))  # where PNG has them
    factor = max(1, -(-LEAST_SIDE // max(width, height)))
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" width="{width * factor}" height="{height * factor}" alt="{alt}">'
