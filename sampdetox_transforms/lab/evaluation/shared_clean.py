"""Where no images share a trigger: what the search claims, and what it costs."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sampdetox_transforms.lab.evaluation.shared_floods import Put
from sampdetox_transforms.lab.evaluation.shared_trigger import Purify, eight_bits
from sampdetox_transforms.lab.speed.clocks import Stopwatch
from sampdetox_transforms.method.shared_trigger import recover_shared
from sampdetox_transforms.transforms.shared_recovery import from_recovered


def claims_on_clean(
    pools: Mapping[str, tuple[Tensor, Tensor]],
    *,
    draws: int = 100,
    n: int = 200,
    false_alarm_rate: float = 0.01,
    seed: int = 0,
) -> dict[str, dict[str, int]]:
    """How often a trigger is claimed where there is none, the draws shared evenly among the kinds.

    Args:
        pools: for each kind clean images and what ``compare`` of ``measure_shared`` makes of them.
        draws: in all; each takes n images of one kind.

    Returns:
        For each kind "draws", "claimed", and "automatic": claims so small that they would be taken out unasked.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = {name: {"draws": 0, "claimed": 0, "automatic": 0} for name in pools}
    for draw in range(draws):
        name = list(pools)[draw % len(pools)]
        images, purified = pools[name]
        some = torch.randperm(len(images), generator=generator)[:n]
        found = recover_shared(images[some], purified[some], false_alarm_rate=false_alarm_rate, most=1, seed=draw)
        counts[name]["draws"] += 1
        counts[name]["claimed"] += bool(found)
        counts[name]["automatic"] += bool(found) and from_recovered(found[0], false_alarm_rate).is_small
    return counts


def measure_costs(
    put: Put, images: Float[Tensor, "n c h w"], compare: Purify, carriers: int = 20, at_once: int = 32
) -> dict[str, float | int | None]:
    """Seconds of the search and of matching, beside those of purifying the same images once, in one run.

    Args:
        put: makes the first ``carriers`` of the images share something.
        images: clean.
        compare: as for ``measure_shared``.

    Returns:
        "images", "purifying" in ms an image, and as shares of it "search, nothing shared", "search, found" and
        "matching", which are None where nothing was found.
    """
    watch = Stopwatch(images.device)
    purify, search = watch.timed("purify", compare), recover_shared
    purified = torch.cat([purify(batch) for batch in images.split(at_once)])
    once = watch.seconds["purify"]
    watch.timed("nothing", search)(images, purified, most=1)
    with_it = eight_bits(put(images[:carriers]))
    shared = torch.cat([with_it, images[carriers:]])
    purified = torch.cat([compare(with_it), purified[carriers:]])
    found = watch.timed("found", search)(shared, purified, most=1)
    if found:
        watch.timed("matching", from_recovered(found[0], 0.01).matches)(images)
    seconds = {name: value / once for name, value in watch.seconds.items()}
    return {
        "images": len(images),
        "purifying": 1000 * once / len(images),
        "search, nothing shared": seconds["nothing"],
        "search, found": seconds["found"] if found else None,
        "matching": seconds["matching"] if found else None,
    }
