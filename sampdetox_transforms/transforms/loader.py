"""``DetoxLoader``: a data loader whose images are purified behind it, in whole batches, on the transform's device."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchvision import tv_tensors

from sampdetox_transforms.transforms.images import IMAGE_TYPES, is_pure_tensor
from sampdetox_transforms.transforms.transform import SampDetox


class DetoxLoader:
    """A loader of batches whose images come purified; order, other fields and ``len`` are the loader's.

    A transform inside of a loader's workers purifies one image after the other, each on one thread of a processor.
    Here whole batches go through the network in this process. Where ``detox`` computes on a CUDA device, the images
    of the next batch are copied there, on a stream of their own, while this batch is purified.

    Args:
        loader: any iterable of batches: tensors, tuples, lists and dicts, nested as ``DataLoader`` collates them. It
            is gone through anew for each epoch. Its other attributes (``dataset``, ``sampler``) are found here, too.
        detox: a ``SampDetox``. Its rule says what is an image: all explicit ones (tv_tensors, PIL), or else the first
            pure tensor of a batch; everything else comes out as the loader gave it.

    On a CUDA device the images come out there, float or uint8 as they went in. All else, labels too, stays where the
    loader left it.

    Raises:
        TypeError: a loader that cannot be gone through, a ``detox`` of another kind.
        In an epoch: what the loader raises, and what ``detox`` refuses.
    """

    def __init__(self, loader: Iterable[Any], detox: SampDetox):
        if not isinstance(loader, Iterable) and not hasattr(type(loader), "__getitem__"):
            raise TypeError(f"loader must be an iterable of batches, got {type(loader).__name__}. Pass a DataLoader.")
        if not isinstance(detox, SampDetox):
            raise TypeError(f"detox must be a SampDetox, got {type(detox).__name__}. Build one with SampDetox(...).")
        self.loader, self.detox = loader, detox

    def __len__(self) -> int:
        return len(self.loader)  # pyright: ignore[reportArgumentType]

    def __getattr__(self, name: str) -> Any:
        if name in ("loader", "detox"):  # not set yet, as in a copy that is being made
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        device = self.detox.device
        if device is None or device.type != "cuda":
            yield from map(self.detox, self.loader)
            return
        copies = SideStream(device)
        for started in one_ahead(self.loader, copies.start):
            yield self.detox(copies.finish(started))


def one_ahead(batches: Iterable[Any], start: Callable[[Any], Any]) -> Iterator[Any]:
    """``start`` of each batch, called before the batch before it is handed out.

    What goes wrong with a batch is raised when its turn comes, so that the one before it is not lost.
    """
    held = []
    try:
        for batch in batches:
            held.append(start(batch))
            if len(held) == 2:
                yield held.pop(0)
    except Exception:
        yield from held
        raise
    yield from held


def image_places(items: list[Any]) -> list[int]:
    """The indices of the images in a flattened batch, by torchvision's rule; see ``SampDetox``."""
    explicit = [i for i, item in enumerate(items) if isinstance(item, IMAGE_TYPES)]
    return explicit or [i for i, item in enumerate(items) if is_pure_tensor(item)][:1]


class SideStream:
    """Copies a batch's images to a CUDA device, on a stream beside the one that computes."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def start(self, batch: Any) -> tuple[Any, list[Tensor], Any]:
        """The batch with its images on their way, the copies, and what happens when they have arrived."""
        items, spec = tree_flatten(batch)
        copies = []
        with torch.cuda.stream(self.stream):
            for i in image_places(items):
                if isinstance(items[i], Tensor) and items[i].device.type == "cpu":
                    items[i] = self._copy(items[i])
                    copies.append(items[i])
        return tree_unflatten(items, spec), copies, self.stream.record_event()

    def finish(self, started: tuple[Any, list[Tensor], Any]) -> Any:
        """The batch, for use on the current stream."""
        batch, copies, arrived = started
        current = torch.cuda.current_stream(self.device)
        current.wait_event(arrived)
        for copy in copies:
            copy.record_stream(current)
        return batch

    def _copy(self, image: Tensor) -> Tensor:
        plain = image.as_subclass(Tensor)
        pinned = plain if plain.is_pinned() else plain.pin_memory()
        moved = pinned.to(self.device, non_blocking=True)
        if isinstance(image, tv_tensors.TVTensor):
            return tv_tensors.wrap(moved, like=image)  # pyright: ignore[reportCallIssue]
        return moved
