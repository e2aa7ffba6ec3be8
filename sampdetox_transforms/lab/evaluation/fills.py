"""Experiment ``fills``: square holes in photographs, filled by this package and by two classical methods.

PSNR is of the hole's pixels. The feature distance is LPIPS in its plain form (Zhang et al. 2018, equation 1 with all
weights 1): the squared distance of unit-length features of an ImageNet classifier, here the first blocks of
EfficientNet-Lite0 as LPIPS's own networks cannot be had without a download; a mean over the places that a hole touches.
"""

from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.nn import functional

from sampdetox_transforms.lab.evaluation.kinds import load_kind
from sampdetox_transforms.lab.evaluation.planted import side
from sampdetox_transforms.lab.evaluation.study import Cell, Document, Plan, Study, markdown
from sampdetox_transforms.lab.victims.efficientnet import LiteClassifier, load_lite_classifier
from sampdetox_transforms.networks.restorers import load_restorers

Filler = Callable[[Float[Tensor, "n 3 h w"], Bool[Tensor, "n 1 h w"]], Float[Tensor, "n 3 h w"]]

AREAS = (0.01, 0.03, 0.1)  # of the image

KINDS = ("imagenet", "dtd")


def cells(plan: Plan) -> Iterable[Cell]:
    """A row for each kind of image, area of the hole and method."""
    images = cache(lambda kind: load_kind(kind, plan.n, plan.seed, data=plan.data).images)
    classifier, fillers = cache(load_lite_classifier), {**METHODS, "this package": cache(bundled)}

    def row(kind: str, area: float, method: str) -> dict[str, Any]:
        x = images(kind)
        holes = square_holes(x, area, Generator().manual_seed(plan.seed))
        filler = fillers[method]() if method == "this package" else fillers[method]
        filled = (filler(x, holes) * 255).round() / 255
        error = (filled - x).square().mean(dim=1, keepdim=True)
        psnr = -10 * ((error * holes).sum(dim=(1, 2, 3)) / holes.sum(dim=(1, 2, 3))).clamp(min=1e-6).log10()
        distance = feature_distance(classifier(), x, filled, holes)
        return {"n": len(x), "psnr": round(float(psnr.mean()), 2), "distance": round(float(distance.mean()), 4)}

    for kind in KINDS:
        for area in AREAS:
            for method in fillers:
                yield Cell({"kind": kind, "area": area, "method": method}, partial(row, kind, area, method))


def bundled() -> Filler:
    """The networks for photographs that the package brings."""
    large = load_restorers()[0].large
    assert large is not None
    return torch.inference_mode()(lambda x, holes: (large.fill(x * 2 - 1, holes) + 1) / 2)


def telea(x: Float[Tensor, "n 3 h w"], holes: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Telea 2004, OpenCV's, from 3 pixels around."""
    try:
        cv2: Any = import_module("cv2")
    except ImportError as error:
        raise ImportError(
            f"Telea's inpainting is OpenCV's, got {error}. Run pip install opencv-python-headless."
        ) from error

    def fill(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
        return cv2.inpaint(np.ascontiguousarray(image), hole, 3, cv2.INPAINT_TELEA)

    bytes_ = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    filled = [fill(image, hole) for image, hole in zip(bytes_, holes[:, 0].byte().numpy(), strict=True)]
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).to(x) / 255


def biharmonic(x: Float[Tensor, "n 3 h w"], holes: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Damelin and Hoang 2018, scikit-image's."""
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError as error:
        raise ImportError(
            f"biharmonic inpainting is scikit-image's, got {error}. Run pip install scikit-image."
        ) from error
    filled = [
        inpaint_biharmonic(image.numpy(), hole.numpy(), channel_axis=0)
        for image, hole in zip(x, holes[:, 0], strict=True)
    ]
    return torch.from_numpy(np.stack(filled)).to(x).clamp(0, 1)


def surroundings(x: Float[Tensor, "n 3 h w"], holes: Bool[Tensor, "n 1 h w"]) -> Float[Tensor, "n 3 h w"]:
    """The mean colour of the pixels up to 4 pixels from the hole: the grey blot to beat."""
    ring = (functional.max_pool2d(holes.float(), 9, stride=1, padding=4) > 0) & ~holes
    mean = (x * ring).sum(dim=(2, 3), keepdim=True) / ring.sum(dim=(2, 3), keepdim=True)
    return torch.where(holes, mean, x)


METHODS: dict[str, Filler] = {"mean colour around": surroundings, "Telea": telea, "biharmonic": biharmonic}


def square_holes(x: Float[Tensor, "n 3 h w"], area: float, generator: Generator) -> Bool[Tensor, "n 1 h w"]:
    """A square anywhere in each image."""
    height, width = x.shape[-2:]
    size = side(min(height, width), area)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    top = torch.randint(height - size + 1, (len(x), 1, 1, 1), generator=generator)
    left = torch.randint(width - size + 1, (len(x), 1, 1, 1), generator=generator)
    return (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)


@torch.inference_mode()
def feature_distance(
    classifier: LiteClassifier,
    x: Float[Tensor, "n 3 h w"],
    filled: Float[Tensor, "n 3 h w"],
    holes: Bool[Tensor, "n 1 h w"],
) -> Float[Tensor, " n"]:
    """What the module says."""
    first, second = (functional.normalize(classifier.early(part), dim=1) for part in (x, filled))
    touched = functional.adaptive_max_pool2d(holes.float(), first.shape[-2:])
    distance = (first - second).square().sum(dim=1, keepdim=True)
    return (distance * touched).sum(dim=(1, 2, 3)) / touched.sum(dim=(1, 2, 3))


def render(document: Document) -> str:
    lines = [
        [row["kind"], f"{row['area']:.0%}", row["method"], f"{row['psnr']:.2f}", f"{row['distance']:.3f}"]
        for row in document["rows"]
    ]
    return markdown(["images", "hole", "method", "PSNR in the hole, dB", "feature distance"], lines)


FILLS = Study(
    title="Square holes in photographs, filled",
    cells=cells,
    render=render,
    n=40,
    data=lambda plan: "test images of each kind",
)
