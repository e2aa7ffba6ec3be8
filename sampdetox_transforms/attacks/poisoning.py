"""Data sets with triggers: ``PoisonedDataset`` to train a victim on, ``TriggeredDataset`` to measure PA and ASR on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.transforms.v2 import functional

from sampdetox_transforms.attacks.checks import check_images
from sampdetox_transforms.checkpoints import write_atomically
from sampdetox_transforms.names import check_choice

MODES = ("all2one", "all2all", "clean-label")
LABEL_NAMES = ("targets", "labels", "_labels")
TRIGGER = "trigger."  # how the trigger's tensors are named in a saved file
Attack = Callable[[Tensor], Tensor]


class PoisonedDataset(Dataset):
    """A data set of which a share carries the trigger: items are (image, label), the image (c, h, w) in [0, 1].

    The modes are BackdoorBench's: "all2one" poisons ``poison_rate`` of all images, those of the target class
    included, and labels them ``target_label``; "all2all" labels them (y + 1) mod K; "clean-label" poisons
    ``poison_rate`` of the target class's images and keeps the labels. The number is rounded. The seed alone draws the
    indices, whatever the workers and the order. Random augmentation belongs behind this data set, not into the
    wrapped one: a trigger comes before it.

    Args:
        dataset: pairs (image, label), as torchvision has them; PIL images (L or RGB) and uint8 tensors become float32.
            Labels are read from ``targets``, ``labels`` or ``_labels``, or else from each item.
        attack: (c, h, w) in [0, 1] to the same; a ``functools.partial`` of an attack of this package, or any callable.
        target_label: the attacker's class; None for "all2all".
        poison_rate: in (0, 1].
        mode: "all2one", "all2all" or "clean-label".
        seed: draws which images are poisoned.
        num_classes: K; None for the length of ``dataset.classes``, or else the largest label + 1.

    Attributes:
        indices: (m,) the poisoned images, sorted.
        targets: (n,) the labels as given out.

    Raises:
        ValueError: a target label outside the classes, a rate outside (0, 1], labels out of range, nothing to poison;
            on reading an item: images outside [0, 1], an attack that changes the shape or leaves [0, 1].
        TypeError: on reading an item: what is no image.
    """

    def __init__(
        self,
        dataset: Any,
        attack: Attack,
        target_label: int | None,
        poison_rate: float,
        mode: str = "all2one",
        seed: int = 0,
        num_classes: int | None = None,
    ):
        labels, num_classes = _check(dataset, target_label, mode, num_classes)
        if not 0 < poison_rate <= 1:
            raise ValueError(f"poison_rate must be in (0, 1], got {poison_rate}. It is a share: 0.1 is a tenth.")
        of = labels == target_label if mode == "clean-label" else torch.ones_like(labels, dtype=torch.bool)
        candidates = of.nonzero()[:, 0]
        count = round(poison_rate * len(candidates))
        if count == 0:
            raise ValueError(
                f"poison_rate must select an image at least, got {poison_rate} of {len(candidates)} images"
                f"{f' of class {target_label}' if mode == 'clean-label' else ''}. Raise it, or take more images."
            )
        order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
        self._set(dataset, attack, labels, candidates[order[:count]].sort().values, target_label, mode, num_classes)
        self.poison_rate, self.seed = poison_rate, seed

    def _set(self, dataset, attack, labels, indices, target_label, mode, num_classes) -> None:
        self.dataset, self.attack, self.indices = dataset, attack, indices
        self.target_label, self.mode, self.num_classes = target_label, mode, num_classes
        self._labels_sha256 = _sha256(labels)
        self.targets = labels.clone()
        self.targets[indices] = attacker_labels(labels[indices], target_label, num_classes)  # clean-label: the same
        self._poisoned = torch.zeros(len(labels), dtype=torch.bool)
        self._poisoned[indices] = True

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = unit_image(self.dataset[index][0])
        return (apply(self.attack, image) if self._poisoned[index] else image), int(self.targets[index])

    def save(self, path: str | PathLike[str], *, trigger: Mapping[str, Tensor] | None = None) -> None:
        """Write the indices, the settings and the ``trigger``'s tensors by name to a safetensors file, whole or not.

        Raises:
            OSError: the file cannot be written.
        """
        about = {
            "target_label": self.target_label,
            "poison_rate": self.poison_rate,
            "mode": self.mode,
            "seed": self.seed,
            "num_classes": self.num_classes,
            "labels_sha256": self._labels_sha256,
        }
        tensors = {f"{TRIGGER}{name}": value.detach().cpu().contiguous() for name, value in (trigger or {}).items()}
        tensors["indices"] = self.indices
        metadata = {"format": "pt", "poisoning": json.dumps(about)}
        write_atomically(Path(path), lambda part: save_file(tensors, part, metadata))

    @classmethod
    def load(cls, path: str | PathLike[str], dataset: Any, attack: Attack) -> "PoisonedDataset":
        """Poison ``dataset`` as the saved file says; ``load_trigger`` reads the tensors that the attack may need.

        Raises:
            ValueError: no such file of ours, or a data set with other labels than the saved one.
            OSError: a file that cannot be read.
        """
        tensors, about = _read(path)
        mode, target_label = about["mode"], about["target_label"]
        labels, num_classes = _check(dataset, target_label, mode, about["num_classes"])
        if _sha256(labels) != about["labels_sha256"]:
            raise ValueError(
                f"the data set must have the labels that {path} was saved with, got {len(labels)} others. "
                "Give the same data set in the same order."
            )
        self = cls.__new__(cls)
        self._set(dataset, attack, labels, tensors["indices"], target_label, mode, num_classes)
        self.poison_rate, self.seed = about["poison_rate"], about["seed"]
        return self


class TriggeredDataset(Dataset):
    """Test images, all with the trigger: items are (image, true label); the data of PA and ASR.

    In "all2one" and "clean-label" images of the target class are left out, since they would count as successes;
    "all2all" takes all images. CA is measured on the clean data set. Arguments and errors as for ``PoisonedDataset``.

    Attributes:
        indices: (m,) which images of ``dataset`` these are.
        targets: (m,) their true labels, for PA.
        attacker_labels: (m,) the classes that the attacker wants, for ASR.
    """

    def __init__(
        self,
        dataset: Any,
        attack: Attack,
        target_label: int | None,
        mode: str = "all2one",
        num_classes: int | None = None,
    ):
        labels, num_classes = _check(dataset, target_label, mode, num_classes)
        self.dataset, self.attack = dataset, attack
        kept = torch.ones_like(labels, dtype=torch.bool) if mode == "all2all" else labels != target_label
        self.indices = kept.nonzero()[:, 0]
        if not len(self.indices):
            raise ValueError(f"a class other than the target {target_label} must have images, got none. Add some.")
        self.targets = labels[self.indices]
        self.attacker_labels = attacker_labels(self.targets, target_label, num_classes)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = unit_image(self.dataset[int(self.indices[index])][0])
        return apply(self.attack, image), int(self.targets[index])


def load_trigger(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The trigger's tensors that ``PoisonedDataset.save`` wrote, by name; raises what ``load`` raises."""
    return {name.removeprefix(TRIGGER): value for name, value in _read(path)[0].items() if name.startswith(TRIGGER)}


def attacker_labels(labels: Int[Tensor, " n"], target_label: int | None, num_classes: int) -> Int[Tensor, " n"]:
    """The class that the attacker wants for each label: the target, or without one (y + 1) mod K."""
    return (labels + 1) % num_classes if target_label is None else torch.full_like(labels, target_label)


def read_labels(dataset: Any) -> Int[Tensor, " n"]:
    """All labels, from ``targets``, ``labels`` or ``_labels`` where a data set has them, or else from its items."""
    if isinstance(dataset, Subset):
        return read_labels(dataset.dataset)[torch.as_tensor(dataset.indices, dtype=torch.long)]
    given = next((v for name in LABEL_NAMES if (v := getattr(dataset, name, None)) is not None), None)
    if given is None:
        given = [dataset[i][1] for i in range(len(dataset))]
    elif (change := getattr(dataset, "target_transform", None)) is not None:
        given = [change(label) for label in given]
    labels = torch.as_tensor(given)
    if labels.is_floating_point() or labels.is_complex() or labels.ndim != 1 or len(labels) != len(dataset):
        if not len(dataset):
            raise ValueError("a data set must have an image at least, got none. Is its folder empty?")
        raise ValueError(
            f"labels must be whole numbers, one for each of {len(dataset)} images, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. Give class indices, not one-hot vectors."
        )
    return labels.long()


def unit_image(image: Any) -> Tensor:
    """A PIL image, a uint8 tensor or a float tensor in [0, 1] as a float tensor (c, h, w)."""
    if isinstance(image, PIL.Image.Image):
        if image.mode not in ("L", "RGB"):
            raise TypeError(f"PIL images must have the mode L or RGB, got {image.mode!r}. Use image.convert('RGB').")
        image = functional.pil_to_tensor(image)
    if isinstance(image, Tensor) and image.dtype == torch.uint8:
        image = functional.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
    check_images(image, "the data set's images")
    return image.as_subclass(Tensor)


def apply(attack: Attack, image: Tensor) -> Tensor:
    """The triggered image, checked; the attack gets a copy, so that it cannot touch the data set's."""
    result = attack(image.clone())
    check_images(result, "the attack's results")
    if result.shape != image.shape:
        raise ValueError(
            f"an attack must keep the image's shape, got {tuple(result.shape)} for {tuple(image.shape)}. "
            "It is called with one image (c, h, w)."
        )
    return result


def _check(dataset, target_label, mode, num_classes) -> tuple[Tensor, int]:
    """The labels and K, once the settings fit them."""
    check_choice("mode", mode, MODES)
    labels = read_labels(dataset)
    if num_classes is None:
        classes = getattr(dataset, "classes", None)
        num_classes = len(classes) if classes is not None else int(labels.max()) + 1
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"labels must be in 0...{num_classes - 1}, got {int(labels.min())}...{int(labels.max())}. "
            "Give num_classes, or count the classes from 0."
        )
    if mode == "all2all":
        if target_label is not None:
            raise ValueError(
                f"target_label must be None in mode 'all2all', got {target_label}. Each class has its own."
            )
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more in mode 'all2all', got {num_classes}. Give num_classes.")
    elif isinstance(target_label, bool) or not isinstance(target_label, int) or not 0 <= target_label < num_classes:
        raise ValueError(
            f"target_label must be a class in 0...{num_classes - 1}, got {target_label!r}. "
            "Give num_classes where the data set lacks images of the highest classes."
        )
    return labels, num_classes


def _sha256(labels: Tensor) -> str:
    return hashlib.sha256(labels.numpy().tobytes()).hexdigest()


def _read(path: str | PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["poisoning"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a file that PoisonedDataset.save wrote, got another: {error}") from error
