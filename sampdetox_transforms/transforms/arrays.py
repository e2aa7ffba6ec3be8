"""Images as NumPy arrays, (h, w, c): one or a batch (``DetoxArrays``), and a column of a table (``DetoxBatches``)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sampdetox_transforms.transforms.explanation import Explanation
from sampdetox_transforms.transforms.transform import SampDetox


class DetoxArrays:
    """Purify images that are NumPy arrays with the channels last, as OpenCV, Pillow and albumentations have them.

    Args:
        detox: a ``SampDetox``; None makes one with the default weights.

    A call takes (h, w), (h, w, c) or (n, h, w, c), c = 1 or 3, uint8 or floats in [0, 1], and returns a new array of
    the same shape and dtype. The order of the colours is that of the networks, RGB: turn OpenCV's BGR around before.

    Raises:
        TypeError: a ``detox`` of another kind; what is no array, or has another dtype.
        ValueError: another shape, or what ``detox`` refuses.
    """

    def __init__(self, detox: SampDetox | None = None):
        if detox is not None and not isinstance(detox, SampDetox):
            raise TypeError(f"detox must be a SampDetox, got {type(detox).__name__}. Build one with SampDetox(...).")
        self.detox = SampDetox() if detox is None else detox

    def __call__(self, image: NDArray[Any]) -> NDArray[Any]:
        tensor = channels_first(image)
        return self.detox(tensor).movedim(-3, -1).reshape(image.shape).numpy()

    def explain(self, image: NDArray[Any]) -> Explanation:
        """Purify, and say what was done: tensors (..., c, h, w), with the channels before height and width."""
        return self.detox.explain(channels_first(image))


def channels_first(image: NDArray[Any]) -> torch.Tensor:
    """(h, w), (h, w, c) or (n, h, w, c) -> (..., c, h, w), a copy on the CPU."""
    if not isinstance(image, np.ndarray):
        raise TypeError(f"images must be NumPy arrays, got {type(image).__name__}. SampDetox takes tensors and PIL.")
    if not (image.ndim == 2 or (image.ndim in (3, 4) and image.shape[-1] in (1, 3))):
        raise ValueError(
            f"arrays must have the shape (h, w), (h, w, c) or (n, h, w, c) with c = 1 or 3, got {image.shape}. "
            "Put the channels last, and drop alpha channels."
        )
    if image.dtype != np.uint8 and image.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"arrays must be uint8, or floating-point in [0, 1], got {image.dtype}. Scale them to uint8.")
    tensor = torch.tensor(np.ascontiguousarray(image))
    return tensor[None] if image.ndim == 2 else tensor.movedim(-1, -3)


class DetoxBatches:
    """Purify a column of batches that are dictionaries of NumPy arrays: for ``map_batches`` of Ray Data.

    ``data.map_batches(DetoxBatches, fn_constructor_kwargs={"weights": "bundled", "seed": 0})`` builds it once in each
    worker. With a seed an image's result is the same in whatever batch or worker it lands.

    Args:
        weights: as for ``SampDetox``; a ``SampDetox`` as it is.
        column: which holds the images: (n, h, w), (n, h, w, c), or n arrays (h, w) or (h, w, c) of their own sizes.
        p_value: the name of a column to add, of the share of clean images that look at least as suspicious; None for
            none. It needs a preset that searches for triggers ("restore").
        settings: of ``SampDetox``. Without ``device`` it is "cuda" where there is a card, as in a worker with
            ``num_gpus=1``.

    Raises:
        ValueError: a ``p_value`` for a preset without a search, or what ``SampDetox`` refuses.
        In a call: KeyError for a batch without the column, and what ``DetoxArrays`` raises.
    """

    def __init__(self, weights: Any = None, *, column: str = "image", p_value: str | None = None, **settings: Any):
        if isinstance(weights, SampDetox):
            detox = weights
        else:
            settings.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
            detox = SampDetox(**settings) if weights is None else SampDetox(weights, **settings)
        if p_value is not None and detox.restorer is None:
            raise ValueError("p_value needs a preset that searches for triggers, got none. Take preset='restore'.")
        self.purify, self.column, self.p_value = DetoxArrays(detox), column, p_value

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self.column not in batch:
            raise KeyError(f"a batch must have the column {self.column!r}, got {sorted(batch)}. Give column=.")
        images = batch[self.column]
        results, p_values = np.empty_like(images), np.ones(len(images))
        for places in alike(images):
            stack = images[places] if images.dtype != object else np.stack(list(images[places]))
            planes = stack[..., None] if stack.ndim == 3 else stack  # grey, without a channel of its own
            if self.p_value is None:
                purified = self.purify(planes)
            else:
                told = self.purify.explain(planes)
                assert told.found is not None  # checked above
                purified = told.image.movedim(-3, -1).numpy()
                p_values[places] = told.found.p_value.numpy()
            for place, image in zip(places, purified.reshape(stack.shape), strict=True):
                results[place] = image
        added = {} if self.p_value is None else {self.p_value: p_values}
        return {**batch, self.column: results, **added}


def alike(images: NDArray[Any]) -> list[list[int]]:
    """The places of images of one shape and dtype, shape by shape."""
    if images.dtype != object:
        return [list(range(len(images)))] if len(images) else []
    groups: dict[Any, list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault((np.shape(image), getattr(image, "dtype", None)), []).append(place)
    return list(groups.values())
