"""``TriggeredDataset``: a test set whose images all carry the trigger."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from sampdetox_transforms.lab.attacks.items import (
    Attack,
    apply,
    attacker_labels,
    check_batch_size,
    check_target,
    stack_images,
    unit_image,
)


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
        labels, num_classes = check_target(dataset, target_label, mode, num_classes)
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

    def materialise(self, batch_size: int = 256) -> tuple[Float[Tensor, "m c h w"], Int[Tensor, " m"]]:
        """All items at once, as ``PoisonedDataset.materialise`` gives them."""
        check_batch_size(batch_size)
        images = stack_images(self.dataset, self.indices)
        for batch in images.split(batch_size):  # views
            batch.copy_(apply(self.attack, batch))
        return images, self.targets.clone()
