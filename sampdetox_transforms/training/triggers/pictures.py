"""Pictures that are mixed into images: photographs of folders, and drawings, of full contrast.

A network that is shown few kinds of pictures learns these, and not what a picture is that lies over another.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from sampdetox_transforms.training.data import ImageCrops, list_images, numbers
from sampdetox_transforms.training.drawings import crops_and_drawings
from sampdetox_transforms.training.triggers.draw import Every, Images, uniform

ZOOM = 0.25  # the smallest share of a photograph that is mixed in


class Pictures:
    """Parts of the images of folders, and as many drawings.

    Args:
        folders: image folders, searched at any depth; JPEG files and images of any size may be among them.
        side: of the pictures, in pixels.

    Raises:
        OSError, ValueError: a folder that does not exist, or no image in any.
    """

    def __init__(self, folders: tuple[str | Path, ...], side: int):
        self.crops = ImageCrops(list_images(folders), side, 3, ZOOM)

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n 3 s s"]:
        """Pictures in [0, 1]; three in ten have twice their contrast, and in three draws of ten the colours change."""
        x = crops_and_drawings(self.crops, n, 0.5, generator)
        strong = uniform((n, 1, 1, 1), 0, 1, x, generator) < 0.3
        middle = x.mean(dim=(1, 2, 3), keepdim=True)
        x = torch.where(strong, ((x - middle) * 2 + middle).clamp(0, 1), x)
        return x[:, torch.randperm(3, generator=generator)] if numbers(1, generator)[0] < 0.3 else x


def mixed(images: Images, every: Every, generator: Generator, pictures: Pictures) -> Images:
    """Mixed with 8 to 35 % of a picture."""
    picture = pictures.draw(len(images), generator)
    return torch.lerp(images, picture, uniform((len(images), 1, 1, 1), 0.08, 0.35, images, generator))
