"""What was found in pictures: a row for each, their order, and how many were changed beyond the light stage."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sampdetox_transforms.cli.purify.run import Note
from sampdetox_transforms.cli.purify.thumbnails import draw
from sampdetox_transforms.cli.purify.tree import Failure, Job, Place

if TYPE_CHECKING:
    from torch import Tensor

    from sampdetox_transforms.method.calibration import Calibrations
    from sampdetox_transforms.transforms.explanation import Explanation

SHOWN = 200  # rows of an HTML report that have pictures, so that neither it nor the memory grows without end

NAMED = 3  # pictures that were changed most, in the last line


@dataclass(frozen=True)
class Row:
    """One picture; None where a preset does not search, or where the picture failed.

    Attributes:
        source, result: the file, and that of the result.
        p_value: the share of clean images that look at least as suspicious.
        treated: whether the rate is below the calibration's, or a wave or a shared trigger was taken out.
        mask_share: the share of the pixels in the mask.
        box: left, top, right, bottom of the mask in pixels, right and bottom exclusive; None for an empty mask.
        network_calls: how often the picture went through a network.
        largest_change, mean_change: between picture and result, in grey levels of 255.
        retouched: what was done without a network, in words; empty for nothing.
        failure: why there is no result; empty where there is one.
        pictures: PNG files of the original, where it was changed, and the result; none for CSV.
    """

    source: Place
    result: Place | None = None
    p_value: float | None = None
    treated: bool | None = None
    mask_share: float | None = None
    box: tuple[int, int, int, int] | None = None
    network_calls: int | None = None
    largest_change: float | None = None
    mean_change: float | None = None
    retouched: str = ""
    failure: str = ""
    pictures: tuple[bytes, ...] = ()


# From explanations to rows


def collect(rows: list[Row], calibration: "Calibrations | None", *, pictures: bool) -> Note:
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

    def part(value: Any) -> Any:
        return value[index] if isinstance(value, Tensor) else value

    parts = {name: part(value) for name, value in vars(explained).items()}
    if explained.found is not None:
        parts["found"] = replace(explained.found, **{name: part(v) for name, v in vars(explained.found).items()})
    if explained.retouched is not None:
        own = {name: part(v) for name, v in vars(explained.retouched).items()}
        parts["retouched"] = replace(explained.retouched, **own)
    return replace(explained, **parts)


def describe_result(
    source: Place, result: Place, pixels: "Tensor", explained: "Explanation", rate: float | None, *, pictures: bool
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
        retouched=retouched_in_words(explained),
        largest_change=change.amax().item(),
        mean_change=change.mean().item(),
        pictures=draw(pixels, explained) if pictures else (),
    )
    if explained.found is None or rate is None:
        return row
    p_value, mask = explained.found.p_value.item(), explained.found.mask
    return replace(
        row,
        p_value=p_value,
        treated=p_value < rate or has_wave(explained) or has_matched(explained),
        mask_share=mask.double().mean().item(),
        box=bounding_box(mask[0]),
    )


def retouched_in_words(explained: "Explanation") -> str:
    """What was done to one picture without a network; empty for nothing, and for less than a percent of its colour."""
    done = explained.retouched
    parts = ["shared trigger taken out"] if has_matched(explained) else []
    if done is None:
        return ", ".join(parts)
    parts += [f"{done.colour.item():.0%} of the smooth colour taken out"] if done.colour.item() >= 0.01 else []
    parts += ["wave taken out"] if has_wave(explained) else []
    parts += [f"pixels displaced by {done.jittered.item():.2g}"] if done.jittered.item() else []
    parts += [f"resampled by {done.resampled.item():g}"] if done.resampled.item() != 1 else []
    parts += [f"sharpened by {done.sharpened.item():g}"] if done.sharpened.item() else []
    return ", ".join(parts)


def has_wave(explained: "Explanation") -> bool:
    """Whether a wave was taken out of a picture; that needs no suspicion."""
    return explained.retouched is not None and bool(explained.retouched.waves)


def has_matched(explained: "Explanation") -> bool:
    """Whether a shared trigger was recognised in a picture and taken out."""
    return explained.matched is not None and bool(explained.matched)


def bounding_box(mask: "Tensor") -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of a mask (h, w), right and bottom exclusive; None where it is empty."""
    rows, columns = (mask.any(dim=dim).nonzero()[:, 0].tolist() for dim in (1, 0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if rows else None


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
        return (bool(row.failure), row.p_value is None, row.p_value or 0.0)

    return sorted(rows, key=key)


def keep_pictures(rows: Sequence[Row], limit: int = SHOWN) -> list[Row]:
    """The same rows in the same order, with pictures for the ``limit`` most suspicious ones only."""
    shown = {row.source for row in most_suspicious(rows)[:limit]}
    return [row if row.source in shown or not row.pictures else replace(row, pictures=()) for row in rows]


# What was changed beyond the light stage


@dataclass
class Changes:
    """How much of each picture has a mask, or a level above stage 1's: what the search or the local stage changed.

    Attributes:
        shares: of each picture that was purified the share of its pixels, in [0, 1].
    """

    shares: dict[Place, float] = field(default_factory=dict)

    def note(self, t1: float) -> Note:
        """What ``purify_pictures`` tells of each batch; ``t1`` is stage 1's level."""

        def note(jobs: Sequence[Job], images: "Tensor", explained: "Explanation") -> None:
            shares = share_beyond(explained, t1).tolist()
            self.shares.update((job.source, share) for job, share in zip(jobs, shares, strict=True))

        return note

    def forget(self, failures: Iterable[Failure]) -> None:
        """Leave out pictures whose result could not be written."""
        for failure in failures:
            self.shares.pop(failure.source, None)

    @property
    def count(self) -> int:
        """How many pictures were changed beyond the light stage."""
        return sum(share > 0 for share in self.shares.values())

    @property
    def most(self) -> list[Place]:
        """The pictures that were changed most, ``NAMED`` at most."""
        changed = [source for source, share in self.shares.items() if share > 0]
        return sorted(changed, key=lambda source: -self.shares[source])[:NAMED]

    def sentence(self, base: Place) -> str:
        """How many, and which ones most, by their paths below ``base``."""
        names = [below(base, path) for path in self.most]
        total = len(self.shares)
        pictures = "1 picture was" if total == 1 else f"{total} pictures were"
        most = f"; most: {', '.join(names)}" if names and total > 1 else ""
        return f"{self.count} of {pictures} changed beyond the light stage{most}"


def below(base: Any, path: Any) -> str:
    """A path as text, without ``base`` where it lies below it."""
    return str(path.relative_to(base) if path.is_relative_to(base) else path)


def share_beyond(explained: "Explanation", t1: float) -> "Tensor":
    """(n,), the share of the pixels of each image that are in the mask, or at a level above ``t1``.

    All of an image that lost a wave or a shared trigger, or was answered as one with a trigger all over it: a cast is
    answered at t1.
    """
    changed = explained.timestep_map > t1
    if explained.found is not None:
        changed = changed | explained.found.mask | explained.found.dense[..., None, None, None]
    if explained.retouched is not None:
        changed = changed | explained.retouched.waves[..., None, None, None]
    if explained.matched is not None:
        changed = changed | explained.matched[..., None, None, None]
    return changed.double().mean(dim=(-3, -2, -1))
