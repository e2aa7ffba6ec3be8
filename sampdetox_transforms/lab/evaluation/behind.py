"""Images behind a ``SampDetox``, and a victim's answers to them: what the experiments with a search measure."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sampdetox_transforms.lab.evaluation.measure import CleanAndTriggered
from sampdetox_transforms.lab.evaluation.rows import Model
from sampdetox_transforms.lab.metrics import Share, backdoor_shares, paired_difference, predicted, wilson
from sampdetox_transforms.lab.victims.classifiers import predict
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.method.search import dilate
from sampdetox_transforms.transforms.transform import SampDetox

Ask = Callable[[Model, Tensor], Tensor]


@dataclass(frozen=True)
class Treated:
    """What a defense made of some images.

    Attributes:
        images: the results.
        calls: network calls of each.
        ms: an image.
        flagged: whether each was taken for a triggered one; None where the defense does not say.
        mask: what was taken out of each; None where the defense has none.
    """

    images: Float[Tensor, "n 3 h w"]
    calls: Float[Tensor, " n"]
    ms: float = 0.0
    flagged: Bool[Tensor, " n"] | None = None
    mask: Bool[Tensor, "n 1 h w"] | None = None


def treat(detox: SampDetox | None, images: Float[Tensor, "n 3 h w"], batch_size: int = 64) -> Treated:
    """All images through a defense; None for no defense."""
    if detox is None:
        return Treated(images, torch.zeros(len(images)))
    begin = time.perf_counter()
    parts = [detox.explain(part) for part in images.split(batch_size)]
    ms = 1000 * (time.perf_counter() - begin) / len(images)
    result = torch.cat([part.image for part in parts])
    calls = torch.cat([part.network_calls for part in parts]).float()
    masks = [part.found.mask for part in parts if part.found is not None]
    if not masks:
        return Treated(result, calls, ms)
    mask, level = torch.cat(masks), torch.cat([part.timestep_map for part in parts])
    return Treated(result, calls, ms, mask.flatten(1).any(1) | (level.flatten(1) > 0).any(1), mask)


def planted(victim: Victim, images: Float[Tensor, "n 3 h w"], labels: Int[Tensor, " n"]) -> CleanAndTriggered:
    """The images, and those of another class than the target's with the victim's trigger."""
    if victim.attack is None or victim.target_label is None:
        raise ValueError(f"a victim must have a backdoor to be triggered, got {victim.name!r} without. Leave it out.")
    other = labels != victim.target_label
    targets = labels[other]
    wanted = torch.full_like(targets, victim.target_label)
    return CleanAndTriggered(images, labels, victim.attack(images[other]), targets, wanted)


def answers(model: Model, images: Float[Tensor, "n 3 h w"]) -> Int[Tensor, " n"]:
    """The classes; ``functools.cache`` of it asks about the same images once."""
    return predicted(predict(model, images, 128)).cpu()


def victim_row(
    detox: SampDetox | None,
    victim: Victim,
    data: CleanAndTriggered,
    clean: Treated,
    *,
    ceiling: bool = False,
    ask: Ask = answers,
) -> dict[str, Any]:
    """CA, PA and ASR behind a defense, what CA lost by it, network calls, and what was flagged.

    Args:
        clean: ``treat`` of the clean images, which victims share.
        ask: ``answers``, or a cache of it for clean images, which victims with one network share.
        ceiling: PA, too, where the true region, grown by a pixel, is filled by the same networks; needs a search.
    """
    assert data.triggered is not None and data.targets is not None and data.attacker_labels is not None
    other = data.labels != victim.target_label
    treated = treat(detox, data.triggered)
    classes, answer = ask(victim.model, clean.images), answers(victim.model, treated.images)
    found = backdoor_shares(classes, data.labels, answer, data.targets, data.attacker_labels)
    row: dict[str, Any] = {name: rounded(share) for name, share in found.items()}
    right, before = classes == data.labels, ask(victim.model, data.clean) == data.labels
    row["CA difference"] = rounded(paired_difference(right, before))
    row["CA of the others"] = rounded(wilson(int(right[other].sum()), int(other.sum())))
    row["network calls"] = [mean(clean.calls), mean(treated.calls)]
    row["ms"] = round((clean.ms * len(data.clean) + treated.ms * len(answer)) / (len(data.clean) + len(answer)), 2)
    if clean.flagged is not None and treated.flagged is not None:
        row["flagged"] = [mean(clean.flagged), mean(treated.flagged)]
    if ceiling and detox is not None and detox.restorer is not None:
        sources = data.clean[other][: len(answer)]
        region = (data.triggered - sources).abs().amax(dim=1, keepdim=True) > 2 / 255
        row["covered"] = mean(region)
        best = filled(detox, data.triggered, region)
        row["ceiling"] = mean(answers(victim.model, best) == data.targets)
    return row


def filled(detox: SampDetox, images: Float[Tensor, "n 3 h w"], region: Bool[Tensor, "n 1 h w"]) -> Tensor:
    """The region, grown by a pixel, as the search networks predict it from the rest."""
    restorer: Any = detox.restorer
    parts = zip(images.split(64), region.split(64), strict=True)
    return torch.cat([(restorer.small.fill(x * 2 - 1, dilate(mask, 1)) + 1) / 2 for x, mask in parts])


def rounded(share: Share) -> dict[str, float]:
    """A share for JSON."""
    return {name: round(value, 4) for name, value in asdict(share).items()}


def mean(values: Tensor) -> float:
    return round(float(values.double().mean()), 4)


def value(share: Mapping[str, float] | float) -> float:
    """The value of a share, as it is stored now or as it was before it had an interval."""
    return float(share["value"] if isinstance(share, Mapping) else share)
