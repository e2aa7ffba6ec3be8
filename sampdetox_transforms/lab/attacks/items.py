"""Data sets with triggers: ``PoisonedDataset`` to train a victim on, ``TriggeredDataset`` to measure PA and ASR on."""

from collections.abc import Callable
from typing import Any

import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Subset
from torchvision.transforms.v2 import functional

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab.checks import check_images

MODES = ("all2one", "all2all", "clean-label")

LABEL_NAMES = ("targets", "labels", "_labels")

Attack = Callable[[Tensor], Tensor]

Cover = Callable[[Tensor, Tensor], Tensor]


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


def stack_images(dataset: Any, indices: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """The images at ``indices``, float32; they must have one shape."""
    first = unit_image(dataset[int(indices[0])][0])
    result = torch.empty(len(indices), *first.shape)
    for row, index in zip(result, indices.tolist(), strict=True):
        image = unit_image(dataset[index][0])
        if image.shape != first.shape:
            raise ValueError(
                f"images must have one shape to be stacked, got {tuple(first.shape)} and {tuple(image.shape)}. "
                "Resize and convert them, or read the items one by one."
            )
        row.copy_(image)
    return result


def apply(attack: Callable[..., Tensor], image: Tensor, *others: Tensor, name: str = "attack") -> Tensor:
    """The altered image or batch, checked; the attack gets copies, so that it cannot touch the data set's."""
    result = attack(image.clone(), *(other.clone() for other in others))
    check_images(result, f"the {name}'s results")
    if result.shape != image.shape:
        raise ValueError(
            f"an attack or a cover must keep the image's shape, got {tuple(result.shape)} for {tuple(image.shape)}. "
            "It is called with one image (c, h, w), and by materialise with batches (b, c, h, w)."
        )
    return result


def check_target(dataset, target_label, mode, num_classes) -> tuple[Tensor, int]:
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


def check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}. Leave it out for 256.")
