"""Pictures of one size through the transform together."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sampdetox_transforms._common import one_line
from sampdetox_transforms.cli.purify.files import Picture, PictureError, read_picture, write_picture
from sampdetox_transforms.cli.purify.tree import THIS_FILE_ONLY, Failure, Job, Note

if TYPE_CHECKING:
    from torch import Tensor

    from sampdetox_transforms.transforms.transform import SampDetox


BATCH_PIXELS, BATCH_MOST = 512 * 512, 64  # by default a batch is as many pictures as have so many pixels in all


def purify_pictures(
    jobs: Sequence[Job],
    detox: "SampDetox",
    batch_size: int | None,
    failures: list[Failure],
    *,
    show: bool = True,
    note: Note | None = None,
) -> int:
    """Purify and write pictures, batch by batch; returns how many were written, and adds the others to ``failures``.

    Args:
        show: draw a bar where stderr is a terminal.
        note: is told what was done to each batch, before its results are written: its jobs, the (n, c, h, w) pictures
            and their explanation. Keeping these keeps them in memory.

    Raises:
        OSError: results cannot be written at all: a full disk, say.
    """
    from tqdm import tqdm

    done, before = 0, len(failures)
    with tqdm(total=len(jobs), unit="picture", file=sys.stderr, disable=None if show else True) as bar:
        for batch in batches(load_pictures(jobs, failures), batch_size):
            try:
                results = purify_batch(batch, detox, note)
            except ValueError as error:  # too large for the network's attention
                failures += [Failure(job.source, one_line(error)) for job, _ in batch]
                continue
            for (job, picture), pixels in zip(batch, results, strict=True):
                try:
                    write_picture(job.target, picture, pixels)
                    done += 1
                except OSError as error:
                    problem = f"{job.target} cannot be written: {error.strerror or error}"
                    if error.errno not in THIS_FILE_ONLY:
                        raise OSError(f"{problem}. {done} are done; start the same command again to go on.") from error
                    failures.append(Failure(job.source, problem))
            bar.update(done + len(failures) - before - bar.n)
    return done


def purify_batch(batch: Sequence[tuple[Job, "Picture"]], detox: "SampDetox", note: Note | None) -> "Tensor":
    """The results of pictures of one shape; the explanation, which is larger, is made for ``note`` only, and let go."""
    import torch

    pixels = torch.stack([picture.pixels for _, picture in batch])
    if note is None:
        return detox(pixels)
    explained = detox.explain(pixels)
    note([job for job, _ in batch], pixels, explained)
    return explained.image


def load_pictures(jobs: Iterable[Job], failures: list[Failure]) -> Iterator[tuple[Job, "Picture"]]:
    """Read one picture after the other; those that cannot be read are added to ``failures``."""
    for job in jobs:
        try:
            picture = read_picture(job.source)
        except PictureError as error:
            failures.append(Failure(job.source, error.reason))
        else:
            yield job, picture


def batches(pictures: Iterable[tuple[Job, "Picture"]], batch_size: int | None) -> Iterator[list[tuple[Job, "Picture"]]]:
    """Group pictures that follow each other and have one shape and dtype, reading no further than a batch."""
    for (shape, _), same in itertools.groupby(pictures, lambda item: (item[1].pixels.shape, item[1].pixels.dtype)):
        limit = batch_size or max(1, min(BATCH_MOST, BATCH_PIXELS // (shape[1] * shape[2])))
        while batch := list(itertools.islice(same, limit)):
            yield batch
