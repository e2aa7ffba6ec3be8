"""``sampdetox purify --together``: what pictures of the folder share is taken out of those that carry it.

All pictures are purified as without it. What was taken out of them is compared, and those that carry a shared trigger
are purified anew without it; results that an earlier run wrote are compared as well.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampdetox_transforms.cli.purify.files import PictureError, read_picture
from sampdetox_transforms.cli.purify.run import Note, batches, load_pictures
from sampdetox_transforms.cli.purify.tree import Failure, Job, Place

if TYPE_CHECKING:
    from torch import Tensor

    from sampdetox_transforms.transforms.explanation import Explanation
    from sampdetox_transforms.transforms.shared_trigger import SharedTrigger
    from sampdetox_transforms.transforms.transform import SampDetox

RATE = 0.01  # how often a trigger may be claimed where pictures share nothing

LEAST = 8  # pictures; tested to be what the library asks for


Run = Callable[[list[Job], "SampDetox"], Any]


@dataclass
class Together:
    """What is remembered of the pictures, in bounded memory."""

    kept: dict[tuple[int, ...], Any] = field(default_factory=dict)

    def note(self, jobs: Sequence[Job], images: "Tensor", explained: "Explanation") -> None:
        """What ``purify_pictures`` tells of each batch."""
        share = None if explained.found is None else explained.found.p_value
        self.add(images, explained.image, share)

    def add_results(self, jobs: Iterable[Job], max_pixels: int) -> None:
        """Pictures whose results an earlier run wrote."""
        import torch

        for batch in batches(load_pictures(jobs, [], max_pixels), None):
            pairs = []
            for job, picture in batch:
                try:
                    result = read_picture(job.target, max_pixels=max_pixels).pixels
                except PictureError:
                    continue
                if result.shape == picture.pixels.shape and result.dtype == picture.pixels.dtype:
                    pairs.append((picture.pixels, result))
            if pairs:
                before, after = (torch.stack(part) for part in zip(*pairs, strict=True))
                self.add(before, after, None)

    def add(self, images: "Tensor", purified: "Tensor", share: "Tensor | None") -> None:
        import torch

        from sampdetox_transforms.transforms.shared_images import as_unit, kept_of

        x, clean = as_unit(images), as_unit(purified)
        share = torch.ones(len(x)) if share is None else share.float()
        kept_of(self.kept, x).add(x, clean, share)

    def take_out(
        self, done: Sequence[Job], there: Sequence[Job], detox: "SampDetox", run: Run, max_pixels: int
    ) -> "list[Carried]":
        """Look for what pictures share, and purify those that carry it anew without it.

        Args:
            done: pictures that were noted.
            there: pictures whose results an earlier run wrote.
            detox: purified them.
            run: purifies pictures and writes them.
            max_pixels: larger pictures are left out.
        """
        self.add_results(there, max_pixels)
        found = who_carries(self.recover(detox), [*done, *there], max_pixels)
        by_shape: dict[Any, list[Carried]] = {}
        for each in (each for each in found if each.taken):
            by_shape.setdefault(each.trigger.pattern.shape, []).append(each)
        for same in by_shape.values():
            again = {job.source: job for each in same for job in each.jobs}
            run(list(again.values()), detox.with_trigger([each.trigger for each in same]))
        return found

    def recover(self, detox: "SampDetox") -> "list[SharedTrigger]":
        """What pictures of each size share, none where there are too few."""
        from sampdetox_transforms.transforms.shared_images import fill_by
        from sampdetox_transforms.transforms.shared_recovery import recover_kept

        return recover_kept(self.kept, RATE, fill_by(detox))


@dataclass
class Carried:
    """A trigger, the pictures that carry it, and how many pictures have its size."""

    trigger: "SharedTrigger"
    jobs: list[Job] = field(default_factory=list)
    of: int = 0

    @property
    def taken(self) -> bool:
        """Whether it is taken out with nobody asked: small, faint, and not in most of the pictures."""
        from sampdetox_transforms.transforms.shared_trigger import LARGEST_SHARE

        return self.trigger.is_small and len(self.jobs) <= LARGEST_SHARE * self.of

    def sentence(self) -> str:
        """What was found and done."""
        many = f"{len(self.jobs)} of {self.of} pictures share a trigger"
        if self.taken:
            return f"{many}: it was taken out of them"
        why = "most of them carry it" if self.trigger.is_small else "it is large"
        return f"{many}, which was left in: {why}; 'sampdetox recover' shows it, --trigger takes it out"

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "pictures": len(self.jobs),
            "of": self.of,
            "shape": list(self.trigger.pattern.shape),
            "p_value": self.trigger.p_value,
            "taken_out": self.taken,
        }


def who_carries(triggers: "Sequence[SharedTrigger]", jobs: Iterable[Job], max_pixels: int) -> list[Carried]:
    """Which of the pictures carry which trigger."""
    import torch

    from sampdetox_transforms.transforms.shared_images import as_unit

    found = [Carried(trigger) for trigger in triggers]
    failures: list[Failure] = []
    for batch in batches(load_pictures(jobs, failures, max_pixels), None) if triggers else ():
        images = as_unit(torch.stack([picture.pixels for _, picture in batch]))
        for each in (each for each in found if each.trigger.pattern.shape == images.shape[1:]):
            each.of += len(batch)
            hits = each.trigger.matches(images).tolist()
            each.jobs += [job for (job, _), hit in zip(batch, hits, strict=True) if hit]
    return found


def check_together(jobs: Sequence[Job], source: Place, trigger: Path | None, ray: str | None) -> None:
    """Raise ValueError where --together stands beside what it cannot go with, or has too few pictures."""
    for wrong, why in (
        (trigger is not None, "--trigger, which knows one already"),
        (ray is not None, "--ray, whose processes see a part of the pictures each"),
        (len(jobs) < LEAST, f"{len(jobs)} of {source}"),
    ):
        if wrong:
            raise ValueError(f"--together must compare {LEAST} pictures of a folder or more, got {why}. Leave it out.")


def matches_note(matched: "set[Any]") -> Note:
    """Adds to ``matched`` the pictures in which a trigger that is known was recognised."""

    def note(jobs: Sequence[Job], images: "Tensor", explained: "Explanation") -> None:
        if explained.matched is not None:
            hits = explained.matched.tolist()
            matched.update(job.source for job, hit in zip(jobs, hits, strict=True) if hit)

    return note
