"""Poisoned and triggered data sets: which images, which labels, and that they can be read back."""

import json
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset, Subset

from sampdetox_transforms.lab.attacks import (
    PoisonedDataset,
    TriggeredDataset,
    badnets,
    bpp,
    bpp_negative,
    load_trigger,
    wanet,
    wanet_noise,
    warp_field,
)

quick = settings(deadline=None, max_examples=50, derandomize=True)


class Pictures(Dataset):
    """n random images of 8 bits with labels 0, 1, ..., K - 1, 0, ...; counts how often an item is read."""

    def __init__(self, n: int, num_classes: int = 5, kind: str = "float", names: tuple[str, ...] = ("targets",)):
        rng = np.random.default_rng(n)
        self.pixels = rng.integers(0, 256, (n, 3, 6, 6), dtype=np.uint8)
        self.kind, self.reads = kind, 0
        self.true = [i % num_classes for i in range(n)]
        for name in names:
            setattr(self, name, self.true)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        self.reads += 1
        pixels = self.pixels[index]
        image = {
            "float": lambda: torch.tensor(pixels / 255, dtype=torch.float32),
            "uint8": lambda: torch.tensor(pixels),
            "RGB": lambda: PIL.Image.fromarray(pixels.transpose(1, 2, 0)),
            "L": lambda: PIL.Image.fromarray(pixels[0]),
            "RGBA": lambda: PIL.Image.fromarray(pixels.transpose(1, 2, 0)).convert("RGBA"),
        }[self.kind]()
        return image, self.true[index]


def invert(image: torch.Tensor) -> torch.Tensor:
    return 1 - image


@quick
@given(n=st.integers(1, 60), rate=st.floats(0.001, 1), seed=st.integers(0, 2**40))
def test_all2one_poisons_the_rate_of_all_images_and_changes_nothing_else(n, rate, seed):
    clean = Pictures(n)
    if round(rate * n) == 0:
        with pytest.raises(
            ValueError, match=rf"poison_rate must select an image at least, got .* of {n} images. Raise"
        ):
            PoisonedDataset(clean, invert, 2, rate, seed=seed, num_classes=5)
        return
    poisoned = PoisonedDataset(clean, invert, 2, rate, seed=seed, num_classes=5)
    chosen = poisoned.indices.tolist()
    assert len(chosen) == round(rate * n) and chosen == sorted(set(chosen))
    assert len(poisoned) == n
    for i in range(n):
        (image, label), (before, truth) = poisoned[i], clean[i]
        assert torch.equal(image, 1 - before if i in chosen else before)
        assert label == (2 if i in chosen else truth) == int(poisoned.targets[i])
        assert type(label) is int


def test_the_seed_alone_draws_the_images():
    def chosen(seed):
        return PoisonedDataset(Pictures(200), invert, 0, 0.3, seed=seed).indices.tolist()

    torch.manual_seed(1)
    first = chosen(0)
    torch.manual_seed(2)
    assert chosen(0) == first != chosen(1)
    assert {i % 5 for i in first} == {0, 1, 2, 3, 4}  # the target's class too
    frequency = np.bincount(np.concatenate([chosen(seed) for seed in range(60)]), minlength=200) / 60
    assert frequency.min() > 0 and frequency.max() < 0.65  # no image is favoured


def test_all2all_moves_each_label_by_one():
    poisoned = PoisonedDataset(Pictures(25), invert, None, 1, mode="all2all")
    assert poisoned.targets.tolist() == [1, 2, 3, 4, 0] * 5
    some = PoisonedDataset(Pictures(25), invert, None, 0.2, mode="all2all")
    moved = (some.targets != torch.tensor(Pictures(25).true)).nonzero()[:, 0]
    assert moved.tolist() == some.indices.tolist() and len(moved) == 5


@pytest.mark.parametrize(("rate", "count"), [(1, 10), (0.5, 5), (0.1, 1)])
def test_clean_label_poisons_a_share_of_the_target_class_and_keeps_labels(rate, count):
    clean = Pictures(50)
    poisoned = PoisonedDataset(clean, invert, 3, rate, mode="clean-label")
    assert len(poisoned.indices) == count
    assert {clean.true[i] for i in poisoned.indices} == {3}
    assert poisoned.targets.tolist() == clean.true
    first = int(poisoned.indices[0])
    assert torch.equal(poisoned[first][0], 1 - clean[first][0])


@pytest.mark.parametrize("kind", ["float", "uint8", "RGB", "L"])
def test_every_kind_of_image_becomes_float_in_0_to_1(kind):
    clean = Pictures(4, kind=kind)
    image, _ = PoisonedDataset(clean, invert, 0, 0.5, num_classes=5)[0]
    expected = clean.pixels[0, :1] if kind == "L" else clean.pixels[0]
    poisoned = 0 in PoisonedDataset(clean, invert, 0, 0.5, num_classes=5).indices
    np.testing.assert_allclose(1 - image if poisoned else image, expected / 255, rtol=0, atol=1e-6)
    assert image.dtype == torch.float32


def test_an_attack_cannot_touch_the_clean_images():
    class Stored(Pictures):
        def __init__(self):
            super().__init__(4)
            self.images = torch.rand(4, 3, 6, 6)

        def __getitem__(self, index):
            return self.images[index], self.true[index]

    clean = Stored()
    before = clean.images.clone()
    everything = PoisonedDataset(clean, lambda image: image.zero_(), 0, 1.0)
    assert all(not image.any() for image, _ in everything)
    assert torch.equal(clean.images, before)


@pytest.mark.parametrize("name", ["targets", "labels", "_labels"])
def test_labels_are_read_without_images_where_the_data_set_has_them(name):
    clean = Pictures(30, names=(name,))
    assert PoisonedDataset(clean, invert, 0, 0.5).targets.shape == (30,)
    TriggeredDataset(Subset(clean, range(20)), invert, 0)
    assert clean.reads == 0


def test_labels_are_read_from_items_or_changed_as_the_items_are():
    bare = Pictures(30, names=())
    assert TriggeredDataset(bare, invert, 0).targets.tolist() == [y for y in bare.true if y]
    assert bare.reads == 30
    mapped = Pictures(30)
    mapped.target_transform = lambda label: label // 2
    assert TriggeredDataset(mapped, invert, 0).targets.tolist() == [y // 2 for y in mapped.true if y // 2]


def test_labels_that_are_a_tensor_stay_as_they_are():
    clean = Pictures(30)
    clean.targets = torch.tensor(clean.true)
    assert (PoisonedDataset(clean, invert, 0, 1.0).targets == 0).all()
    assert clean.targets.tolist() == clean.true


def test_subsets_have_the_labels_of_their_images():
    subset = Subset(Pictures(30), [3, 7, 29, 1])
    assert TriggeredDataset(subset, invert, 0).targets.tolist() == [3, 2, 4, 1]
    assert TriggeredDataset(subset, invert, 4).indices.tolist() == [0, 1, 3]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_with_workers_gives_the_same(workers):
    poisoned = PoisonedDataset(Pictures(20), badnets, 1, 0.4)
    loader = DataLoader(poisoned, batch_size=6, num_workers=workers)
    batches = list(loader)
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.stack([image for image, _ in poisoned]))
    assert torch.equal(torch.cat([labels for _, labels in batches]), poisoned.targets)


def test_indices_from_the_end_and_beyond():
    for dataset in (PoisonedDataset(Pictures(7), invert, 0, 1.0), TriggeredDataset(Pictures(7), invert, 0)):
        assert torch.equal(dataset[-1][0], dataset[len(dataset) - 1][0])
        with pytest.raises(IndexError):
            dataset[len(dataset)]


# Cover images


def mean_of_both(image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (image + other) / 2


@quick
@given(n=st.integers(20, 80), rate=st.floats(0.05, 0.5), cover_rate=st.floats(0.05, 0.45), seed=st.integers(0, 2**40))
def test_cover_images_keep_their_label_and_are_not_poisoned(n, rate, cover_rate, seed):
    clean = Pictures(n)
    poisoned = PoisonedDataset(
        clean, invert, 2, rate, seed=seed, num_classes=5, cover=mean_of_both, cover_rate=cover_rate
    )
    chosen, covers, partners = (v.tolist() for v in (poisoned.indices, poisoned.cover_indices, poisoned.partners))
    assert len(covers) == len(partners) == round(cover_rate * n) and covers == sorted(set(covers))
    assert not set(chosen) & set(covers)
    assert chosen == PoisonedDataset(clean, invert, 2, rate, seed=seed, num_classes=5).indices.tolist()
    partner = dict(zip(covers, partners, strict=True))
    for i in range(n):
        (image, label), (before, truth) = poisoned[i], clean[i]
        if i in partner:
            assert partner[i] != i
            assert torch.equal(image, mean_of_both(before, clean[partner[i]][0])) and label == truth
        else:
            assert torch.equal(image, 1 - before if i in chosen else before)
            assert label == (2 if i in chosen else truth)


def test_covers_and_partners_are_drawn_evenly_and_by_the_seed():
    def drawn(seed):
        data = PoisonedDataset(Pictures(30), invert, 0, 0.2, seed=seed, cover=mean_of_both, cover_rate=0.3)
        return data.cover_indices.tolist(), data.partners.tolist()

    assert drawn(1) == drawn(1) != drawn(2)
    covers, partners = (np.concatenate(lists) for lists in zip(*map(drawn, range(200)), strict=True))
    for values in (covers, partners):
        frequency = np.bincount(values, minlength=30) / 1800
        assert frequency.min() > 0.5 / 30 and frequency.max() < 1.6 / 30


def test_attacks_with_cover_images_of_this_package():
    clean = Pictures(20)
    field = warp_field(6, 6, generator=torch.Generator().manual_seed(0))
    noisy = PoisonedDataset(
        clean, partial(wanet, field=field), 0, 0.1, cover=lambda x, other: wanet_noise(x, field), cover_rate=0.2
    )
    assert len(noisy.cover_indices) == 4
    i = int(noisy.cover_indices[0])
    assert not torch.equal(noisy[i][0], clean[i][0]) and noisy[i][1] == clean.true[i]
    negatives = PoisonedDataset(clean, bpp, 0, 0.1, cover=bpp_negative, cover_rate=0.1)
    i, j = int(negatives.cover_indices[0]), int(negatives.partners[0])
    assert torch.equal(negatives[i][0], bpp_negative(clean[i][0], clean[j][0]))


def test_a_cover_that_does_not_fit_is_refused():
    make = partial(PoisonedDataset, Pictures(10), invert, 0, 0.5)
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"cover_rate must be in \[0, 1\), got {rate}. It is a share"):
            make(cover=mean_of_both, cover_rate=rate)
    with pytest.raises(ValueError, match=r"cover and cover_rate must be given together, got a cover and"):
        make(cover=mean_of_both)
    with pytest.raises(ValueError, match=r"given together, got no cover and cover_rate 0.2. Give both, or neither"):
        make(cover_rate=0.2)
    with pytest.raises(ValueError, match=r"from 1 to 5 images, .* got 0.04 of 10 images, 0. Raise it."):
        make(cover=mean_of_both, cover_rate=0.04)
    with pytest.raises(ValueError, match=r"from 1 to 5 images, .* got 0.6 of 10 images, 6. Lower it or poison_rate"):
        make(cover=mean_of_both, cover_rate=0.6)
    assert len(make(cover=mean_of_both, cover_rate=0.5).cover_indices) == 5
    for cover, message in (
        (lambda x, other: x + other + 1, r"the cover's results must be in \[0, 1\]"),
        (lambda x, other: x[:1], r"must keep the image's shape, got \(1, 6, 6\) for \(3, 6, 6\)"),
    ):
        data = make(cover=cover, cover_rate=0.1)
        with pytest.raises(ValueError, match=message):
            data[int(data.cover_indices[0])]


def test_cover_images_are_saved_and_files_without_them_still_load(tmp_path):
    path = tmp_path / "poison"
    saved = PoisonedDataset(Pictures(40), invert, 1, 0.25, cover=mean_of_both, cover_rate=0.2)
    saved.save(path, trigger={"field": torch.ones(2)})
    assert list(load_trigger(path)) == ["field"]
    loaded = PoisonedDataset.load(path, Pictures(40), invert, cover=mean_of_both)
    assert loaded.cover_rate == 0.2
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(loaded, saved, strict=True))
    with pytest.raises(ValueError, match=r"got no cover and cover_rate 0.2"):
        PoisonedDataset.load(path, Pictures(40), invert)
    without = PoisonedDataset(Pictures(40), invert, 1, 0.25)
    without.save(path)
    with pytest.raises(ValueError, match=r"got a cover and cover_rate 0.0"):
        PoisonedDataset.load(path, Pictures(40), invert, cover=mean_of_both)
    # A file as it was before there were cover images.
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["poisoning"])
    del about["cover_rate"]
    save_file({"indices": without.indices}, path, {"poisoning": json.dumps(about)})
    old = PoisonedDataset.load(path, Pictures(40), invert)
    assert torch.equal(old.indices, without.indices) and old.cover_rate == 0 and len(old.cover_indices) == 0


# All items at once


@pytest.mark.parametrize("batch_size", [1, 3, 256])
@pytest.mark.parametrize(("mode", "target"), [("all2one", 1), ("all2all", None), ("clean-label", 2)])
def test_items_at_once_equal_items_one_by_one(batch_size, mode, target):
    poisoned = PoisonedDataset(Pictures(30, kind="RGB"), badnets, target, 0.5, mode, cover=bpp_negative, cover_rate=0.3)
    test = TriggeredDataset(Pictures(30, kind="uint8"), badnets, target, mode)
    for data in (poisoned, test):
        images, labels = data.materialise(batch_size)
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert torch.equal(images, torch.stack([image for image, _ in data]))
        assert torch.equal(labels, data.targets)
        labels += 1
        assert not torch.equal(labels, data.targets)  # a copy


def test_items_at_once_are_altered_in_batches():
    sizes = []

    def attack(images):
        sizes.append(len(images))
        return 1 - images

    TriggeredDataset(Pictures(10), attack, 0, num_classes=5).materialise(3)
    assert sizes == [3, 3, 2]
    sizes.clear()
    PoisonedDataset(Pictures(10), attack, 0, 1.0).materialise(4)
    assert sizes == [4, 4, 2]


def test_training_images_may_be_poisoned_in_another_way():
    clean = Pictures(20)

    def poison(images, labels):
        return images * (labels / 10)[:, None, None, None]

    for mode, target in (("all2one", 1), ("clean-label", 3)):
        poisoned = PoisonedDataset(clean, invert, target, 0.5, mode)
        images, labels = poisoned.materialise(4, poison)
        for i in range(20):
            true = clean.true[i]
            expected = clean[i][0] * (true / 10) if i in poisoned.indices else clean[i][0]
            torch.testing.assert_close(images[i], expected)  # with the true label
        assert torch.equal(labels, poisoned.targets)


def test_items_at_once_leave_the_data_set_alone():
    class Stored(Pictures):
        def __init__(self):
            super().__init__(6)
            self.images = torch.rand(6, 3, 6, 6)

        def __getitem__(self, index):
            return self.images[index], self.true[index]

    clean = Stored()
    before = clean.images.clone()
    for data in (PoisonedDataset(clean, lambda x: x.zero_(), 0, 1.0), TriggeredDataset(clean, lambda x: x.zero_(), 0)):
        assert not data.materialise()[0].any()
        assert torch.equal(clean.images, before)
    covered = PoisonedDataset(clean, invert, 0, 0.5, cover=lambda x, other: other.zero_(), cover_rate=0.5)
    images, _ = covered.materialise()
    assert not images[covered.cover_indices].any() and not covered[int(covered.cover_indices[0])][0].any()
    assert torch.equal(clean.images, before)


def test_items_at_once_are_checked():
    class Sizes(Pictures):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image[:, : 6 - index % 2], label

    for make in (lambda data, attack: PoisonedDataset(data, attack, 0, 1.0), lambda d, a: TriggeredDataset(d, a, 0)):
        with pytest.raises(ValueError, match=r"images must have one shape to be stacked, got .*\(3, 5, 6\).*Resize"):
            make(Sizes(10), invert).materialise()
        for size in (0, -1):
            with pytest.raises(ValueError, match=f"batch_size must be 1 or more, got {size}. Leave it out for 256"):
                make(Pictures(10), invert).materialise(size)
        with pytest.raises(ValueError, match=r"the attack's results must be in \[0, 1\]"):
            make(Pictures(10), lambda images: images + 1).materialise()
        with pytest.raises(ValueError, match=r"must keep the image's shape, got \(3, 6, 6\) for \(8, 3, 6, 6\)|10, 3"):
            make(Pictures(10), lambda images: images[0]).materialise()
        with pytest.raises(TypeError, match="PIL images must have the mode L or RGB"):
            make(Pictures(10, kind="RGBA"), invert).materialise()
    with pytest.raises(ValueError, match=r"the attack's results must be in \[0, 1\]"):
        PoisonedDataset(Pictures(10), invert, 0, 0.5).materialise(poison=lambda images, labels: images - 1)


# Saving


def test_a_saved_data_set_is_read_back_with_its_trigger(tmp_path):
    clean, path = Pictures(40), tmp_path / "poison.safetensors"
    field = warp_field(6, 6, strength=3, generator=torch.Generator().manual_seed(0))
    saved = PoisonedDataset(clean, partial(wanet, field=field), 3, 0.25, seed=9, num_classes=8)
    saved.save(path, trigger={"field": field})
    assert [file.name for file in tmp_path.iterdir()] == ["poison.safetensors"]
    trigger = load_trigger(path)
    assert list(trigger) == ["field"]
    loaded = PoisonedDataset.load(path, Pictures(40), partial(wanet, **trigger))
    for name in ("target_label", "poison_rate", "mode", "seed", "num_classes"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert torch.equal(loaded.indices, saved.indices) and torch.equal(loaded.targets, saved.targets)
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(loaded, saved, strict=True))


@pytest.mark.parametrize(("mode", "target"), [("all2all", None), ("clean-label", 2)])
def test_every_mode_is_read_back_and_saved_again(tmp_path, mode, target):
    saved = PoisonedDataset(Pictures(40), invert, target, 0.5, mode=mode)
    saved.save(tmp_path / "one")
    loaded = PoisonedDataset.load(tmp_path / "one", Pictures(40), invert)
    assert torch.equal(loaded.targets, saved.targets) and torch.equal(loaded.indices, saved.indices)
    assert load_trigger(tmp_path / "one") == {}
    loaded.save(tmp_path / "two")
    assert PoisonedDataset.load(tmp_path / "two", Pictures(40), invert).mode == mode


def test_another_data_set_or_file_is_refused(tmp_path):
    path = tmp_path / "poison"
    PoisonedDataset(Pictures(40), invert, 1, 0.5).save(path)
    for other in (Pictures(35), Pictures(40, num_classes=4)):
        with pytest.raises(ValueError, match=r"must have the labels that .*poison was saved with"):
            PoisonedDataset.load(path, other, invert)
    path.write_bytes(b"no safetensors file")
    with pytest.raises(ValueError, match=r"poison must be a file that PoisonedDataset.save wrote"):
        PoisonedDataset.load(path, Pictures(40), invert)
    with pytest.raises(FileNotFoundError):
        load_trigger(tmp_path / "none")


# Testing a victim


def test_triggered_images_leave_out_the_target_class():
    clean = Pictures(15)
    for mode in ("all2one", "clean-label"):
        test = TriggeredDataset(clean, invert, 3, mode)
        kept = [i for i in range(15) if clean.true[i] != 3]
        assert test.indices.tolist() == kept and len(test) == 12
        assert test.targets.tolist() == [clean.true[i] for i in kept]
        assert test.attacker_labels.tolist() == [3] * 12
        for (image, label), i in zip(test, kept, strict=True):
            assert torch.equal(image, 1 - clean[i][0]) and label == clean.true[i]


def test_triggered_images_of_all2all_are_all_images():
    test = TriggeredDataset(Pictures(15), invert, None, "all2all")
    assert test.targets.tolist() == Pictures(15).true
    assert test.attacker_labels.tolist() == [1, 2, 3, 4, 0] * 3


# Refusals


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, 10, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match=rf"poison_rate must be in \(0, 1\], got {rate}. It is a share"):
        PoisonedDataset(Pictures(10), invert, 0, rate)


@pytest.mark.parametrize("make", [lambda *a, **k: PoisonedDataset(*a, 0.5, **k), TriggeredDataset])
def test_targets_modes_and_labels_are_checked(make):
    for target in (5, -1, None, True, 1.0):
        with pytest.raises(ValueError, match=rf"target_label must be a class in 0\.\.\.4, got {target}"):
            make(Pictures(10), invert, target)
    with pytest.raises(ValueError, match=r"mode must be one of .* got 'all2al'. Did you mean 'all2all'"):
        make(Pictures(10), invert, 1, mode="all2al")
    with pytest.raises(ValueError, match="target_label must be None in mode 'all2all', got 1"):
        make(Pictures(10), invert, 1, mode="all2all")
    with pytest.raises(ValueError, match="num_classes must be 2 or more in mode 'all2all', got 1"):
        make(Pictures(10, num_classes=1), invert, None, mode="all2all")
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.\.2, got 0\.\.\.4"):
        make(Pictures(10), invert, 1, num_classes=3)
    with pytest.raises(ValueError, match="a data set must have an image at least, got none"):
        make(Pictures(0), invert, 0)
    one_hot = Pictures(10)
    one_hot.targets = torch.eye(10)
    with pytest.raises(ValueError, match=r"labels must be whole numbers, one for each of 10 images, got torch.float32"):
        make(one_hot, invert, 0)
    short = Pictures(10)
    short.targets = short.true[:9]
    with pytest.raises(ValueError, match=r"one for each of 10 images, got torch.int64 of shape \(9,\)"):
        make(short, invert, 0)


def test_classes_count_where_the_data_set_names_them():
    clean = Pictures(10)
    clean.classes = list("abcdefg")
    assert PoisonedDataset(clean, invert, 6, 0.5).num_classes == 7
    assert PoisonedDataset(clean, invert, 6, 0.5, num_classes=9).num_classes == 9


def test_nothing_to_poison_or_to_test_is_refused():
    with pytest.raises(ValueError, match=r"select an image at least, got 0.5 of 0 images of class 7"):
        PoisonedDataset(Pictures(10), invert, 7, 0.5, mode="clean-label", num_classes=8)
    with pytest.raises(ValueError, match="a class other than the target 0 must have images"):
        TriggeredDataset(Pictures(10, num_classes=1), invert, 0)


def test_bad_images_and_attacks_are_refused_on_reading():
    with pytest.raises(TypeError, match="PIL images must have the mode L or RGB, got 'RGBA'"):
        PoisonedDataset(Pictures(4, kind="RGBA"), invert, 0, 1.0)[0]
    for attack, message in (
        (lambda image: image + 1, r"the attack's results must be in \[0, 1\]"),
        (lambda image: image[:, 1:], r"must keep the image's shape, got \(3, 5, 6\) for \(3, 6, 6\)"),
    ):
        for dataset in (PoisonedDataset(Pictures(4), attack, 0, 1.0), TriggeredDataset(Pictures(4), attack, 0)):
            with pytest.raises(ValueError, match=message):
                dataset[0]

    class Normalised(Pictures):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image * 4 - 2, label

    with pytest.raises(ValueError, match=r"the data set's images must be in \[0, 1\], got values from"):
        PoisonedDataset(Normalised(4), invert, 0, 0.25)[0]
