"""Shared triggers measured: attack x share of triggered images x CA, PA, ASR, found, matched, beside the default alone.

``measure_shared`` makes the rows of one victim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sampdetox_transforms.lab.metrics import Share, wilson
from sampdetox_transforms.lab.victims.classifiers import predict
from sampdetox_transforms.method.shared_trigger import recover_shared
from sampdetox_transforms.transforms.shared_recovery import from_recovered
from sampdetox_transforms.transforms.shared_trigger import SharedTrigger

DEFAULT, TAKEN_OUT, BOTH = "default alone", "trigger taken out", "taken out, then default"


Purify = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n c h w"]]
Behind = Callable[[SharedTrigger], Purify]


@dataclass(frozen=True)
class Subject:
    """A classifier with a backdoor: images in [0, 1] to logits, what puts the trigger on, and the attacker's class."""

    name: str
    model: Callable[[Tensor], Tensor]
    trigger: Callable[[Tensor], Tensor]
    target_label: int


@dataclass(frozen=True)
class SharedRow:
    """One way to purify, for one victim and one share of triggered images in the traffic.

    Attributes:
        attack, triggered, defense: which; ``triggered`` of ``traffic`` images carry the trigger.
        CA, PA, ASR: as in the paper, with intervals; of other images than the traffic's.
        found: whether a trigger was claimed, ``p_value`` how surely.
        matched, clean_matched: shares of the triggered and the clean images of the evaluation that match.
        correlation: of what the recovered pattern changes in the mean image with what the true trigger changes.
    """

    attack: str
    triggered: int
    traffic: int
    defense: str
    CA: Share
    PA: Share
    ASR: Share
    found: bool
    p_value: float | None
    matched: Share
    clean_matched: Share
    correlation: float | None


@dataclass(frozen=True)
class Looked:
    """Images, their labels, and what is made of them."""

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    purified: Float[Tensor, "n c h w"]


def look(images: Tensor, labels: Tensor, purify: Purify, at_once: int = 32) -> Looked:
    """Purify images once; measurements of several victims share the clean ones."""
    return Looked(images, labels, torch.cat([purify(batch) for batch in images.split(at_once)]))


def measure_shared(
    subject: Subject,
    traffic: Looked,
    evaluation: Looked,
    purify: Purify,
    compare: Purify,
    *,
    triggered: Sequence[int] = (10, 40),
    false_alarm_rate: float = 0.01,
    fill: Any = None,
    behind: Behind | None = None,
) -> tuple[list[SharedRow], dict[int, SharedTrigger | None]]:
    """The rows of one victim, and the triggers that were recovered.

    The first images of the traffic whose class is not the target get the trigger. Labels serve the measuring only.

    Args:
        subject: the victim.
        traffic: clean images, and what ``compare`` makes of them.
        evaluation: others of the same size, and what ``purify`` makes of them.
        purify: the default, images in [0, 1] to images.
        compare: the same as it is for the search for what images share.
        triggered: how many images of the traffic carry the trigger.
        false_alarm_rate, fill: as for ``recover_trigger`` and ``SharedTrigger``.
        behind: the default that takes a trigger out first, for what it makes of all matched images; None leaves it out.
    """
    candidates = (traffic.labels != subject.target_label).nonzero()[:, 0][: max(triggered)]
    if len(candidates) < max(triggered):
        raise ValueError(
            f"traffic must have {max(triggered)} images of other classes than the target, got {len(candidates)}. "
            "Give more images."
        )
    with_trigger = look(eight_bits(subject.trigger(traffic.images[candidates])), traffic.labels[candidates], compare)
    others = evaluation.labels != subject.target_label
    true = evaluation.labels[others]
    attacked = look(eight_bits(subject.trigger(evaluation.images[others])), true, purify)

    def score(clean: Tensor, dirty: Tensor) -> dict[str, Share]:
        with torch.no_grad():
            answers, dirty_answers = (predict(subject.model, x, 64).argmax(dim=1) for x in (clean, dirty))
        return {
            "CA": share(answers == evaluation.labels),
            "PA": share(dirty_answers == true),
            "ASR": share(dirty_answers == subject.target_label),
        }

    rows, recovered = [], {}
    for number in triggered:
        some = candidates[:number]
        images = traffic.images.index_put((some,), with_trigger.images[:number])
        purified = traffic.purified.index_put((some,), with_trigger.purified[:number])
        found = recover_shared(images, purified, false_alarm_rate=false_alarm_rate, most=1)
        trigger = from_recovered(found[0], false_alarm_rate, fill) if found else None
        recovered[number] = trigger
        clean_hits, hits = (
            torch.zeros(len(x), dtype=torch.bool) if trigger is None else trigger.matches(x)
            for x in (evaluation.images, attacked.images)
        )
        ways: dict[str, tuple[Tensor, ...]] = {DEFAULT: (evaluation.purified, attacked.purified)}
        if trigger is not None:
            taken = [(x, trigger.remove(x.images), m) for x, m in ((evaluation, clean_hits), (attacked, hits))]
            ways[TAKEN_OUT] = tuple(torch.where(m[:, None, None, None], out, x.purified) for x, out, m in taken)
            if behind is not None:
                ways[BOTH] = tuple(purified_where(m, x, behind(trigger)) for x, _, m in taken)
        for defense, (clean, dirty) in ways.items():
            rows.append(
                SharedRow(
                    attack=subject.name,
                    triggered=number,
                    traffic=len(traffic.images),
                    defense=defense,
                    **score(clean, dirty),
                    found=trigger is not None,
                    p_value=None if trigger is None else trigger.p_value,
                    matched=share(hits),
                    clean_matched=share(clean_hits),
                    correlation=correlation(trigger, evaluation.images[others], attacked.images),
                )
            )
    return rows, recovered


def purified_where(matched: Tensor, looked: Looked, purify: Purify) -> Tensor:
    """What ``purify`` makes of the images that match; the others as the default left them."""
    result = looked.purified.clone()
    if bool(matched.any()):
        result[matched] = torch.cat([purify(batch) for batch in looked.images[matched].split(32)])
    return result


def correlation(trigger: SharedTrigger | None, clean: Tensor, dirty: Tensor) -> float | None:
    """Of what the recovered trigger and the true one change in the mean image; None for one without a place."""
    if trigger is None or trigger.moves:
        return None
    mean = clean.mean(dim=0)
    change = (mean * (1 - trigger.opacity) + trigger.pattern) - mean
    pair = torch.stack([change.flatten(), (dirty - clean).mean(dim=0).flatten()])
    return float(torch.corrcoef(pair)[0, 1])


def eight_bits(images: Tensor) -> Tensor:
    """As images are when they come from a file."""
    return (images * 255).round() / 255


def share(hits: Tensor) -> Share:
    return wilson(int(hits.sum()), len(hits))
