"""Data sets for DataLoaders whose workers import them: a worker finds this file, and not the tests' own modules."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

GIVE_UP = 120  # seconds until a loader stops to wait for a worker that did not start


class SameImage(Dataset):
    """One image, as often as is asked for, through a transform."""

    def __init__(self, transform, image: Tensor, length: int):
        self.transform, self.image, self.length = transform, image, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        return self.transform(self.image)


class GreyImages(Dataset):
    """Four grey images, from black to bright, through a transform."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(torch.full((3, 8, 8), index / 4))
