"""``TriggerMemory``: a server's last images, and the trigger that they share as soon as a test says so."""

import threading
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.shared_trigger import MOST, recover_shared
from sampdetox_transforms.networks.checkpoints import WeightsFileError
from sampdetox_transforms.transforms.shared_images import LEAST_IMAGES, as_unit, content_key, fill_by, purified_by
from sampdetox_transforms.transforms.shared_recovery import check_rate, from_recovered
from sampdetox_transforms.transforms.shared_trigger import LARGEST_SHARE, SharedTrigger


class TriggerMemory:
    """The last images of a stream and what a purifier made of them, and the trigger that some of them share.

    What it says depends on what came before, and so a result may depend on the order of the images; for one order it
    is always the same. All methods may be called from several threads.

    Args:
        detox: a ``SampDetox``; None where purified images are handed over with the images.
        size: how many images are kept, 8 or more; the oldest go first, and an image that is there already counts once.
        every: how many new images there must be before the search is repeated.
        false_alarm_rate: as for ``recover_trigger``.
        only_small: pass over triggers that are too large to be taken out with nobody asked (``SharedTrigger.is_small``)
            or that more than half of the images carry: who sends enough images can make anything a shared trigger.

    Attributes:
        trigger: the ``SharedTrigger`` that was found last; None so far.
        passed_over: the last one that was passed over, to be looked at; None so far.
    """

    def __init__(
        self,
        detox: Any = None,
        *,
        size: int = 1000,
        every: int = 50,
        false_alarm_rate: float = 0.01,
        only_small: bool = True,
    ):
        for name, value, least in (("size", size, LEAST_IMAGES), ("every", every, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of {least} or more, got {value!r}. Leave it out.")
        check_rate(false_alarm_rate)
        self.detox, self.size, self.every, self.false_alarm_rate = detox, size, every, false_alarm_rate
        self.only_small = only_small
        self.trigger: SharedTrigger | None = None
        self.passed_over: SharedTrigger | None = None
        self._items: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._new = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def add(
        self, images: Float[Tensor, "n c h w"], purified: Float[Tensor, "n c h w"] | None = None
    ) -> SharedTrigger | None:
        """Remember images, and search where enough of them are new: the trigger that is known now, if any.

        Args:
            images: uint8 or floats in [0, 1], of the size of those before.
            purified: what ``detox`` made of them; None looks at them here.

        Raises:
            ValueError: images of another size than those before, NaN, or neither ``detox`` nor ``purified``.
        """
        x = as_unit(images).detach()
        if purified is None:
            if self.detox is None:
                raise ValueError("purified images must be given where the memory has no detox, got none. Give either.")
            with torch.no_grad():
                clean = purified_by(self.detox, x)[0]
        else:
            clean = as_unit(purified, "purified").detach()
        if clean.shape != x.shape:
            raise ValueError(f"purified must have the images' shape {tuple(x.shape)}, got {tuple(clean.shape)}.")
        with self._lock:
            self._remember(x, clean)
            if self._new >= self.every and len(self._items) >= LEAST_IMAGES:
                self._new = 0
                self._search()
            return self.trigger

    def save(self, path: str | PathLike[str]) -> None:
        """Write the images that are kept, in 8 bits, and the count of new ones; the trigger has its own ``save``."""
        with self._lock:
            stacked = [torch.stack(list(part)) for part in zip(*self._items.values(), strict=True)]
            tensors = dict(zip(("images", "purified"), stacked, strict=False)) | {"new": torch.tensor(self._new)}
        write_atomically(Path(path), lambda part: save_file(tensors, part))

    def load(self, path: str | PathLike[str]) -> None:
        """Go on from what ``save`` wrote: the same images, and the search where it stood.

        Raises:
            WeightsFileError: no such file, or one of another kind; what is kept stays as it is.
        """
        try:
            tensors = load_file(str(path))
            new = int(tensors["new"])
            images, purified = tensors.get("images"), tensors.get("purified")
            pairs = [] if images is None or purified is None else list(zip(images, purified, strict=True))
            items = {content_key(image.float() / 255): (image, clean) for image, clean in pairs}
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise WeightsFileError(
                f"a memory must be a file that TriggerMemory.save wrote, got {path}: {error}. Start a new one."
            ) from error
        with self._lock:
            self._items, self._new = items, new

    def _remember(self, x: Tensor, purified: Tensor) -> None:
        if self._items:
            shape = next(iter(self._items.values()))[0].shape
            if shape != x.shape[1:]:
                raise ValueError(
                    f"images must have the size of those before, {tuple(shape)}, got {tuple(x.shape[1:])}. "
                    "Keep one memory for each size."
                )
        both = ((values * 255).round().byte().cpu() for values in (x, purified))
        for image, clean in zip(*both, strict=True):
            key = content_key(image.float() / 255)
            self._new += key not in self._items
            self._items.pop(key, None)
            self._items[key] = image, clean
        while len(self._items) > self.size:
            self._items.pop(next(iter(self._items)))

    def _search(self) -> None:
        images, purified = (torch.stack(part).float() / 255 for part in zip(*self._items.values(), strict=True))
        most = MOST if self.only_small else 1
        for each in recover_shared(images, purified, false_alarm_rate=self.false_alarm_rate, most=most):
            trigger = from_recovered(each, self.false_alarm_rate, fill_by(self.detox))
            if not self.only_small or (trigger.is_small and trigger.images <= LARGEST_SHARE * len(images)):
                self.trigger = trigger
                return
            self.passed_over = trigger
