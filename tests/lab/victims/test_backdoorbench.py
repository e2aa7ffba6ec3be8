"""BackdoorBench's records, written here in its layout and read back; its network, computed from its weights anew.

The layout is that of SCLBD/BackdoorBench: ``save_attack_result`` in ``utils/save_load_attack.py`` (the keys), and
``retrieve_state`` and ``poisonedCLSDataContainer.setitem`` in ``utils/bd_dataset_v2.py`` (the state of a data set, and
where its PNG files go). The network is that of ``models/preact_resnet.py``.
"""

import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from torchvision import transforms as v1

from sampdetox_transforms.lab.attacks import TriggeredDataset
from sampdetox_transforms.lab.evaluation.engine import evaluate
from sampdetox_transforms.lab.evaluation.rows import Column
from sampdetox_transforms.lab.victims.backdoorbench import NORMALISATIONS, load_record
from sampdetox_transforms.lab.victims.poisoned import Images
from sampdetox_transforms.lab.victims.victim import Victim, measure
from sampdetox_transforms.networks.checkpoints import WeightsFileError

CLASSES = 5
LABELS = [i % CLASSES for i in range(12)]
WARNING = "is a pickle"


def network(channels: int = 3) -> nn.Module:
    """The smallest classifier: linear in the colour of the upper left pixel."""
    torch.manual_seed(1)
    return nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def dataset_state(folder: Path, wanted: dict[int, int], pictures: np.ndarray, n: int) -> dict[str, Any]:
    """What ``prepro_cls_DatasetBD_v2.retrieve_state`` returns once ``wanted[index]`` are the labels of the poisoned."""
    indicator, items = np.zeros(n), {}
    for index in np.arange(n):
        if int(index) in wanted:
            label = LABELS[index]
            path = folder / str(label) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pictures[index]).save(path)
            there = f"/home/someone/BackdoorBench/record/badnet/{folder.name}/{label}/{index}.png"
            items[index] = {"path": there, "other_info": [wanted[int(index)], label]}
            indicator[index] = 1
    there = f"/home/someone/BackdoorBench/record/badnet/{folder.name}"
    return {
        "bd_data_container": {"save_folder_path": there, "data_dict": items, "save_file_format": ".png"},
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": np.arange(n)[np.where(indicator == 1)[0]],
        "poison_indicator": indicator,
        "save_folder_path": there,
    }


def write_record(
    folder: Path,
    *,
    name: str = "tinynet",
    dataset: str = "cifar10",
    state: dict[str, Tensor] | None = None,
    wanted: dict[int, int] | None = None,
    shape: tuple[int, ...] = (8, 10, 3),
    size: tuple[int, ...] = (8, 10, 3),
    **more: Any,
) -> np.ndarray:
    """A record in BackdoorBench's layout; returns the test images with the trigger, of which it has those of wanted."""
    pictures = np.random.default_rng(0).integers(0, 256, (len(LABELS), *shape), dtype=np.uint8)
    wanted = {i: 0 for i, label in enumerate(LABELS) if label != 0} if wanted is None else wanted
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "model_name": name,
        "num_classes": CLASSES,
        "model": network().state_dict() if state is None else state,
        "data_path": "../data/cifar10",
        "img_size": size,
        "clean_data": dataset,
        "bd_train": dataset_state(folder / "bd_train_dataset", {1: 0, 3: 0}, 255 - pictures, len(LABELS)),
        "bd_test": dataset_state(folder / "bd_test_dataset", wanted, pictures, len(LABELS)),
        **more,
    }
    torch.save(content, folder / "attack_result.pt")
    return pictures


def read(folder: Path, classifier: nn.Module | None = None, **settings: Any):
    with pytest.warns(UserWarning, match=WARNING):
        return load_record(folder, allow_pickle=True, classifier=classifier, **settings)


def eight_bits(images: Tensor) -> np.ndarray:
    """Images (n, c, h, w) in [0, 1] as pictures (n, h, w, c) of 8 bits."""
    assert images.dtype == torch.float32
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()


def bench_state(num_classes: int) -> OrderedDict[str, Tensor]:
    """Random weights under BackdoorBench's names and in its order, running means and variances included."""
    generator, state = torch.Generator().manual_seed(3), OrderedDict()

    def conv(key: str, channels: int, width: int, side: int) -> None:
        weight = torch.randn(width, channels, side, side, generator=generator)
        state[f"{key}.weight"] = weight / (channels * side * side) ** 0.5

    def norm(key: str, channels: int) -> None:
        for part in ("weight", "running_var"):
            state[f"{key}.{part}"] = 0.5 + torch.rand(channels, generator=generator)
        for part in ("bias", "running_mean"):
            state[f"{key}.{part}"] = torch.randn(channels, generator=generator) / 4
        state[f"{key}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", 3, 64, 3)
    channels = 64
    for layer, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            key = f"layer{layer}.{block}"
            norm(f"{key}.bn1", channels)
            conv(f"{key}.conv1", channels, width, 3)
            norm(f"{key}.bn2", width)
            conv(f"{key}.conv2", width, width, 3)
            if channels != width:
                conv(f"{key}.shortcut.0", channels, width, 1)
            channels = width
    state["linear.weight"] = torch.randn(num_classes, 512, generator=generator) / 512**0.5
    state["linear.bias"] = torch.randn(num_classes, generator=generator)
    return state


def bench_forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """``PreActResNet18.forward`` of BackdoorBench on normalised images, from its weights alone, without modules.

    Neither a normalisation nor a ReLU stands between the last block and the mean.
    """

    def norm_relu(key: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{key}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    x = functional.conv2d(x, state["conv1.weight"], padding=1)
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            key, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            active = norm_relu(f"{key}.bn1", x)
            if f"{key}.shortcut.0.weight" in state:
                x = functional.conv2d(active, state[f"{key}.shortcut.0.weight"], stride=stride)
            active = functional.conv2d(active, state[f"{key}.conv1.weight"], stride=stride, padding=1)
            x = x + functional.conv2d(norm_relu(f"{key}.bn2", active), state[f"{key}.conv2.weight"], padding=1)
    return x.mean(dim=(2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("prefix", ["", "module."])  # the latter of networks trained on several cards
def test_preact_resnet18_computes_what_backdoorbench_computes(tmp_path, prefix):
    state = bench_state(CLASSES)
    saved = OrderedDict((prefix + key, value) for key, value in state.items())
    write_record(tmp_path / "badnet", name="preactresnet18", state=saved)
    record = read(tmp_path / "badnet")
    images = torch.rand(3, 3, 16, 20)
    before = images.clone()
    # From BackdoorBench's utils/aggregate_block/dataset_and_transform_generate.py, get_dataset_normalization.
    normalise = v1.Normalize([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261])
    with torch.no_grad():
        torch.testing.assert_close(record.model(images), bench_forward(state, normalise(images)), rtol=1e-4, atol=1e-4)
    assert torch.equal(images, before)
    assert not record.model.training
    assert (record.name, record.dataset, record.classifier) == ("badnet", "cifar10", "preactresnet18")
    assert record.num_classes == CLASSES


@pytest.mark.parametrize(
    ("dataset", "mean", "std"),
    [
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]),
        ("cifar100", [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
        ("tiny", [0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262]),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("gtsrb", [0, 0, 0], [1, 1, 1]),
        ("celeba", [0, 0, 0], [1, 1, 1]),
    ],
)
def test_other_networks_get_the_weights_and_normalised_images(tmp_path, dataset, mean, std):
    state = {key: value + 1 for key, value in network().state_dict().items()}
    write_record(tmp_path, state=state, dataset=dataset)
    mine = network()
    record = read(tmp_path, mine)
    images = torch.rand(4, 3, 8, 10)
    expected = network()
    expected.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(record.model(images), expected(v1.Normalize(mean, std)(images)))
    for value, kept in zip(mine.state_dict().values(), network().state_dict().values(), strict=True):
        assert torch.equal(value, kept)  # the given network is not changed


def test_grey_images(tmp_path):
    pictures = write_record(tmp_path, state=network(1).state_dict(), dataset="mnist", shape=(8, 10), size=(8, 10, 1))
    record = read(tmp_path, network(1))
    images, _ = record.triggered.materialise()
    assert np.array_equal(eight_bits(images)[..., 0], pictures[record.triggered.indices])
    with torch.no_grad():
        torch.testing.assert_close(record.model(images), network(1)((images - 0.5) / 0.5))


def test_every_normalisation_is_tested():
    assert set(NORMALISATIONS) == {"cifar10", "cifar100", "tiny", "imagenet", "gtsrb", "celeba", "mnist"}


def test_images_and_labels_are_those_of_the_files_by_label_and_index(tmp_path):
    pictures = write_record(tmp_path)
    triggered = read(tmp_path, network()).triggered
    kept = [i for i, label in enumerate(LABELS) if label != 0]
    assert triggered.indices.tolist() == kept
    assert triggered.targets.tolist() == [LABELS[i] for i in kept]
    assert triggered.attacker_labels.tolist() == [0] * len(kept)
    images, targets = triggered.materialise()
    assert np.array_equal(eight_bits(images), pictures[kept])
    assert torch.equal(targets, triggered.targets) and targets.data_ptr() != triggered.targets.data_ptr()
    loaded = list(DataLoader(triggered, batch_size=4))
    assert torch.equal(torch.cat([x for x, _ in loaded]), images)
    assert torch.cat([y for _, y in loaded]).tolist() == targets.tolist()


def test_its_interface_is_that_of_triggered_datasets(tmp_path):
    write_record(tmp_path)
    triggered = read(tmp_path, network()).triggered
    clean = Images(torch.rand(len(LABELS), 3, 8, 10), torch.tensor(LABELS), [str(i) for i in range(CLASSES)])
    ours = TriggeredDataset(clean, lambda image: 1 - image, 0)
    for name in ("indices", "targets", "attacker_labels"):
        assert torch.equal(getattr(triggered, name), getattr(ours, name))
        assert getattr(triggered, name).dtype == getattr(ours, name).dtype
    mine, theirs = triggered.materialise(5), ours.materialise(5)
    assert [(x.shape, x.dtype) for x in mine] == [(x.shape, x.dtype) for x in theirs]
    with pytest.raises(ValueError, match=r"batch_size must be 1 or more, got 0\. Leave it out"):
        triggered.materialise(0)


def test_images_of_another_size_are_resized_as_backdoorbench_does(tmp_path):
    pictures = write_record(tmp_path, size=(5, 7, 3))
    triggered = read(tmp_path, network()).triggered
    transform = v1.Compose([v1.Resize((5, 7)), v1.ToTensor()])
    for image, index in zip(triggered.materialise()[0], triggered.indices.tolist(), strict=True):
        torch.testing.assert_close(image, transform(PIL.Image.fromarray(pictures[index])))


def test_all2all_and_images_that_the_attacker_wants_as_they_are(tmp_path):
    wanted = {i: (label + 1) % CLASSES for i, label in enumerate(LABELS)}
    wanted[4] = LABELS[4]
    write_record(tmp_path, wanted=wanted)
    record = read(tmp_path, network())
    kept = [i for i in range(len(LABELS)) if i != 4]
    assert record.triggered.indices.tolist() == kept
    assert record.triggered.attacker_labels.tolist() == [wanted[i] for i in kept]
    victim = record.victim()
    assert (victim.mode, victim.target_label) == ("all2all", None)


def test_a_records_victim_is_measured_and_evaluated(tmp_path):
    write_record(tmp_path / "badnet_0_1", size=(8, 8, 3))
    record = read(tmp_path / "badnet_0_1", network())
    victim = record.victim()
    assert isinstance(victim, Victim)
    assert (victim.name, victim.mode, victim.target_label, victim.size) == ("badnet_0_1", "all2one", 0, 8)
    assert record.victim("mine").name == "mine"
    clean = Images(torch.rand(20, 3, 8, 8), torch.arange(20) % CLASSES, [str(i) for i in range(CLASSES)])
    with torch.no_grad():
        images, targets = record.triggered.materialise()
        classes = record.model(images).argmax(dim=1)
        ca = float((record.model(clean.images).argmax(dim=1) == clean.targets).float().mean())
    shares = measure(victim, clean)
    assert shares["PA"].value == pytest.approx(float((classes == targets).float().mean()))
    assert shares["ASR"].value == pytest.approx(float((classes == 0).float().mean()))
    assert shares["CA"].value == pytest.approx(ca)
    (row,) = evaluate([victim], [Column(name="none", build=lambda model: lambda images: images)], clean).rows
    assert (row.ca.value, row.pa, row.asr) == (pytest.approx(ca), shares["PA"], shares["ASR"])
    assert (row.victim, row.attack, row.classifier, row.mode) == ("badnet_0_1", "badnet_0_1", "tinynet", "all2one")


def test_a_victims_images_are_as_many_as_the_data_set_has_and_drawn_by_the_seed(tmp_path):
    write_record(tmp_path)
    record = read(tmp_path, network())
    victim, whole = record.victim(), record.triggered
    images = whole.materialise()[0]
    for dataset, n in [(None, len(whole)), (range(100), len(whole)), (Subset(whole, [4, 1, 2]), 3)]:
        part = victim.triggered(dataset)
        assert len(part) == n == len(set(part.indices.tolist()))
        places = [whole.indices.tolist().index(i) for i in part.indices.tolist()]
        assert torch.equal(part.materialise()[0], images[places])
        assert torch.equal(part.targets, whole.targets[places])
        assert torch.equal(part.attacker_labels, whole.attacker_labels[places])
        assert victim.triggered(dataset).indices.tolist() == part.indices.tolist()
    assert victim.triggered(seed=1).indices.tolist() != victim.triggered(seed=2).indices.tolist()
    assert victim.attack is not None
    with pytest.raises(ValueError, match=r"trigger must be a function .* 2 other images, got a record.* Use the"):
        victim.attack(torch.rand(2, 3, 8, 8))


def rename_numpy(path: Path) -> None:
    """Name numpy's functions as numpy 1 does, which BackdoorBench was written for."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            assert not name.endswith("data.pkl") or b"cnumpy._core.multiarray\n" in content
            file.writestr(name, content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


@pytest.mark.parametrize("numpy_1", [False, True])
def test_the_restricted_reader_suffices(tmp_path, monkeypatch, numpy_1):
    write_record(tmp_path, extra=[np.float64(0.1), np.bool_(True), {"note": None}])
    if numpy_1:
        rename_numpy(tmp_path / "attack_result.pt")
    full, calls = torch.load, []

    def load(*args, weights_only, **settings):
        calls.append(weights_only)
        return full(*args, weights_only=weights_only, **settings)

    monkeypatch.setattr(torch, "load", load)
    allowed = torch.serialization.get_safe_globals()
    assert len(read(tmp_path, network()).triggered) == 9
    assert calls == [True]
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_runs_only_once_it_is_allowed(tmp_path):
    made = tmp_path / "made"
    write_record(tmp_path / "record", extra=Code(made))
    with pytest.raises(ValueError, match=r"allow_pickle must be True for a record, got False: .* any code .* Allow it"):
        load_record(tmp_path / "record", classifier=network())
    assert not made.exists()
    assert len(read(tmp_path / "record", network()).triggered) == 9
    assert made.is_dir()


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(WeightsFileError, match=r"must be a folder with attack_result\.pt, got .*none without\. Name"):
        load_record(tmp_path / "none", allow_pickle=True)
    foreign = r"must be what BackdoorBench's save_attack_result writes, got .*{}.* Make it anew"
    (tmp_path / "attack_result.pt").write_bytes(b"not a pickle")
    with pytest.raises(WeightsFileError, match=foreign.format("UnpicklingError")):
        read(tmp_path)
    torch.save({"model": {}}, tmp_path / "attack_result.pt")
    with pytest.raises(WeightsFileError, match=foreign.format("KeyError: 'model_name'")):
        read(tmp_path)
    write_record(tmp_path, bd_test={"x": torch.rand(2, 3, 8, 10), "y": torch.zeros(2)})  # of BackdoorBench 1
    with pytest.raises(WeightsFileError, match=foreign.format("KeyError: 'bd_data_container'")):
        read(tmp_path, network())
    write_record(tmp_path)
    (tmp_path / "bd_test_dataset" / "2" / "7.png").unlink()
    with pytest.raises(WeightsFileError, match=foreign.format(r"got 1 missing of 9, such as .*2/7\.png")):
        read(tmp_path, network())
    write_record(tmp_path, wanted={})
    with pytest.raises(WeightsFileError, match=foreign.format("for each triggered image, got no images")):
        read(tmp_path, network())


def test_unknown_data_sets_and_classifiers_are_refused(tmp_path):
    write_record(tmp_path, dataset="cifar11")
    with pytest.raises(
        ValueError, match=r"record's data set must be one of .*, got 'cifar11'\. Did you mean 'cifar10'"
    ):
        read(tmp_path, network())
    write_record(tmp_path, name="vgg19_bn")
    with pytest.raises(ValueError, match=r"classifier must be given .*'preactresnet18', got .*'vgg19_bn'\. Build it"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"weights must fit the classifier, got 'vgg19_bn' for Linear: .* Give the"):
        read(tmp_path, nn.Linear(3, CLASSES))
    write_record(tmp_path, name="preactresnet18")
    with pytest.raises(ValueError, match=r"weights must fit .* for BenchPreActResNet18: "):
        read(tmp_path)
