"""Experiment ``photographs``: what a row says, resuming, and the table."""

import json
from types import SimpleNamespace

import pytest
import torch

from sampdetox_transforms.lab.evaluation.kinds import Images, load_kind
from sampdetox_transforms.lab.evaluation.photographs import Judge, coverage, measure
from sampdetox_transforms.lab.evaluation.planted import Planted, PlantedTrigger, planted_triggers, solid, somewhere
from sampdetox_transforms.lab.evaluation.run import run_experiment
from sampdetox_transforms.lab.evaluation.study import Plan

GREY = Images(torch.full((6, 3, 32, 32), 0.5), torch.zeros(6, dtype=torch.long))


class Perfect:
    """A defense that finds white pixels and makes them grey."""

    def explain(self, images):
        mask = (images == 1).all(dim=1, keepdim=True)
        return SimpleNamespace(
            image=torch.where(mask, 0.5, images),
            mask=mask,
            timestep_map=torch.zeros_like(mask, dtype=torch.float64),
            network_calls=torch.ones(len(images)),
        )


class Blind(Perfect):
    def explain(self, images):
        found = super().explain(images)
        return SimpleNamespace(**{**vars(found), "image": images, "mask": found.mask & False})


def brightness(images):
    """Class 1 where anything is white."""
    white = (images == 1).flatten(1).any(1).float()
    return torch.stack([0.5 - white, white - 0.5], dim=1)


def row(detox, name="white square"):
    return measure(planted_triggers()[name], GREY, detox, Judge(brightness, GREY), 0, 4)


def test_a_perfect_defense():
    found = row(Perfect())
    assert found["flagged"]["value"] == found["found"]["value"] == found["agreement"]["value"] == 1
    assert found["trigger in the mask"] == 1 and found["others in the mask"] == 0
    assert found["agreement, no defense"]["value"] == 0 and found["top-1"]["value"] == 1
    assert found["times"] >= 1


def test_a_blind_defense():
    found = row(Blind())
    assert found["flagged"]["value"] == found["found"]["value"] == found["agreement"]["value"] == 0
    assert found["change"] == found["change, not flagged"] == 0


def test_no_defense_has_no_mask():
    found = row(None)
    assert "flagged" not in found and found["agreement"] == found["agreement, no defense"]


def test_the_target_of_a_trigger_gives_an_asr():
    trigger = PlantedTrigger(somewhere(solid(1.0, 1.0, 1.0)), lambda: 1)
    found = measure(trigger, GREY, Perfect(), Judge(brightness, GREY), 0, 4)
    assert found["ASR, no defense"]["value"] == 1 and found["ASR"]["value"] == 0


def test_soft_edges_count_for_neither():
    alpha = torch.zeros(1, 1, 4, 4)
    alpha[..., 0, :] = torch.tensor([1.0, 0.5, 0.3, 0.0])
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 0, :3] = True
    found = coverage(Planted(torch.zeros(1, 3, 4, 4), alpha), mask)
    assert found["trigger in the mask"] == 1 and found["others in the mask"] == 0


@pytest.fixture
def options(tmp_path):
    return {"out": tmp_path / "rows.json", "n": 4, "kinds": ["drawn"], "triggers": ["none", "white square"]}


def test_a_run_goes_on_where_it_stopped(options, monkeypatch):
    explained = []

    class Counting(Perfect):
        def explain(self, images):
            if len(explained) == 1 and failing:
                raise KeyboardInterrupt
            explained.append(len(images))
            return super().explain(images)

    failing = [True]
    monkeypatch.setattr(Plan, "detox", lambda self, preset: Counting())
    with pytest.raises(KeyboardInterrupt):
        run_experiment("photographs", **options)
    failing.clear()
    first = json.loads(options["out"].read_text())["rows"]
    result = run_experiment("photographs", **options)
    assert explained == [4, 4] and len(first) == 1 and result.document["rows"][0] == first[0]
    run_experiment("photographs", **options)
    assert len(explained) == 2
    with pytest.raises(ValueError, match="another n"):
        run_experiment("photographs", **{**options, "n": 5})
    assert "| drawn | white square | 100.0 [" in result.text and "n = 4, seed 0" in result.text
    assert options["out"].with_suffix(".md").read_text() == result.text


def test_unknown_names_are_refused_before_any_work(options):
    with pytest.raises(ValueError, match="trigger must be one of"):
        run_experiment("photographs", **{**options, "triggers": ["white sqare"]})


def test_bundled_weights_on_drawn_signs(options):
    settings = ["no defense", "restore"]
    document = run_experiment("photographs", **options, settings=settings).document
    assert [row["setting"] for row in document["rows"]] == settings * 2


def test_seeds_are_the_cells_own():
    images = load_kind("drawn", 4).images
    alphas = [
        planted_triggers()["white square"].plant(images, torch.Generator().manual_seed(seed)).alpha for seed in (1, 2)
    ]
    assert not torch.equal(*alphas)
