"""``recover_trigger``: from many images to the trigger that some of them share."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sampdetox_transforms.method.shared_trigger import MOST, Recovered, recover_shared
from sampdetox_transforms.transforms.shared_images import (
    LEAST_IMAGES,
    Fill,
    Kept,
    batches_of,
    check_images_given,
    fill_by,
    keep,
)
from sampdetox_transforms.transforms.shared_trigger import SharedTrigger


def recover_trigger(images: Any, detox: Any, *, false_alarm_rate: float = 0.01) -> SharedTrigger | None:
    """The trigger that some of many images share, recovered without labels or a classifier; None without one.

    What ``detox`` takes out of each image is compared with what it takes out of the others.

    Args:
        images: (n, c, h, w), uint8 or floats in [0, 1], or an iterable of such batches (or of tuples that begin with
            one, such as a ``DataLoader``), of one size. All are looked at once, and all are matched once; memory does
            not grow with their number.
        detox: a ``SampDetox``.
        false_alarm_rate: how often a trigger may be claimed where images have nothing in common but chance, and the
            share of images without the trigger that may match it.

    Raises:
        ValueError: fewer than 8 different images, images of several sizes, grey ones among those in colour, NaN, a
            rate outside (0, 1).
        TypeError: an iterator, which is used up after one pass; images that are no tensors.
    """
    found = _recover(images, detox, false_alarm_rate, most=1, sizes=1)
    return found[0] if found else None


def recover_triggers(
    images: Any, detox: Any, *, false_alarm_rate: float = 0.01, most: int = MOST
) -> list[SharedTrigger]:
    """As ``recover_trigger``, all triggers that are found one after the other, and those of each size of image.

    ``pattern.shape`` says which size a trigger belongs to. Sizes with fewer than 8 different images are left out.
    """
    return _recover(images, detox, false_alarm_rate, most=most, sizes=None)


def _recover(images: Any, detox: Any, rate: float, *, most: int, sizes: int | None) -> list[SharedTrigger]:
    check_rate(rate)
    check_images_given(images)
    kept = keep(images, detox)
    if sizes is not None and len(kept) > sizes:
        shapes = ", ".join("x".join(map(str, shape[1:])) for shape in kept)
        raise ValueError(f"images must have one size, got {shapes}. Use recover_triggers, one result for each size.")
    check_enough(kept)
    return _counted(recover_kept(kept, rate, fill_by(detox), most=most), images)


def check_rate(rate: Any) -> None:
    """Raise ValueError for a false-alarm rate that permutations cannot reach."""
    if isinstance(rate, bool) or not isinstance(rate, float | int) or not 0.001 <= rate < 1:
        raise ValueError(f"false_alarm_rate must be in [0.001, 1), got {rate!r}. 0.01 is the default.")


def check_enough(kept: Mapping[tuple[int, ...], Kept]) -> None:
    """Raise ValueError where there are too few different images of any one size."""
    largest = max((len(own.items) for own in kept.values()), default=0)
    if largest < LEAST_IMAGES:
        raise ValueError(
            f"images must be {LEAST_IMAGES} different ones or more, got {largest} of one size. "
            "Collect more; duplicates count once."
        )


def recover_kept(
    kept: Mapping[tuple[int, ...], Kept], rate: float, fill: Fill | None = None, *, most: int = MOST
) -> list[SharedTrigger]:
    """The triggers of images of all sizes that were looked at already; ``images`` counts those that it came from."""
    return [
        from_recovered(each, rate, fill)
        for own in kept.values()
        if len(own.items) >= LEAST_IMAGES
        for each in recover_shared(*own.tensors(), false_alarm_rate=rate, most=most)
    ]


def from_recovered(recovered: Recovered, false_alarm_rate: float, fill: Fill | None = None) -> SharedTrigger:
    """What was recovered, as users get it."""
    return SharedTrigger(
        pattern=recovered.shared.pattern,
        opacity=recovered.shared.opacity,
        p_value=recovered.p_value,
        images=int(recovered.members.sum()),
        false_alarm_rate=float(false_alarm_rate),
        known=recovered.known,
        moves=recovered.moves,
        fill=fill,
    )


def _counted(triggers: list[SharedTrigger], images: Any) -> list[SharedTrigger]:
    """The pass for matching: in how many of all images each one is."""
    numbers = [0] * len(triggers)
    for batch in batches_of(images) if triggers else ():
        for i, trigger in enumerate(triggers):
            if batch.shape[1:] == trigger.pattern.shape:
                numbers[i] += int(trigger.matches(batch).sum())
    return [replace(trigger, images=number) for trigger, number in zip(triggers, numbers, strict=True)]
