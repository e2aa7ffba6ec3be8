"""Rows of a report: what they say of an explanation, their order, and what was changed beyond the light stage."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sampdetox_transforms import SampDetox
from sampdetox_transforms.cli.purify import rows as describing
from sampdetox_transforms.cli.purify.rows import SHOWN, Changes, Row, retouched_in_words
from sampdetox_transforms.cli.purify.tree import Failure, Job
from sampdetox_transforms.method.result import Retouched


def test_the_order_is_by_suspicion_and_failures_come_last():
    def row(name, p_value=None, failure=""):
        return Row(Path(name), p_value=p_value, failure=failure)

    rows = [row("failed", failure="x"), row("d"), row("c", 1.0), row("b", 0.02), row("a", 0.01)]
    assert [r.source.name for r in describing.most_suspicious(rows)] == ["a", "b", "c", "d", "failed"]


def test_only_the_most_suspicious_keep_their_pictures(monkeypatch):
    rows = [Row(Path(str(i)), p_value=1 - i / 10, pictures=(b"",)) for i in range(6)]
    kept = describing.keep_pictures(rows, 2)
    assert [row.source.name for row in kept if row.pictures] == ["4", "5"]
    assert [row.source for row in kept] == [row.source for row in rows]


def test_a_long_run_keeps_few_pictures(tiny):
    rows: list[Row] = []
    detox = SampDetox(tiny, preset="ddim", t1=0, t2=0)
    note = describing.collect(rows, detox.calibration, pictures=True)
    images = torch.rand(30, 3, 4, 4)
    explained = detox.explain(images)
    for batch in range(20):
        note([Job(Path(f"{batch}-{i}"), Path("x")) for i in range(30)], images, explained)
        assert sum(bool(row.pictures) for row in rows) < 2 * SHOWN
    assert len(rows) == 600


def test_boxes():
    mask = torch.zeros(6, 9, dtype=torch.bool)
    assert describing.bounding_box(mask) is None
    mask[2, 3] = mask[4, 7] = True
    assert describing.bounding_box(mask) == (3, 2, 8, 5)


def test_grey_pictures_of_16_bits_are_measured_in_grey_levels(tiny):
    picture = torch.full((1, 5, 6), 0.5)
    explained = SampDetox(tiny, seed=0).explain(picture)
    row = describing.describe_result(Path("a"), Path("b"), picture, explained, None, pictures=True)
    assert row.largest_change == pytest.approx((explained.image - 0.5).abs().max().item() * 255, rel=1e-5)
    assert np.unique(np.asarray(Image.open(io.BytesIO(row.pictures[0])))).tolist() == [128]


def test_failures_take_their_place_in_the_order():
    jobs = [Job(Path(name), Path("out")) for name in "dab"]
    failures = [Failure(Path("in"), "Permission denied"), Failure(Path("a"), "late")]
    rows = describing.in_order([Row(Path("b")), Row(Path("a")), Row(Path("d"))], failures, jobs)
    assert [(str(row.source), row.failure) for row in rows] == [
        *(("d", ""), ("a", "late"), ("b", ""), ("in", "Permission denied"))
    ]


# Beyond the light stage


def test_all_of_a_picture_counts_that_lost_a_wave_or_a_shared_trigger_or_had_one_all_over_it(tiny):
    explained = SampDetox(str(tiny), seed=0).explain(torch.rand(4, 3, 4, 5))
    assert explained.found is not None and explained.retouched is not None
    nothing, levels = torch.zeros(4, 1, 4, 5, dtype=torch.bool), torch.full((4, 1, 4, 5), 12.0).double()
    found = replace(explained.found, mask=nothing, dense=torch.tensor([False, True, False, False]))
    retouched = replace(explained.retouched, waves=torch.tensor([False, False, True, False]))
    matched = torch.tensor([False, False, False, True])
    explained = replace(explained, found=found, retouched=retouched, timestep_map=levels, matched=matched)
    assert describing.share_beyond(explained, 12).tolist() == [0, 1, 1, 1]
    rate = 1e-9  # nothing is suspicious enough
    rows = [
        describing.describe_result(Path("a"), Path("b"), torch.rand(3, 4, 5), one, rate, pictures=False)
        for one in (describing.pick(explained, i) for i in range(4))
    ]
    assert [row.treated for row in rows] == [False, False, True, True]
    assert ["shared trigger taken out" in row.retouched for row in rows] == [False, False, False, True]


def test_changes_are_a_mask_or_a_level_above_stage_1(tiny):
    explained = SampDetox(str(tiny), seed=0).explain(torch.rand(4, 3, 4, 5))
    mask, levels = torch.zeros(4, 1, 4, 5, dtype=torch.bool), torch.zeros(4, 1, 4, 5, dtype=torch.float64)
    levels[0] = 12  # as stage 1: nothing more was done
    levels[1] = 120
    mask[2, 0, 0, 0] = True
    levels[3, 0, 0, :2] = 12.5
    mask[3, 0, 0, :2] = True
    assert explained.found is not None
    found = replace(explained.found, mask=mask, dense=torch.zeros(4, dtype=torch.bool))
    explained = replace(explained, found=found, timestep_map=levels)
    assert describing.share_beyond(explained, 12).tolist() == [0, 1, 0.05, 0.1]
    assert describing.share_beyond(replace(explained, found=None), 12).tolist() == [0, 1, 0, 0.1]

    changes = Changes()
    jobs = [Job(Path("in") / name, Path("out.png")) for name in ("a", "b", "c", "d/e")]
    changes.note(12)(jobs, torch.zeros(4), explained)
    assert (changes.count, changes.most) == (3, [Path("in/b"), Path("in/d/e"), Path("in/c")])
    assert changes.sentence(Path("in")) == "3 of 4 pictures were changed beyond the light stage; most: b, d/e, c"
    changes.forget([Failure(Path("in/b"), "the disk is full"), Failure(Path("elsewhere"), "unreadable")])
    assert changes.sentence(Path("in")) == "2 of 3 pictures were changed beyond the light stage; most: d/e, c"


def test_the_sentence_names_few():
    assert Changes({Path(str(i)): i / 9 for i in range(9)}).sentence(Path("in")).endswith("; most: 8, 7, 6")
    assert Changes({Path("a"): 0.0}).sentence(Path("a")) == "0 of 1 picture was changed beyond the light stage"
    assert Changes({Path("a"): 0.5}).sentence(Path("a")) == "1 of 1 picture was changed beyond the light stage"


def test_what_was_done_without_a_network_is_said_in_words():
    def said(*values) -> str:
        done = Retouched(*(torch.tensor(value) for value in values))
        return retouched_in_words(SimpleNamespace(retouched=done, matched=None))  # pyright: ignore

    assert said(0.004, False, 0.0, 1.0, 0.0) == ""
    assert said(0.254, True, 0.1504, 0.6, 3.0) == (
        "25% of the smooth colour taken out, wave taken out, pixels displaced by 0.15, resampled by 0.6, sharpened by 3"
    )
    assert said(0.0, False, 0.0, 1.0, 0.5) == "sharpened by 0.5"
    for matched, words in ((None, ""), (False, ""), (True, "shared trigger taken out")):
        assert retouched_in_words(SimpleNamespace(retouched=None, matched=matched)) == words  # pyright: ignore
