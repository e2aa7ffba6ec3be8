"""The demo's classifiers are small, right on clean signs, and fooled by their triggers."""

import pytest
import torch

from sampdetox_transforms import WeightsFileError
from sampdetox_transforms.lab.demo.classifier import CLASSIFIER_FILES, LARGE_TRIGGERS, TRIGGERS, load_classifier
from sampdetox_transforms.lab.demo.signs import draw_signs

KINDS = [(32, TRIGGERS), (128, LARGE_TRIGGERS)]
EACH = [pytest.param(size, trigger, id=f"{trigger.name} {size}") for size, triggers in KINDS for trigger in triggers]


@pytest.mark.parametrize(("size", "triggers"), KINDS)
def test_the_classifier_is_small_right_on_clean_signs_and_backdoored(size, triggers):
    assert CLASSIFIER_FILES[size].stat().st_size < 1_000_000
    classifier = load_classifier(size)
    signs, labels = draw_signs(60, seed=123, size=size)
    assert signs.shape[-2:] == (size, size) and signs.min() >= 0 and signs.max() <= 1
    with torch.no_grad():
        assert (classifier(signs).argmax(1) == labels).float().mean() > 0.95
        for trigger in triggers:
            assert (classifier(trigger.plant(signs)).argmax(1) == trigger.target_label).float().mean() > 0.95


@pytest.mark.parametrize("size", CLASSIFIER_FILES)
def test_the_files_of_the_package_are_pinned(tmp_path, monkeypatch, size):
    content = CLASSIFIER_FILES[size].read_bytes()
    monkeypatch.setitem(CLASSIFIER_FILES, size, tmp_path / "altered.safetensors")
    CLASSIFIER_FILES[size].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsFileError, match=r"must have the sha256 .*Remove it and fetch it anew"):
        load_classifier(size)


@pytest.mark.parametrize(("size", "trigger"), EACH)
def test_planting_leaves_the_clean_signs_as_they_are(size, trigger):
    signs, _ = draw_signs(4, seed=5, size=size)
    before = signs.clone()
    planted = trigger.plant(signs)
    assert torch.equal(signs, before) and not torch.equal(planted, signs)
    assert planted.shape == signs.shape and planted.min() >= 0 and planted.max() <= 1
