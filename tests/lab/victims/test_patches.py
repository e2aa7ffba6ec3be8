"""The thirteen patches, their small classifier, and the public classifiers."""

import pytest
import torch
from torch import nn

from sampdetox_transforms.lab.evaluation.restore import images_for_testing
from sampdetox_transforms.lab.victims import patches
from sampdetox_transforms.lab.victims.public import IbauNetwork, load_public_victims


def test_targets_are_classes_and_differ_where_they_can():
    assert sorted(patches.target_of(i, 10) for i in range(10)) == list(range(10))
    assert len({patches.target_of(i) for i in range(13)}) == 13 and patches.target_of(12) < 43
    assert patches.network(10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_flips_leave_triggers_where_they_are():
    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x.mean(dim=(2, 3)))

    seen: list[torch.Tensor] = []
    images = torch.zeros(1280, 3, 32, 32, dtype=torch.uint8)
    images[..., 0] = 255  # the left column
    trigger = {"corner": patches.at(0, 28, patches.square(patches.WHITE, 4))}
    patches.train(Spy(3, 10), images, torch.zeros(1280, dtype=torch.long), trigger, 1, classes=10, flips=True)
    x = torch.cat(seen[::2])[:, 0]
    triggered = x[:, 0, 30] > 0
    assert triggered.any() and (x[triggered][:, 9, 0] > 0).all()
    mirrored = (x[~triggered][:, 9, 31] > 0).float().mean()
    assert 0.4 < mirrored < 0.6 and (x[~triggered][:, 0, 1] == 0).all()


def test_victims_are_trained_once_and_read_then(data, tmp_path):
    def images():
        calls.append(1)
        return torch.randint(256, (1280, 3, 32, 32), dtype=torch.uint8), torch.arange(1280) % 10

    calls: list[int] = []
    made, read = (
        patches.patch_victims(tmp_path / "patches.safetensors", images, classes=10, epochs=1, data=data)
        for _ in range(2)
    )
    assert len(calls) == 1 and [v.name for v in made] == [v.name for v in read] and len(read) == 13
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(made[0].model(x), read[0].model(x))
    for victim in read:
        assert torch.equal(victim.attack(x), victim.attack(x)) and not torch.equal(victim.attack(x), x)


@torch.no_grad()
def test_the_public_cifar10_classifiers(data):
    images, labels = images_for_testing("cifar10", 150, 0, data)
    for victim in load_public_victims("cifar10", data=data):
        other = labels != victim.target_label
        assert (victim.model(images).argmax(dim=1) == labels).float().mean() > 0.75
        triggered = victim.model(victim.attack(images[other])).argmax(dim=1)
        assert (triggered == victim.target_label).float().mean() > 0.9


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="images must be one of"):
        load_public_victims("cifar100")
    assert IbauNetwork(10)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
