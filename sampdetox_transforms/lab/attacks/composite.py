"""CBA, the composite attack (Lin et al. 2020): an image made of two classes' halves is taken for a third class."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from sampdetox_transforms.lab.attacks.items import check_batch_size, check_target, stack_images, unit_image
from sampdetox_transforms.lab.checks import check_images

JITTER = 3  # pixels by which the cut is off the middle at most

DRAWS = 5  # random numbers for each pair


def composite(
    a: Float[Tensor, "*n c h w"], b: Float[Tensor, "*n c h w"], *, generator: torch.Generator | None = None
) -> Float[Tensor, "*n c h w"]:
    """Put a part of each image of a pair side by side, or one above the other: the original's ``HalfMixer``.

    Which of both comes first and whether they lie side by side is drawn with probability 1/2. The first one takes half
    of the side + U{-3...3} pixels, and the other the rest; each part is read at a random place of its image, as the
    original draws it: never at its last one. With one ``generator``, batches in order give what pairs one by one give.

    Args:
        a, b: (..., c, h, w) in [0, 1], of one shape, 8 pixels or more on both sides.
        generator: source of all draws; None for torch's own.

    Raises:
        ValueError: images outside [0, 1], of two shapes, or too small.
        TypeError: what is no floating-point tensor.
    """
    check_images(a, "a")
    check_images(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}. Resize one.")
    n = a.shape[:-3].numel()
    u = torch.rand((n, DRAWS), generator=generator, device=generator.device if generator else "cpu")
    return _half_mix(a.reshape(n, *a.shape[-3:]), b.reshape(n, *b.shape[-3:]), u.to(a.device)).view(a.shape)


def _half_mix(
    a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], u: Float[Tensor, "n 5"]
) -> Float[Tensor, "n c h w"]:
    height, width = a.shape[-2:]
    if min(height, width) // 2 <= JITTER:
        raise ValueError(
            f"images must be {2 * JITTER + 2} pixels or more on both sides, got {height} x {width}: the cut is up to "
            f"{JITTER} pixels off the middle. Resize them."
        )
    swap, beside = (u[:, :2] < 0.5).unbind(1)
    jitter = (u[:, 2] * (2 * JITTER + 1)).long() - JITTER
    rows, upper = _cut(height, torch.where(beside, height, height // 2 + jitter), u[:, 3], u[:, 4])
    columns, left = _cut(width, torch.where(beside, width // 2 + jitter, width), u[:, 3], u[:, 4])
    from_a = (upper[:, :, None] & left[:, None, :]) ^ swap[:, None, None]
    pair = torch.arange(len(a), device=a.device)[:, None, None], slice(None), rows[:, :, None], columns[:, None, :]
    return torch.where(from_a[..., None], a[pair], b[pair]).movedim(-1, 1).contiguous()


def _cut(
    n: int, first: Int[Tensor, " b"], u: Float[Tensor, " b"], v: Float[Tensor, " b"]
) -> tuple[Int[Tensor, "b n"], Tensor]:
    """Which pixel of its image each of n pixels along an axis reads, and whether it is of the first part.

    The first part has ``first`` pixels. It begins in 0...n - first - 1 of its image, the other in 0...first - 1; where
    the first part has all n pixels, it begins at 0.
    """
    first = first[:, None]
    place = torch.arange(n, device=first.device)
    begin, other = (u[:, None] * (n - first)).long(), (v[:, None] * first).long()
    return torch.where(place < first, place + begin, place - first + other), place < first


class CompositeDataset(Dataset):
    """What a victim of the composite attack is trained on: items are (image, label), the image (c, h, w) in [0, 1].

    In this order: ``normal_rate`` of the images as they are; ``same_rate`` as mixes with another image of their class,
    label kept, so that mixing alone means nothing; and as many as ``poison_rate`` of the images as mixes of an image of
    class A and one of class B, labelled ``target_label``. Images and mixes are drawn once, by the seed.

    Departures: the original adds a contrastive loss on the outputs of the three classes, which is left out: the victim
    is trained as any other. It draws each item anew in each epoch, its class first; here the classes keep the shares
    that they have in the data set, and at the default rates each image is normal or the first of a mix, once.

    Args:
        dataset: as for ``PoisonedDataset``.
        classes: A and B.
        target_label: C.
        normal_rate, same_rate, poison_rate: shares of the number of images, in (0, 1]; same_rate may be 0.
        seed: draws the images and the mixes.
        num_classes: K; None for the length of ``dataset.classes``, or else the largest label + 1.

    Attributes:
        pairs: (n, 2) the images of each item; twice the same where it is no mix.
        indices: (m,) the poisoned items.
        targets: (n,) the labels as given out.

    Raises:
        ValueError: classes or rates out of range, classes that are not different or have no image; on reading: images
            outside [0, 1], of two shapes, or below 8 pixels.
        TypeError: on reading: what is no image.
    """

    def __init__(
        self,
        dataset: Any,
        classes: tuple[int, int] = (0, 1),
        target_label: int = 2,
        *,
        normal_rate: float = 0.5,
        same_rate: float = 0.5,
        poison_rate: float = 0.1,
        seed: int = 0,
        num_classes: int | None = None,
    ):
        labels, self.num_classes = _check(dataset, classes, target_label, num_classes)
        for name, rate in (("normal_rate", normal_rate), ("poison_rate", poison_rate)):
            if not 0 < rate <= 1 or round(rate * len(labels)) == 0:
                raise ValueError(
                    f"{name} must be in (0, 1] and select an image, got {rate} of {len(labels)} images. "
                    "It is a share: 0.1 is a tenth."
                )
        if not 0 <= same_rate <= 1:
            raise ValueError(f"same_rate must be in [0, 1], got {same_rate}. It is a share: 0.5 is a half.")
        generator = torch.Generator().manual_seed(seed)
        normal, same, poison = (round(rate * len(labels)) for rate in (normal_rate, same_rate, poison_rate))
        order = torch.randperm(len(labels), generator=generator).repeat(2)
        single, first = order[:normal], order[normal : normal + same]
        self.pairs = torch.cat(
            [
                torch.stack([single, single], dim=1),
                torch.stack([first, _partners(labels, first, generator)], dim=1),
                _pairs(labels, classes, poison, generator),
            ]
        )
        self.dataset, self.classes, self.target_label = dataset, tuple(classes), target_label
        self.indices = torch.arange(normal + same, len(self.pairs))
        self.targets = labels[self.pairs[:, 0]]
        self.targets[self.indices] = target_label
        self._normal = normal
        self._draws = torch.rand((len(self.pairs), DRAWS), generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = range(len(self))[index]
        if index < self._normal:
            return unit_image(self.dataset[int(self.pairs[index, 0])][0]), int(self.targets[index])
        return _mixed_item(self.dataset, self.pairs[index], self._draws[index]), int(self.targets[index])

    def materialise(self, batch_size: int = 256) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """All items at once, as ``PoisonedDataset.materialise`` gives them."""
        check_batch_size(batch_size)
        images = stack_images(self.dataset, torch.arange(int(self.pairs.max()) + 1))
        result = images[self.pairs[:, 0]]
        mixes = torch.arange(self._normal, len(self))
        for batch in mixes.split(batch_size):
            result[batch] = _half_mix(result[batch], images[self.pairs[batch, 1]], self._draws[batch])
        return result, self.targets.clone()


class CompositePairs(Dataset):
    """Test images of the composite attack: n mixes of images of classes A and B; items are (image, A).

    Such an image has two true labels. For PA a prediction of either is right: ``(p == targets) | (p ==
    second_targets)``. The paper does not say what it counts. ASR is measured as for ``TriggeredDataset``, and CA on
    the clean data set. The pairs are drawn with replacement. Arguments and errors as for ``CompositeDataset``.

    Attributes:
        pairs: (n, 2) the images of each item.
        targets, second_targets: (n,) the true labels, A and B.
        attacker_labels: (n,) the class that the attacker wants, for ASR.
    """

    def __init__(
        self,
        dataset: Any,
        classes: tuple[int, int] = (0, 1),
        target_label: int = 2,
        n: int = 1000,
        seed: int = 0,
        num_classes: int | None = None,
    ):
        labels, self.num_classes = _check(dataset, classes, target_label, num_classes)
        if n < 1:
            raise ValueError(f"n must be 1 or more, got {n}. It is the number of pairs; leave it out for 1000.")
        generator = torch.Generator().manual_seed(seed)
        self.dataset, self.classes, self.target_label = dataset, tuple(classes), target_label
        self.pairs = _pairs(labels, classes, n, generator)
        self.targets, self.second_targets = labels[self.pairs].unbind(1)
        self.attacker_labels = torch.full_like(self.targets, target_label)
        self._draws = torch.rand((n, DRAWS), generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = range(len(self))[index]
        return _mixed_item(self.dataset, self.pairs[index], self._draws[index]), int(self.targets[index])

    def materialise(self, batch_size: int = 256) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """All items at once, as ``PoisonedDataset.materialise`` gives them."""
        check_batch_size(batch_size)
        result = stack_images(self.dataset, self.pairs[:, 0])
        for batch in torch.arange(len(self)).split(batch_size):
            others = stack_images(self.dataset, self.pairs[batch, 1])
            if others.shape[1:] != result.shape[1:]:
                raise ValueError(
                    f"images must have one shape, got {tuple(result.shape[1:])} and {tuple(others.shape[1:])}. "
                    "Resize and convert them."
                )
            result[batch] = _half_mix(result[batch], others, self._draws[batch])
        return result, self.targets.clone()


def _mixed_item(dataset: Any, pair: Int[Tensor, " 2"], u: Float[Tensor, " 5"]) -> Float[Tensor, "c h w"]:
    a, b = (unit_image(dataset[index][0]) for index in pair.tolist())
    if a.shape != b.shape:
        raise ValueError(
            f"images must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}. Resize and convert them."
        )
    return _half_mix(a[None], b[None], u[None])[0]


def _pairs(
    labels: Int[Tensor, " n"], classes: tuple[int, int], count: int, generator: torch.Generator
) -> Int[Tensor, "m 2"]:
    """``count`` pairs of images, one of each class, drawn with replacement."""
    members = [(labels == label).nonzero()[:, 0] for label in classes]
    return torch.stack([m[torch.randint(len(m), (count,), generator=generator)] for m in members], dim=1)


def _partners(labels: Int[Tensor, " n"], indices: Int[Tensor, " m"], generator: torch.Generator) -> Int[Tensor, " m"]:
    """For each image another one of its class; itself where it is the only one."""
    members = labels.argsort(stable=True)  # class by class
    count = labels.bincount()
    begin = count.cumsum(0) - count
    rank = torch.empty_like(labels)
    rank[members] = torch.arange(len(labels)) - begin[labels[members]]
    of = labels[indices]
    step = 1 + (torch.rand(len(indices), generator=generator) * (count[of] - 1)).long()
    return members[begin[of] + (rank[indices] + step) % count[of]]


def _check(dataset: Any, classes: tuple[int, int], target_label: int, num_classes: int | None) -> tuple[Tensor, int]:
    """The labels and K, once the three classes fit them."""
    labels, num_classes = check_target(dataset, target_label, "all2one", num_classes)
    if len(classes) != 2 or len({*classes, target_label}) != 3:
        raise ValueError(
            f"classes and target_label must be three different classes, got {classes} and {target_label}. "
            "The original has (0, 1) and 2."
        )
    for label in classes:
        if not bool((labels == label).any()):
            raise ValueError(
                f"each of classes must have an image, got class {label!r} without any. "
                f"Choose among {labels.unique().tolist()[:20]}, or add images."
            )
    return labels, num_classes
