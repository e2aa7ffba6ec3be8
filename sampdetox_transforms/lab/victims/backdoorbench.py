"""Attacks that BackdoorBench made: its classifier and triggered test images, from a folder ``record/NAME``.

BackdoorBench (SCLBD/BackdoorBench) writes ``attack_result.pt`` with the weights, and for each test image with the
trigger ``bd_test_dataset/TRUE_LABEL/INDEX.png``; the labels that the attacker wants are in the former. The layout is
that of its ``utils/save_load_attack.py`` and ``utils/bd_dataset_v2.py``.
"""

import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.attacks.items import check_batch_size, stack_images, unit_image
from sampdetox_transforms.lab.victims.classifiers import PreActResNet18
from sampdetox_transforms.lab.victims.victim import Victim
from sampdetox_transforms.networks.checkpoints import WeightsFileError

RESULT, TEST_IMAGES = "attack_result.pt", "bd_test_dataset"

PREACT_RESNET18 = "preactresnet18"

# Mean and standard deviation of each channel, as ``get_dataset_normalization`` has them in
# ``utils/aggregate_block/dataset_and_transform_generate.py``.
NORMALISATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "celeba": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "mnist": ((0.5,), (0.5,)),
}


class Normalised(nn.Module):
    """A network for normalised images, made one for images in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, dataset: str):
        super().__init__()
        self.network = network
        for name, values in zip(("mean", "std"), NORMALISATIONS[dataset], strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.network((images - self.mean) / self.std)


class BenchPreActResNet18(PreActResNet18):
    """BackdoorBench's ``models/preact_resnet.py``: our network, for images that are normalised already."""

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        return self.linear(self.blocks(self.conv(images)).mean(dim=(2, 3)))

    @staticmethod
    def name(theirs: str) -> str:
        """What we call their parameter."""
        found = re.fullmatch(r"layer([1-4])\.([01])\.(.+)", theirs)
        if found is None:
            return theirs.replace("conv1.", "conv.")
        place = 2 * int(found[1]) - 2 + int(found[2])
        return f"blocks.{place}." + found[3].replace("bn", "norm").replace("shortcut.0", "shortcut")


class RecordImages(Dataset):
    """A record's test images with the trigger: items are (image, true label), the image (c, h, w) in [0, 1].

    Its interface is that of ``TriggeredDataset``; those whose true label the attacker wants are left out.

    Attributes:
        files: (m) where the images are.
        indices: (m,) their places in the test set, in BackdoorBench's order, which is torchvision's for CIFAR.
        targets: (m,) their true labels, for PA.
        attacker_labels: (m,) the classes that the attacker wants, for ASR.
        size: height and width that they are resized to, as BackdoorBench does; most have them already.
    """

    def __init__(
        self, files: list[Path], indices: Tensor, targets: Tensor, attacker_labels: Tensor, size: tuple[int, int]
    ):
        self.files, self.indices, self.targets, self.attacker_labels = files, indices, targets, attacker_labels
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with PIL.Image.open(self.files[index]) as image:
            height, width = self.size
            resized = image.resize((width, height), PIL.Image.Resampling.BILINEAR)  # does nothing at that size
        return unit_image(resized), int(self.targets[index])

    def materialise(self, batch_size: int = 256) -> tuple[Float[Tensor, "m c h w"], Int[Tensor, " m"]]:
        """All items at once: images, float32, and true labels. ``batch_size`` is there for the common interface."""
        check_batch_size(batch_size)
        return stack_images(self, torch.arange(len(self))), self.targets.clone()

    def subset(self, chosen: Int[Tensor, " n"]) -> "RecordImages":
        """The images at these positions, in this order."""
        files = [self.files[i] for i in chosen.tolist()]
        return RecordImages(files, self.indices[chosen], self.targets[chosen], self.attacker_labels[chosen], self.size)


@dataclass(frozen=True)
class RecordVictim(Victim):
    """A record as a victim; the trigger is known from images only, so that ``attack`` refuses any others."""

    images: RecordImages = field(kw_only=True)

    def triggered(self, dataset: Any = None, seed: int = 0) -> RecordImages:
        """The record's images, in an order that ``seed`` draws, at most as many as ``dataset`` has; None for all.

        The images of ``dataset`` are not looked at: PA and ASR are of the record's images, which need not be those
        that CA is measured on.
        """
        n = None if dataset is None else len(dataset)
        return self.images.subset(torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))[:n])


@dataclass(frozen=True)
class Record:
    """What ``load_record`` read.

    Attributes:
        name: the folder's.
        model: images (b, c, h, w) in [0, 1] to logits (b, num_classes), in eval mode.
        triggered: the test images with the trigger, and labels.
        dataset, classifier: BackdoorBench's names, such as "cifar10" and "preactresnet18".
    """

    name: str
    model: Normalised
    triggered: RecordImages
    num_classes: int
    dataset: str
    classifier: str

    def victim(self, name: str | None = None) -> RecordVictim:
        """For ``evaluate`` and ``measure``; ``name`` is what tables call it, None for the folder's.

        The mode is "all2one" where the attacker wants one class, also for clean-label attacks, else "all2all".
        """
        wanted = self.triggered.attacker_labels.unique().tolist()
        target, mode = (wanted[0], "all2one") if len(wanted) == 1 else (None, "all2all")
        height, width = self.triggered.size
        about = {"classifier": self.classifier, "data": self.dataset, "made_by": "BackdoorBench"}
        return RecordVictim(
            *(self.name if name is None else name, self.model, no_function, target, mode, self.num_classes),
            *(height if height == width else None, about),
            images=self.triggered,
        )


def load_record(
    folder: str | Path,
    *,
    allow_pickle: bool = False,
    classifier: nn.Module | None = None,
    device: str | torch.device = "cpu",
) -> Record:
    """Read what an attack of BackdoorBench wrote into ``record/NAME``.

    ``attack_result.pt`` is a pickle, which can run any code while it is read. torch's restricted reader
    (``weights_only``), made to run none, is tried first, with numpy's arrays allowed: it suffices for what they write.
    Only what it refuses is unpickled in full. The paths in the file, of another machine maybe, are not used.

    Args:
        allow_pickle: the file may be read. Say so only of records whose maker you trust.
        classifier: None for PreAct-ResNet18. For others a network of the record's architecture that takes normalised
            images, such as ``torchvision.models.vgg19_bn(num_classes=10)``; a copy of it gets the record's weights.

    Raises:
        ValueError: no ``allow_pickle``; a data set or architecture that is not known; weights that do not fit.
        WeightsFileError: a missing, foreign or damaged file, or images that are missing.
    """
    folder = Path(folder)
    if not (folder / RESULT).is_file():
        raise WeightsFileError(f"a record must be a folder with {RESULT}, got {folder} without. Name record/NAME.")
    if not allow_pickle:
        raise ValueError(
            f"allow_pickle must be True for a record, got False: {folder / RESULT} is a pickle, which can run any code "
            "while it is read. Allow it where you trust who made the record."
        )
    warnings.warn(
        f"{folder / RESULT} is a pickle: code in it may run if torch's restricted reader refuses it.", stacklevel=2
    )
    try:
        content = read_pickle(folder / RESULT)
        name, dataset, num_classes = content["model_name"], content["clean_data"], int(content["num_classes"])
        state = {key.removeprefix("module."): value for key, value in content["model"].items()}  # of DataParallel
        height, width = map(int, content["img_size"][:2])
        images = triggered_images(folder / TEST_IMAGES, content["bd_test"], (height, width))
    except Exception as error:  # a pickle can raise anything
        raise WeightsFileError(
            f"a record must be what BackdoorBench's save_attack_result writes, got {folder}: "
            f"{type(error).__name__}: {error}. Make it anew, or copy it whole."
        ) from error
    check_choice("the record's data set", dataset, tuple(NORMALISATIONS))
    if classifier is not None:
        network = copy.deepcopy(classifier)
    elif name == PREACT_RESNET18:
        network, state = BenchPreActResNet18(num_classes), {BenchPreActResNet18.name(k): v for k, v in state.items()}
    else:
        raise ValueError(
            f"classifier must be given unless the record's is {PREACT_RESNET18!r}, got {name!r}. Build it."
        )
    try:
        network.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            f"the record's weights must fit the classifier, got {name!r} for {type(network).__name__}: "
            f"{shorten(str(error), 300, placeholder=' ...')} Give the architecture of that name, for as many classes."
        ) from error
    model = Normalised(network, dataset).to(device).eval()
    return Record(folder.resolve().name, model, images, num_classes, dataset, name)


def triggered_images(folder: Path, state: Mapping[str, Any], size: tuple[int, int]) -> RecordImages:
    """The images of ``prepro_cls_DatasetBD_v2.retrieve_state``, found by true label and index."""
    items = {int(index): item["other_info"] for index, item in state["bd_data_container"]["data_dict"].items()}
    rows = [(i, int(items[i][1]), int(items[i][0])) for i in map(int, state["original_index_array"]) if i in items]
    rows = [row for row in rows if row[1] != row[2]]
    files = [folder / str(label) / f"{index}.png" for index, label, _ in rows]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        got = f"{len(missing)} missing of {len(files)}, such as {missing[0]}" if missing else "no images"
        raise FileNotFoundError(f"{folder} must hold a PNG file for each triggered image, got {got}")
    indices, targets, attacker_labels = torch.tensor(rows).T
    return RecordImages(files, indices, targets, attacker_labels, size)


def read_pickle(path: Path) -> Any:
    """The content of a file of ``torch.save``, by the restricted reader where that can read it."""
    # What numpy, before version 2 and since, pickles arrays and numbers as; taken from numpy by public ways.
    makers: list[Any] = [np.empty(0).__reduce__()[0], np.int64(0).__reduce__()[0]]
    names = [
        (maker, f"{core}.multiarray.{maker.__name__}") for maker in makers for core in ("numpy.core", "numpy._core")
    ]
    types = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}]
    try:
        with torch.serialization.safe_globals([*names, *types]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever it is, the full reader has the last word
        return torch.load(path, map_location="cpu", weights_only=False)


def no_function(images: Tensor) -> Tensor:
    """The attack of a record's victim: there is none that could be put on other images."""
    raise ValueError(
        f"the trigger must be a function to be put on {len(images)} other images, got a record, which has images only. "
        "Use the victim's triggered()."
    )
