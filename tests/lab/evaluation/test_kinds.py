"""Kinds of test images: sizes, labels, and that training images stay out."""

import pytest
import torch

from sampdetox_transforms.lab.evaluation.kinds import KINDS, load_kind, paths_for_testing, paths_for_training


def test_drawn_signs_need_no_data():
    drawn = load_kind("drawn", 7)
    assert drawn.images.shape == (7, 3, 32, 32) and len(drawn.labels) == 7


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="kind must be one of"):
        load_kind("imagenett")


def test_without_data_the_remedy_is_named(monkeypatch):
    monkeypatch.delenv("SAMPDETOX_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"SAMPDETOX_DATA must name .*docs/data\.md"):
        load_kind("dtd", 2)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_its_size(name, data_with_photographs):
    data = data_with_photographs
    found = load_kind(name, 3, data=data)
    assert found.images.shape == (3, 3, KINDS[name].size, KINDS[name].size)
    assert float(found.images.min()) >= 0 and 0.3 < float(found.images.max()) <= 1
    again = load_kind(name, 3, data=data)
    assert torch.equal(found.images, again.images) and torch.equal(found.labels, again.labels)


def test_training_photographs_are_no_test_images(data_with_photographs):
    data = data_with_photographs
    tests = {path for name in ("imagenet", "imagenette") for path in paths_for_testing(name, data)}
    training = paths_for_training(data)
    assert len(training) == 400 + 1700 and not tests & set(training)
    assert len(paths_for_testing("imagenet", data)) == 200
