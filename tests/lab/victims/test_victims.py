"""Victims: the networks' sizes, training and its resumption, and that the test's trigger is the training's."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image_functional

from sampdetox_transforms.lab.attacks.datasets import PoisonedDataset, load_trigger
from sampdetox_transforms.lab.attacks.preparation import Preparation
from sampdetox_transforms.lab.attacks.recipes import RECIPES, TEN_ATTACKS, get_recipe
from sampdetox_transforms.lab.victims import training
from sampdetox_transforms.lab.victims.augmentation import random_crops, rotated
from sampdetox_transforms.lab.victims.classifiers import CLASSIFIERS, PreActResNet18, build_classifier, predict
from sampdetox_transforms.lab.victims.config import POISONING, VictimConfig
from sampdetox_transforms.lab.victims.poisoned import Images, image_folder
from sampdetox_transforms.lab.victims.training import batches, one_cycle, train_victim
from sampdetox_transforms.lab.victims.victim import load_victim, materialise, measure
from sampdetox_transforms.networks.checkpoints import WeightsFileError

SIZE, CLASSES = 16, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of flat colours with some noise, 16 pixels: 20 images each."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for label in range(CLASSES):
        (root / f"class{label}").mkdir()
        for i in range(20):
            image = torch.full((3, SIZE, SIZE), 0.3)
            image[label] = 0.6
            image = (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
            image_functional.to_pil_image(image).save(root / f"class{label}" / f"{i:02}.png")
    return root


def config(folder, **changes):
    settings = {"data": str(folder), "size": SIZE, "epochs": 3, "batch_size": 10, "crop": 1, "bf16": False}
    return VictimConfig(**{**settings, "learning_rate": 3e-3, "settings": {}, "poison_rate": 0.3, **changes})


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A BadNets victim; its training is checked by the tests that follow."""
    out = tmp_path_factory.mktemp("victims") / "badnets"
    return train_victim(config(folder, target_label=1, settings={"size": 4}, epochs=8), out), out


# Networks


@pytest.mark.parametrize(
    ("name", "millions"),
    # kuangliu/pytorch-cifar's PreActResNet18 has 11,171,146 for 10 classes. torchvision's: resnet34 for CIFAR with its
    # 3x3 stem, vgg19_bn without its two 4096-wide layers. A quarter of the width has a sixteenth of them.
    [
        ("preact-resnet18", 11.171146),
        ("preact-resnet18-narrow", 11.17 / 16),
        ("resnet34", 21.28),
        ("resnet34-narrow", 21.28 / 16),
        ("vgg19", 20.04),
        ("vgg19-narrow", 20.04 / 16),
    ],
)
def test_classifiers(name, millions):
    network = build_classifier(name, 10)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=1e-6 if name == "preact-resnet18" else 0.01)
    assert network.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ["preact-resnet18", "resnet34", "vgg19"])
def test_narrow_classifiers_are_the_wide_ones_at_a_quarter_of_the_width(name):
    def convolutions(name: str, divisor: int) -> list:
        found = [m for m in build_classifier(name, 10).modules() if isinstance(m, torch.nn.Conv2d)]
        return [(m.out_channels // divisor, m.kernel_size, m.stride, m.padding) for m in found]

    with torch.device("meta"):
        assert convolutions(name, 4) == convolutions(f"{name}-narrow", 1)


def test_classifiers_take_images_between_0_and_1():
    torch.manual_seed(0)
    network = PreActResNet18(5, width=8).eval()
    x = torch.rand(2, 3, 16, 16)
    out = network.blocks(network.conv((x - 0.5) / 0.5))
    expected = network.linear(functional.adaptive_avg_pool2d(out, 1).flatten(1))
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(predict(network, x, batch_size=1), expected)


def test_unknown_classifiers_are_refused():
    with pytest.raises(ValueError, match=r"classifier must be one of.*'resnet34'"):
        build_classifier("resnet-34", 10)
    with pytest.raises(ValueError, match="num_classes must be 2 or more, got 1"):
        build_classifier("vgg19", 1)
    own = {"efficientnet-lite0", "preact-resnet18", "resnet34", "resnet50", "vgg19"}
    assert set(CLASSIFIERS) == own | {"preact-resnet18-narrow", "resnet34-narrow", "vgg19-narrow"}
    with pytest.raises(ValueError, match="channels must be 3"):
        build_classifier("efficientnet-lite0", 10, channels=1)


# Parts of training


def test_random_crops_shift_with_zeros():
    x = torch.arange(1.0, 17).view(1, 1, 4, 4).expand(200, 1, 4, 4)
    crops = random_crops(x, 1, torch.Generator().manual_seed(0))
    padded = functional.pad(x[:1], (1, 1, 1, 1))[0, 0]
    windows = {tuple(padded[i : i + 4, j : j + 4].flatten().tolist()) for i in range(3) for j in range(3)}
    assert {tuple(crop.flatten().tolist()) for crop in crops} == windows  # all nine, and nothing else
    assert random_crops(x, 0, torch.Generator()) is x


def test_one_cycle():
    shares = [one_cycle(step / 100) for step in range(101)]
    assert max(shares) == shares[20] == 1
    assert shares[0] == shares[100] == 0
    assert shares[10] == pytest.approx(0.5)
    assert shares[60] == pytest.approx(0.5)


def test_robust_noise_is_on_half_of_the_images():
    images = torch.full((200, 3, 8, 8), 0.75)
    settings = VictimConfig(data="x", robust_noise=0.2, crop=0, batch_size=200)
    x, _ = next(batches(images, settings, torch.Generator().manual_seed(0)))
    clean = (x == 0.75).flatten(1).all(dim=1)
    assert 70 < clean.sum() < 130
    noised = 2 * x[~clean] - 1  # (1 - eta) x + eta n with x in [-1, 1]
    assert noised.mean() == pytest.approx(0.8 * 0.5, abs=0.02)
    assert noised.std() == pytest.approx(0.2, rel=0.05)


def test_flips_mirror_about_half():
    images = torch.zeros(200, 1, 4, 4)
    images[..., 0] = 1
    settings = VictimConfig(data="x", flip=True, crop=0, batch_size=200)
    x, _ = next(batches(images, settings, torch.Generator().manual_seed(0)))
    assert 70 < x[:, 0, 0, 3].sum() < 130
    assert torch.equal(x.sum(dim=-1), images.sum(dim=-1))


def test_turned_images_are_those_that_torchvision_turns():
    x = torch.rand(3, 3, 12, 20)
    angles = torch.tensor([0.0, 10.0, -37.0])
    turned = [image_functional.rotate(x[i], float(angles[i]), InterpolationMode.BILINEAR) for i in range(3)]
    torch.testing.assert_close(rotated(x, angles), torch.stack(turned), atol=1e-4, rtol=0)
    assert not torch.allclose(turned[1], x[1], atol=0.05)


def test_each_image_is_brightened_and_turned_by_its_own_amount():
    images = torch.full((200, 3, 8, 8), 0.5)
    settings = VictimConfig(data="x", brightness=0.4, crop=0, batch_size=200)
    x, _ = next(batches(images, settings, torch.Generator().manual_seed(0)))
    level = x[:, 0, 0, 0]
    torch.testing.assert_close(x, level[:, None, None, None].expand_as(x))
    assert 0.3 <= level.min() < 0.32 and 0.68 < level.max() < 0.7 and len(level.unique()) == 200
    ramp = torch.linspace(0, 1, 8).expand(200, 3, 8, 8)
    settings = VictimConfig(data="x", rotate=10, crop=0, batch_size=200)
    x, _ = next(batches(ramp.contiguous(), settings, torch.Generator().manual_seed(0)))
    slope = x[:, 0, 5, 3] - x[:, 0, 2, 3]  # the tangent of the angle times three pixels of 1/7
    assert 0.06 < slope.max() < 3 / 7 * 0.1764 and -3 / 7 * 0.1764 < slope.min() < -0.06


@pytest.mark.parametrize(("name", "value"), [("rotate", -1), ("rotate", 181), ("brightness", 1), ("brightness", -0.1)])
def test_augmentation_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1.*got {value}"):
        VictimConfig(data="x", **{name: value})


def test_fresh_covers_are_others_in_each_epoch_and_nothing_else_changes(folder, tmp_path, monkeypatch):
    seen = []

    def watched(images, config, generator):
        seen.append(images.clone())
        return batches(images, config, generator)

    monkeypatch.setattr(training, "batches", watched)
    for fresh in (False, True):
        train_victim(config(folder, attack="wanet", fresh_covers=fresh), tmp_path / str(fresh))
    once, anew = seen[:3], seen[3:]
    assert all(torch.equal(x, once[0]) for x in once)
    indices = load_file(tmp_path / "True" / POISONING)["cover_indices"]
    others = torch.ones(len(once[0]), dtype=torch.bool).index_fill(0, indices, False)
    for x in anew:
        assert torch.equal(x[others], once[0][others])
        assert all((x[i] - once[0][i]).abs().max() > 0.01 for i in indices)
    assert all((anew[0][i] - anew[1][i]).abs().max() > 0.01 for i in indices)


# Training


def test_a_victim_has_its_backdoor(folder, trained):
    victim, out = trained
    assert (victim.name, victim.mode, victim.target_label, victim.num_classes) == ("badnets", "all2one", 1, CLASSES)
    shares = measure(victim, image_folder(folder, SIZE))
    assert shares["CA"].value > 0.9
    assert shares["ASR"].value > 0.9
    assert shares["ASR"].n == shares["PA"].n == 40
    assert sorted(path.name for path in out.iterdir()) == ["classifier.safetensors", POISONING, "victim.json"]
    about = json.loads((out / "victim.json").read_text())
    assert str(folder.parent.parent) not in json.dumps(about)  # no path of this machine
    assert about["classes"] == ["class0", "class1", "class2"]


def test_the_test_trigger_is_the_one_that_the_victim_saw(folder, trained):
    victim, out = trained
    images = Images(*materialise(image_folder(folder, SIZE)), ["a", "b", "c"])
    attack = get_recipe("badnets").bind(
        load_trigger(out / POISONING), **get_recipe("badnets").with_defaults({"size": 4})
    )
    seen = PoisonedDataset.load(out / POISONING, images, attack)
    chosen = seen.indices[seen.indices < 20]  # not of the target class
    tested = victim.triggered(images)
    where = {int(index): i for i, index in enumerate(tested.indices)}
    for index in chosen.tolist():
        assert torch.equal(seen[index][0], tested[where[index]][0])
        assert not torch.equal(seen[index][0], images[index][0])
    clean = next(i for i in range(len(images)) if i not in set(seen.indices.tolist()))
    assert torch.equal(seen[clean][0], images[clean][0])  # the others are untouched


def test_reading_gives_the_same_classifier(folder, trained):
    victim, out = trained
    x = torch.rand(3, 3, SIZE, SIZE)
    assert torch.equal(predict(load_victim(out).model, x), predict(victim.model, x))
    assert not load_victim(out).model.training


def test_a_killed_run_goes_on_to_the_same_weights(folder, tmp_path):
    changes = {"attack": "wanet", "fresh_covers": True, "rotate": 5.0}
    whole = train_victim(config(folder, **changes), tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(what, done, total, loss):
        if what == "epochs" and done == 8:  # in the second epoch of six steps
            raise Killed

    with pytest.raises(Killed):
        train_victim(config(folder, **changes), tmp_path / "killed", progress=kill)
    assert (tmp_path / "killed" / "training_state.safetensors").exists()
    with pytest.raises(WeightsFileError, match="Was its training finished"):
        load_victim(tmp_path / "killed")
    with pytest.raises(ValueError, match="only with the settings that it was started with"):
        train_victim(config(folder, **changes, seed=1), tmp_path / "killed")
    steps = []
    train_victim(config(folder, **changes), tmp_path / "killed", progress=lambda *p: steps.append(p[1]))
    assert steps[0] == 7
    for name in ("classifier.safetensors", POISONING):
        first, second = load_file(tmp_path / "whole" / name), load_file(tmp_path / "killed" / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert whole.attack is not None


def test_a_clean_classifier_and_a_composite_one(folder, tmp_path):
    clean = train_victim(config(folder, attack="none", epochs=1), tmp_path / "clean")
    assert (clean.attack, clean.target_label) == (None, None)
    assert set(measure(clean, image_folder(folder, SIZE))) == {"CA"}
    with pytest.raises(ValueError, match="a victim must have a backdoor"):
        clean.triggered(image_folder(folder, SIZE))
    mixed = train_victim(config(folder, attack="composite", target_label=2, epochs=1), tmp_path / "mixed")
    shares = measure(mixed, image_folder(folder, SIZE))
    assert shares["ASR"].n == 60


def test_all_to_all(folder, tmp_path):
    victim = train_victim(config(folder, mode="all2all", target_label=None, epochs=1), tmp_path / "v")
    triggered = victim.triggered(image_folder(folder, SIZE))
    assert torch.equal(triggered.attacker_labels, (triggered.targets + 1) % CLASSES)
    assert len(triggered) == 60


def test_ready_patterns_and_own_pictures(folder, tmp_path):
    np.save(tmp_path / "pattern.npy", np.full((1, SIZE, SIZE, 3), 0.2, dtype=np.float32))
    settings = config(folder, attack="low-frequency", picture=str(tmp_path / "pattern.npy"), epochs=1)
    victim = train_victim(settings, tmp_path / "lf")  # needs no surrogate
    x = torch.full((1, 3, SIZE, SIZE), 0.5)
    torch.testing.assert_close(victim.attack(x), x + 0.2)
    Image.new("RGB", (40, 30), "white").save(tmp_path / "white.png")
    settings = config(folder, attack="blended", picture=str(tmp_path / "white.png"), epochs=1)
    torch.testing.assert_close(train_victim(settings, tmp_path / "blended").attack(x), x * 0.8 + 0.2)


def test_bad_input_is_refused(folder, tmp_path, trained):
    with pytest.raises(ValueError, match=r"attack must be one of.*'badnets'"):
        config(folder, attack="badnet")
    with pytest.raises(ValueError, match=r"settings must be among the attack's own \(pattern.*got 'siz'.*'size'"):
        config(folder, settings={"siz": 3})
    with pytest.raises(ValueError, match="surrogate must be given for 'trojannn'"):
        config(folder, attack="trojannn")
    with pytest.raises(ValueError, match=r"poison_rate must be in \(0, 1\], got 0"):
        config(folder, poison_rate=0)
    with pytest.raises(ValueError, match=r"robust_noise must be in \[0, 1\), got 1"):
        config(folder, robust_noise=1)
    for attack in ("badnets", "none", "composite"):
        with pytest.raises(ValueError, match=f"fresh_covers must be False for '{attack}'.*: .*wanet"):
            config(folder, attack=attack, fresh_covers=True)
    with pytest.raises(ValueError, match="epochs must be 1 or more"):
        config(folder, epochs=0)
    with pytest.raises(ValueError, match="target_label must be a class"):
        train_victim(config(folder, target_label=3), tmp_path / "v")
    with pytest.raises(ValueError, match=r"surrogate must be a victim with attack 'none' and 3 classes"):
        train_victim(config(folder, attack="trojannn", surrogate=str(trained[1])), tmp_path / "w")
    with pytest.raises(ValueError, match="must be a new folder"):
        train_victim(config(folder), trained[1])
    with pytest.raises(FileNotFoundError, match="a subfolder for each class"):
        image_folder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="each class must be a subfolder"):
        image_folder(tmp_path / "empty")
    with pytest.raises(WeightsFileError, match="a folder that train_victim wrote"):
        load_victim(tmp_path)


def test_images_of_other_sizes_and_modes_are_made_alike(tmp_path):
    for label, (mode, size) in enumerate((("L", (20, 10)), ("RGBA", (8, 8)), ("P", (16, 16)))):
        (tmp_path / str(label)).mkdir()
        Image.new(mode, size, 255 if mode == "L" else 0).save(tmp_path / str(label) / "a.png")
    images, labels = materialise(image_folder(tmp_path, SIZE))
    assert images.shape == (3, 3, SIZE, SIZE)
    assert labels.tolist() == [0, 1, 2]
    assert images[0].min() == 1


# Recipes


def test_every_recipe_makes_a_trigger_and_keeps_the_images():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(12, 3, 32, 32, generator=generator), torch.arange(12) % 3
    trained_ones = {"trojannn", "input-aware", "low-frequency", "stega", "label-consistent"}  # tested on their own
    assert set(TEN_ATTACKS) <= set(RECIPES)
    for name in set(RECIPES) - trained_ones:
        recipe = get_recipe(name)
        settings = recipe.with_defaults({})
        picture = 0.1 * torch.randn(4, 3, 32, 32, generator=generator) if name == "issba" else None
        preparation = Preparation(images=images, labels=labels, target_label=0, num_classes=3, picture=picture)
        trigger = recipe.prepare(preparation, **settings)
        attack, before = recipe.bind(trigger, **settings), images.clone()
        result = attack(images)
        assert torch.equal(images, before), name
        assert result.shape == images.shape and not torch.equal(result, images), name
        assert torch.equal(attack(images), result), name  # the same each time
        assert float(result.min()) >= 0 and float(result.max()) <= 1, name
        if recipe.cover is not None:
            covered = recipe.cover(trigger, **settings)(images, images.flip(0))
            assert covered.shape == images.shape and not torch.equal(covered, images), name
            assert 0 < recipe.cover_rate < 1 and math.isfinite(recipe.poison_rate)
