"""The experiment on shared triggers, with a purifier and a classifier that are known exactly."""

import pytest
import torch

from sampdetox_transforms.lab.evaluation.shared_trigger import (
    BOTH,
    DEFAULT,
    TAKEN_OUT,
    Subject,
    look,
    measure_shared,
)
from sampdetox_transforms.method.shared.spectrum import restored, smoothed

PATTERN = 0.14 * torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(3))


def natural(n, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(12)[:, None].float()
    x = restored(torch.randn(n, 3, 12, 12, generator=generator) / (1 + (rows.square() + rows.T.square()).sqrt()))
    return (0.5 + 0.8 * x).clamp(0.02, 0.98)


def classifier(images):
    """Class 1 where a fifth of the pattern is in an image, class 0 elsewhere."""
    carries = ((images - smoothed(images, 3)) * (PATTERN - smoothed(PATTERN[None], 3))).flatten(1).sum(1)
    threshold = 0.2 * (PATTERN - smoothed(PATTERN[None], 3)).square().sum()
    return torch.stack([threshold - carries, carries - threshold], dim=1)


@pytest.fixture(scope="module")
def rows():
    def purify(images):  # takes seven tenths of the pattern where it is, and smooths a little
        there = classifier(images).argmax(dim=1)[:, None, None, None]
        x = images - 0.7 * there * PATTERN
        return 0.9 * x + 0.1 * smoothed(x, 3)

    subject = Subject("planted", classifier, lambda x: (x + PATTERN).clamp(0, 1), 1)
    zeros = torch.zeros(70, dtype=torch.long)
    traffic, evaluation = (look(natural(70, seed), zeros, purify) for seed in (0, 1))

    def behind(trigger):
        return lambda images: purify(trigger.remove_if_matched(images)[0])

    return measure_shared(subject, traffic, evaluation, purify, purify, triggered=(20,), behind=behind)


def test_taking_it_out_ends_the_attack(rows):
    by_way = {row.defense: row for row in rows[0]}
    assert set(by_way) == {DEFAULT, TAKEN_OUT, BOTH}
    assert by_way[DEFAULT].ASR.value > 0.5 > 0.05 > by_way[TAKEN_OUT].ASR.value == by_way[BOTH].ASR.value
    row = by_way[TAKEN_OUT]
    assert row.found and row.matched.value > 0.9 and row.clean_matched.value < 0.1
    assert row.correlation > 0.7 and row.CA.value == 1
    assert rows[1][20].pattern.shape == PATTERN.shape
