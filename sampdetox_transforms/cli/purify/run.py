"""Pictures of one size through the transform together."""

import errno
import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sampdetox_transforms._common import one_line
from sampdetox_transforms.cli.purify.files import MAX_PIXELS, Picture, PictureError, read_picture, write_picture
from sampdetox_transforms.cli.purify.tree import Failure, Job
from sampdetox_transforms.cli.shared import bar_off, printable

if TYPE_CHECKING:
    from torch import Tensor

    from sampdetox_transforms.transforms.explanation import Explanation
    from sampdetox_transforms.transforms.transform import SampDetox

LOG = logging.getLogger(__name__)

BATCH_PIXELS, BATCH_MOST = 512 * 512, 64  # by default a batch is as many pictures as have so many pixels in all

THIS_FILE_ONLY = (errno.ENAMETOOLONG, errno.EISDIR)  # writing fails for one picture; all else would fail for every one

Note = Callable[[Sequence[Job], "Tensor", "Explanation"], None]


def purify_pictures(
    jobs: Sequence[Job],
    detox: "SampDetox",
    batch_size: int | None,
    failures: list[Failure],
    *,
    quiet: bool = False,
    notes: Sequence[Note] = (),
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Purify and write pictures, batch by batch; returns how many were written, and adds the others to ``failures``.

    Args:
        quiet: draw no bar; without it, one is drawn where stderr is a terminal.
        notes: each is told what was done to each batch, before its results are written: its jobs, the (n, c, h, w)
            pictures and their explanation. Keeping these keeps them in memory.
        max_pixels: larger pictures fail.

    Raises:
        OSError: results cannot be written at all: a full disk, say.
    """
    from tqdm import tqdm

    done, before = 0, len(failures)
    with tqdm(total=len(jobs), unit="picture", file=sys.stderr, disable=bar_off(quiet)) as bar:
        for batch in batches(load_pictures(jobs, failures, max_pixels), batch_size):
            try:
                with inside(bar, detox, batch):
                    results = purify_batch(batch, detox, notes)
            except ValueError as error:  # too large for the network's attention
                failures += [Failure(job.source, one_line(error)) for job, _ in batch]
                continue
            for (job, picture), pixels in zip(batch, results, strict=True):
                try:
                    write_picture(job.target, picture, pixels)
                    done += 1
                    LOG.info("%s is purified", job.source)
                except OSError as error:
                    problem = f"{job.target} cannot be written: {error.strerror or error}"
                    if error.errno not in THIS_FILE_ONLY:
                        raise OSError(f"{problem}. {done} are done; start the same command again to go on.") from error
                    failures.append(Failure(job.source, problem))
            bar.update(done + len(failures) - before - bar.n)
    return done


def purify_batch(batch: Sequence[tuple[Job, Picture]], detox: "SampDetox", notes: Sequence[Note]) -> "Tensor":
    """The results of pictures of one shape; the explanation, which is larger, is made for ``notes`` only."""
    import torch

    pixels = torch.stack([picture.pixels for _, picture in batch])
    if not notes:
        return detox(pixels)
    explained = detox.explain(pixels)
    for note in notes:
        note([job for job, _ in batch], pixels, explained)
    return explained.image


@contextmanager
def inside(bar: Any, detox: "SampDetox", batch: Sequence[tuple[Job, Picture]]) -> Iterator[None]:
    """Within it, the bar names the batch and counts the network's calls: it moves inside one large picture."""
    if bar.disable:
        yield
        return
    names = printable(batch[0][0].source.name) + (f" and {len(batch) - 1} more" if len(batch) > 1 else "")
    calls, shown = 0, 0.0

    def tick() -> None:
        nonlocal calls, shown
        calls += 1
        if time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            bar.set_postfix_str(f"{names}: {calls} network calls")

    bar.set_postfix_str(names)
    with on_network_calls(detox, tick):
        yield


@contextmanager
def on_network_calls(detox: Any, tick: Callable[[], None]) -> Iterator[None]:
    """Within it, ``tick`` is called after each call of a network of ``detox``: each tile of a large picture is one."""
    from torch import nn

    networks = (getattr(getattr(detox, "denoiser", None), "network", None), getattr(detox, "restorer", None))
    hooks = [network.register_forward_hook(lambda *_: tick()) for network in networks if isinstance(network, nn.Module)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def load_pictures(
    jobs: Iterable[Job], failures: list[Failure], max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[Job, Picture]]:
    """Read one picture after the other; those that cannot be read are added to ``failures``."""
    for job in jobs:
        try:
            picture = read_picture(job.source, max_pixels=max_pixels)
        except PictureError as error:
            failures.append(Failure(job.source, error.reason))
        else:
            yield job, picture


def batches(pictures: Iterable[tuple[Job, Picture]], batch_size: int | None) -> Iterator[list[tuple[Job, Picture]]]:
    """Group pictures that follow each other and have one shape and dtype, reading no further than a batch."""
    for (shape, _), same in itertools.groupby(pictures, lambda item: (item[1].pixels.shape, item[1].pixels.dtype)):
        limit = batch_size or max(1, min(BATCH_MOST, BATCH_PIXELS // (shape[1] * shape[2])))
        while batch := list(itertools.islice(same, limit)):
            yield batch
