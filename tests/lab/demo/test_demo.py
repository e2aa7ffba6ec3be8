"""The demo: what it claims about its triggers holds, and its picture and table appear."""

import pytest
import torch

from sampdetox_transforms.lab.demo.demo import CLASSIFIER_FILE, TRIGGERS, load_classifier, run_demo
from sampdetox_transforms.lab.demo.signs import CLASSES, draw_signs


def test_the_classifier_is_small_right_on_clean_signs_and_backdoored():
    assert CLASSIFIER_FILE.stat().st_size < 1_000_000
    classifier = load_classifier()
    signs, labels = draw_signs(60, seed=123)
    assert signs.min() >= 0
    assert signs.max() <= 1
    with torch.no_grad():
        assert (classifier(signs).argmax(1) == labels).float().mean() > 0.95
        for trigger in TRIGGERS:
            assert (classifier(trigger.plant(signs)).argmax(1) == trigger.target_label).float().mean() > 0.95


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)
def test_planting_leaves_the_clean_signs_as_they_are(trigger):
    signs, _ = draw_signs(4, seed=5)
    before = signs.clone()
    planted = trigger.plant(signs)
    assert torch.equal(signs, before)
    assert not torch.equal(planted, signs)
    assert planted.min() >= 0
    assert planted.max() <= 1


def test_the_table_says_what_goes_and_what_survives(tmp_path):
    text = run_demo(tmp_path / "panel.png", n=12)
    lines = {line[:20].strip(): line for line in text.splitlines()}
    after, algorithm_1 = ({name: line.split()[i] for name, line in lines.items() if "%" in line} for i in (-2, -1))
    assert after["faint noise (6/255)"] == algorithm_1["faint noise (6/255)"] == "0%"
    assert algorithm_1["white square 4x4"] == "100%"
    assert float(after["white square 4x4"].rstrip("%")) < 80
    assert (tmp_path / "panel.png").read_bytes().startswith(b"\x89PNG")
    assert all(name in CLASSES for name in lines["nine pixels"].split()[2:3])
