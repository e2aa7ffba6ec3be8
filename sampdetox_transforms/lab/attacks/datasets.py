"""``PoisonedDataset``: a training set of which a part carries a trigger."""

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.lab.attacks.items import (
    Attack,
    Cover,
    apply,
    attacker_labels,
    check_batch_size,
    check_target,
    stack_images,
    unit_image,
)

TRIGGER = "trigger."  # how the trigger's tensors are named in a saved file


class PoisonedDataset(Dataset):
    """A data set of which a share carries the trigger: items are (image, label), the image (c, h, w) in [0, 1].

    The modes are BackdoorBench's: "all2one" poisons ``poison_rate`` of all images, those of the target class
    included, and labels them ``target_label``; "all2all" labels them (y + 1) mod K; "clean-label" poisons
    ``poison_rate`` of the target class's images and keeps the labels. The number is rounded. The seed alone draws the
    indices, whatever the workers and the order. Random augmentation belongs behind this data set, not into the
    wrapped one: a trigger comes before it.

    Some attacks train on cover images too: altered, but with their true label. ``cover(image, other)`` makes them of
    ``cover_rate`` of all images, none of them poisoned; ``other`` is another image, drawn by the seed. WaNet's noise
    mode is ``lambda image, other: wanet_noise(image, field)`` at .2; BPP's negatives are ``bpp_negative`` at .1.

    Args:
        dataset: pairs (image, label), as torchvision has them; PIL images (L or RGB) and uint8 tensors become float32.
            Labels are read from ``targets``, ``labels`` or ``_labels``, or else from each item.
        attack: (c, h, w) in [0, 1] to the same; a ``functools.partial`` of an attack of this package, or any callable.
        target_label: the attacker's class; None for "all2all".
        poison_rate: in (0, 1].
        mode: "all2one", "all2all" or "clean-label".
        seed: draws which images are poisoned.
        num_classes: K; None for the length of ``dataset.classes``, or else the largest label + 1.
        cover: two images (c, h, w) in [0, 1] to one; None for no cover images.
        cover_rate: share of all images, in (0, 1) with ``cover``, else 0.

    Attributes:
        indices: (m,) the poisoned images, sorted.
        cover_indices: (k,) the cover images, sorted.
        partners: (k,) which image ``cover`` gets as ``other``, for each of them.
        targets: (n,) the labels as given out.

    Raises:
        ValueError: a target label outside the classes, a rate out of range, labels out of range, nothing to poison or
            too little left to cover; on reading an item: images outside [0, 1], an attack or a cover that changes the
            shape or leaves [0, 1].
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
        *,
        cover: Cover | None = None,
        cover_rate: float = 0.0,
    ):
        labels, num_classes = check_target(dataset, target_label, mode, num_classes)
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
        covers = _check_cover(cover, cover_rate, len(labels), len(labels) - count)
        generator = torch.Generator().manual_seed(seed)
        indices = candidates[torch.randperm(len(candidates), generator=generator)[:count]].sort().values
        free = torch.ones_like(labels, dtype=torch.bool)
        free[indices] = False
        others = free.nonzero()[:, 0]
        cover_indices = others[torch.randperm(len(others), generator=generator)[:covers]].sort().values
        partners = _partners(len(labels), cover_indices, generator)
        self._set(dataset, attack, labels, indices, target_label, mode, num_classes, cover, cover_indices, partners)
        self.poison_rate, self.seed, self.cover_rate = poison_rate, seed, cover_rate

    def _set(
        self, dataset, attack, labels, indices, target_label, mode, num_classes, cover, cover_indices, partners
    ) -> None:
        self.dataset, self.attack, self.indices = dataset, attack, indices
        self.target_label, self.mode, self.num_classes = target_label, mode, num_classes
        self.cover, self.cover_indices, self.partners = cover, cover_indices, partners
        self._labels, self._labels_sha256 = labels, _sha256(labels)
        self.targets = labels.clone()
        self.targets[indices] = attacker_labels(labels[indices], target_label, num_classes)  # clean-label: the same
        self._poisoned = torch.zeros(len(labels), dtype=torch.bool)
        self._poisoned[indices] = True
        self._partner = torch.full((len(labels),), -1)  # of cover images; -1 for all others
        self._partner[cover_indices] = partners

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, partner = unit_image(self.dataset[index][0]), int(self._partner[index])
        if self._poisoned[index]:
            image = apply(self.attack, image)
        elif self.cover is not None and partner >= 0:
            image = apply(self.cover, image, unit_image(self.dataset[partner][0]), name="cover")
        return image, int(self.targets[index])

    def materialise(
        self, batch_size: int = 256, poison: Cover | None = None
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """All items at once: images, float32, and labels. The attack and the cover get batches (b, c, h, w).

        Args:
            batch_size: how many images they get at once.
            poison: (images, true labels) to images, in place of the attack: for attacks that alter training images in
                another way than test images, such as label-consistent ones.

        Raises:
            ValueError: images of different shapes; what reading an item raises; a batch size below 1.
            TypeError: what reading an item raises.
        """
        check_batch_size(batch_size)
        images = stack_images(self.dataset, torch.arange(len(self)))
        clean = [images[partners] for partners in self.partners.split(batch_size)]  # before any is altered
        for batch in self.indices.split(batch_size):
            if poison is None:
                images[batch] = apply(self.attack, images[batch]).to(images)
            else:
                images[batch] = apply(poison, images[batch], self._labels[batch]).to(images)
        if self.cover is not None:
            for batch, others in zip(self.cover_indices.split(batch_size), clean, strict=True):
                images[batch] = apply(self.cover, images[batch], others, name="cover").to(images)
        return images, self.targets.clone()

    def draw_covers(self, epoch: int, batch_size: int = 256) -> Float[Tensor, "k c h w"]:
        """The cover images of an epoch, each with another partner and other random numbers, for ``cover_indices``.

        WaNet's noise, BPP's negatives and input-aware's cross images are drawn anew in each epoch by BackdoorBench.

        Raises:
            ValueError: no cover images, or what ``materialise`` raises.
        """
        if self.cover is None:
            raise ValueError(f"draw_covers must have cover images to draw, got cover {self.cover}. Give a cover.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + epoch)
            partners = _partners(len(self), self.cover_indices)
            images, others = stack_images(self.dataset, self.cover_indices), stack_images(self.dataset, partners)
            pairs = zip(images.split(batch_size), others.split(batch_size), strict=True)
            return torch.cat([apply(self.cover, image, other, name="cover").to(image) for image, other in pairs])

    def save(self, path: str | PathLike[str], *, trigger: Mapping[str, Tensor] | None = None) -> None:
        """Write the indices, the settings and the ``trigger``'s tensors by name to a safetensors file, whole or not.

        Neither the images nor the attack and the cover are in it: ``load`` takes them again.

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
            "cover_rate": self.cover_rate,
        }
        tensors = {f"{TRIGGER}{name}": value.detach().cpu().contiguous() for name, value in (trigger or {}).items()}
        tensors["indices"] = self.indices
        if self.cover is not None:
            tensors |= {"cover_indices": self.cover_indices, "partners": self.partners}
        metadata = {"format": "pt", "poisoning": json.dumps(about)}
        write_atomically(Path(path), lambda part: save_file(tensors, part, metadata))

    @classmethod
    def load(
        cls, path: str | PathLike[str], dataset: Any, attack: Attack, *, cover: Cover | None = None
    ) -> "PoisonedDataset":
        """Poison ``dataset`` as the saved file says; ``load_trigger`` reads the tensors that the attack may need.

        Raises:
            ValueError: no such file of ours, a data set with other labels than the saved one, a cover where the file
                has no cover images, or none where it has some.
            OSError: a file that cannot be read.
        """
        tensors, about = _read(path)
        mode, target_label = about["mode"], about["target_label"]
        labels, num_classes = check_target(dataset, target_label, mode, about["num_classes"])
        if _sha256(labels) != about["labels_sha256"]:
            raise ValueError(
                f"the data set must have the labels that {path} was saved with, got {len(labels)} others. "
                "Give the same data set in the same order."
            )
        none = torch.empty(0, dtype=torch.long)
        cover_indices, partners = tensors.get("cover_indices", none), tensors.get("partners", none)
        cover_rate = about.get("cover_rate", 0.0)  # files of earlier versions have no cover images
        _check_cover(cover, cover_rate, len(labels), len(labels))
        self = cls.__new__(cls)
        self._set(
            *(dataset, attack, labels, tensors["indices"], target_label, mode, num_classes),
            *(cover, cover_indices, partners),
        )
        self.poison_rate, self.seed, self.cover_rate = about["poison_rate"], about["seed"], cover_rate
        return self


def _check_cover(cover: Cover | None, cover_rate: float, n: int, free: int) -> int:
    """How many of n images become cover images, of which ``free`` are not poisoned."""
    if not 0 <= cover_rate < 1:
        raise ValueError(f"cover_rate must be in [0, 1), got {cover_rate}. It is a share: 0.1 is a tenth.")
    if (cover is None) != (cover_rate == 0):
        raise ValueError(
            f"cover and cover_rate must be given together, got {'no cover' if cover is None else 'a cover'} and "
            f"cover_rate {cover_rate}. Give both, or neither."
        )
    count = round(cover_rate * n)
    if cover is not None and not 1 <= count <= free:
        raise ValueError(
            f"cover_rate must select from 1 to {free} images, those that are not poisoned, got {cover_rate} of {n} "
            f"images, {count}. {'Raise it.' if count == 0 else 'Lower it or poison_rate.'}"
        )
    return count


def _partners(n: int, cover_indices: Int[Tensor, " k"], generator: torch.Generator | None = None) -> Int[Tensor, " k"]:
    """For each cover image another of n images, any but itself; without a generator from torch's own."""
    partners = torch.randint(max(n - 1, 1), (len(cover_indices),), generator=generator)
    return partners + (partners >= cover_indices)


def _sha256(labels: Tensor) -> str:
    return hashlib.sha256(labels.numpy().tobytes()).hexdigest()


def _read(path: str | PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["poisoning"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a file that PoisonedDataset.save wrote, got another: {error}") from error


def load_trigger(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The trigger's tensors that ``PoisonedDataset.save`` wrote, by name; raises what ``load`` raises."""
    return {name.removeprefix(TRIGGER): value for name, value in _read(path)[0].items() if name.startswith(TRIGGER)}
