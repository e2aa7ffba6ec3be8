"""Experiment shared-relabel: what is found in a poisoned training set, and what is trained on the rest."""

import pytest
import torch
from samples import CALIBRATIONS, WhiteIsForeign
from torchvision.transforms.v2 import functional

from sampdetox_transforms import SampDetox
from sampdetox_transforms.lab.evaluation import shared_relabel
from sampdetox_transforms.lab.evaluation.run import run_experiment
from sampdetox_transforms.lab.evaluation.study import Plan
from sampdetox_transforms.lab.victims.config import VictimConfig
from sampdetox_transforms.lab.victims.training import train_victim
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.networks.restorers import Restorers

SIZE, CLASSES, EACH = 16, 3, 24


class Searching(Plan):
    """Its default takes white for a trigger and fills it with red; images get a little softer."""

    def detox(self, preset):
        made = SampDetox(self.weights, preset=Restore(t1=0, gain=0, colour_gain=0, resample=0.8), seed=0)
        made.restorer, made.calibration = Restorers(WhiteIsForeign()), CALIBRATIONS
        return made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three classes of soft colours with noise, no white."""
    root = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for label in range(CLASSES):
            folder = root / "gtsrb32" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(EACH):
                image = 0.2 + 0.3 * torch.rand(3, 4, 4, generator=generator)
                image[label] += 0.2
                large = torch.nn.functional.interpolate(image[None], size=(SIZE, SIZE), mode="bilinear")[0]
                noise = 0.02 * torch.randn(large.shape, generator=generator)
                functional.to_pil_image((large + noise).clamp(0, 0.8)).save(folder / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def victim(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("victims") / "badnets"
    settings = {"data": str(root / "gtsrb32" / "train"), "size": SIZE, "epochs": 1, "batch_size": 12, "bf16": False}
    train_victim(VictimConfig(**settings, target_label=1, poison_rate=0.2, settings={"size": 3}), folder)
    return folder


@pytest.fixture
def measure(root, victim, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMPDETOX_DATA", str(root))

    def call(**options):
        given = {"victims": [victim], "work": tmp_path / "work", "n": 30, "weights": str(tiny), "plan": Searching}
        return run_experiment("shared-relabel", out=tmp_path / "result", overwrite=True, **{**given, **options})

    return call


def test_poisoned_images_are_found_and_three_ways_are_trained(measure, tmp_path):
    result = measure(sample=60)
    (row,) = result.document["rows"]
    assert row["training images"] == CLASSES * EACH and row["poisoned"] == 14 and row["looked at"] == 60
    assert row["found"] and row["correlation"] > 0.9
    assert row["poisoned matched"]["value"] == 1 and row["clean matched"]["value"] == 0
    assert set(row["ways"]) == {"stored classifier", "as it is", "left out", "cleaned"}
    made = sorted(path.parent.name for path in (tmp_path / "work").glob("*/*/classifier-*.safetensors"))
    assert made == ["as-it-is", "cleaned", "left-out"]
    assert "| badnets | 72 | 14 |" in result.text and "| badnets | left out |" in result.text


def test_another_share_can_be_poisoned(measure):
    (row,) = measure(poison_rate=0.4, retrain=False).document["rows"]
    assert row["poisoned"] == round(0.4 * CLASSES * EACH) and row["found"] and set(row["ways"]) == {"stored classifier"}


def test_what_is_trained_on_is_what_the_way_says(measure, monkeypatch):
    given = {}

    def note(what, images, labels, *args):
        given[what] = images, labels
        return lambda x: x.mean(dim=(2, 3))

    monkeypatch.setattr(shared_relabel, "trained", note)
    measure()
    (all_of, labels), (rest, rest_labels), (clean, clean_labels) = given.values()
    white = (all_of == 255).all(dim=1).sum(dim=(1, 2)) == 9
    assert int(white.sum()) == 14
    assert torch.equal(rest, all_of[~white]) and torch.equal(rest_labels, labels[~white])
    assert torch.equal(clean[~white], all_of[~white]) and torch.equal(clean_labels, labels)
    assert not (clean[white] == 255).all(dim=1).any()
    assert torch.equal(clean[white][..., :12, :12], all_of[white][..., :12, :12])


def test_without_training_and_without_victims(measure):
    (row,) = measure(retrain=False).document["rows"]
    assert set(row["ways"]) == {"stored classifier"}
    with pytest.raises(ValueError, match="victims must be folders"):
        measure(victims=())
