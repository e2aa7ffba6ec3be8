"""Images for the search for a shared trigger: checked, looked at by the purifier, and kept in bounded memory."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.search import enlarge, shrink

LEAST_IMAGES = 8

# Values that are kept of all images together, half of them for what was purified: 1024 images of 32 pixels, 213 of 224
KEPT_VALUES, KEPT_IMAGES = 2**25, 1024

Fill = Callable[[Float[Tensor, "n c h w"], Bool[Tensor, "n 1 h w"]], Float[Tensor, "n c h w"]]


def for_comparison(detox: Any) -> Any:
    """A ``SampDetox`` that takes from an image what its trigger is likely to be, and nothing that is the image's own.

    A cast taken away holds the image's own colour, twice the estimate's change twice its error, and displaced pixels
    the image's own edges: what images have in common drowns in these. Anything else is as it is.
    """
    settings = getattr(detox, "settings", None)
    if not isinstance(settings, Restore):
        return detox
    other = copy.copy(detox)
    other.settings = replace(settings, t1_doubt=None, colour=0.0, colour_gain=0.0, dense_gain=1.0, jitter=0.0)
    return other


def purified_by(detox: Any, images: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, " n"]]:
    """The images behind the purifier, and the share of clean images that look as suspicious: all that is asked of it.

    Anything with ``explain`` does that returns an object with ``image``; without a p-value all look alike.
    """
    explained = for_comparison(detox).explain(images)
    found = getattr(explained, "found", None)
    share = getattr(explained, "false_alarm_rate", None) if found is None else found.p_value
    purified = explained.image.detach().float()
    return purified, torch.ones(len(images)) if share is None else share.detach().float().reshape(-1).cpu()


def fill_by(detox: Any) -> Fill | None:
    """The purifier's own way to fill masked pixels of images in [0, 1]; None where it has none."""
    restorer = getattr(detox, "restorer", None)
    if restorer is None:
        return None

    def fill(images: Tensor, mask: Tensor) -> Tensor:
        x = images.float() * 2 - 1
        networks = restorer.of(x)
        small = shrink(x, networks)
        hidden = mask if small.shape == x.shape else shrink(mask.float(), networks) > 0
        filled = networks.fill(small, hidden)
        return ((torch.where(mask, enlarge(x, small, filled, hidden), x) + 1) / 2).to(images.dtype)

    return fill


def as_unit(images: Tensor, name: str = "images") -> Float[Tensor, "n c h w"]:
    """uint8, or floats in [0, 1], (n, c, h, w) -> floats; anything else is refused."""
    if not isinstance(images, Tensor) or not (images.is_floating_point() or images.dtype == torch.uint8):
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{name} must be uint8 or float tensors, got {kind}. Convert them with v2.ToImage().")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(
            f"{name} must have the shape (n, c, h, w) with 1 or 3 channels, got {tuple(images.shape)}. "
            "Stack the images of one size."
        )
    if images.dtype == torch.uint8:
        return images.as_subclass(Tensor).float() / 255
    x = images.as_subclass(Tensor).float()
    if x.numel():
        low, high = x.amin().item(), x.amax().item()
        if low != low or high != high:
            raise ValueError(f"{name} must hold finite numbers, got NaN. Find where it comes from before this.")
        if low < -1e-5 or high > 1 + 1e-5:
            raise ValueError(
                f"float {name} must be in [0, 1], got values in [{low:.4g}, {high:.4g}]. Undo a normalisation first."
            )
    return x.clamp(0, 1)


def batches_of(images: Any, at_once: int = 64) -> Iterator[Float[Tensor, "n c h w"]]:
    """A tensor in batches, or each batch of an iterable: a tensor, or a tuple or list that begins with one."""
    if isinstance(images, Tensor):
        yield from as_unit(images.detach()).split(at_once)
        return
    for batch in images:
        tensor: Any = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
        tensor = tensor[None] if isinstance(tensor, Tensor) and tensor.ndim == 3 else tensor
        yield from as_unit(tensor.detach() if isinstance(tensor, Tensor) else tensor).split(at_once)


def check_images_given(images: Any) -> None:
    """Refuse what cannot be gone through twice."""
    if isinstance(images, Tensor):
        return
    if not isinstance(images, Iterable):
        raise TypeError(f"images must be a tensor or an iterable of batches, got {type(images).__name__}. Stack them.")
    if iter(images) is images:
        raise TypeError(
            f"images must be an iterable that can be gone through twice, got {type(images).__name__}. "
            "Give a list of batches or a DataLoader."
        )


@dataclass
class Kept:
    """Images of one size with what the purifier made of them: each content once, and no more than fit.

    Where more come, the most suspicious half and, by a hash of their content, an even choice of the others stay, so
    that neither the order nor the batches decide.
    """

    limit: int
    items: dict[bytes, tuple[float, Tensor, Tensor]] = field(default_factory=dict)
    seen: int = 0

    def add(self, images: Tensor, purified: Tensor, share: Tensor) -> None:
        self.seen += len(images)
        for image, clean, rate in zip(images.cpu(), purified.cpu(), share.tolist(), strict=True):
            key = content_key(image)
            if key not in self.items:
                self.items[key] = rate, image.half(), clean.half()
        if len(self.items) > 1.25 * self.limit:
            self.trim()

    def trim(self) -> None:
        if len(self.items) <= self.limit:
            return
        ranked = sorted(self.items, key=lambda key: (self.items[key][0], key))
        first = ranked[: self.limit // 2]
        stay = first + sorted(ranked[len(first) :])[: self.limit - len(first)]
        self.items = {key: self.items[key] for key in stay}

    def tensors(self) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """The images and the purified ones, in an order of their own."""
        self.trim()
        values = [self.items[key] for key in sorted(self.items)]
        return tuple(torch.stack([value[part] for value in values]).float() for part in (1, 2))  # pyright: ignore


def content_key(image: Float[Tensor, "c h w"]) -> bytes:
    """The same for images that are the same in 8 bits."""
    return hashlib.sha256((image * 255).round().byte().contiguous().numpy().tobytes()).digest()


def keep(images: Any, detox: Any) -> dict[tuple[int, ...], Kept]:
    """Look at all images once: what is kept of each size.

    Raises:
        ValueError: grey images among those in colour.
    """
    kept: dict[tuple[int, ...], Kept] = {}
    for batch in batches_of(images):
        if not len(batch):
            continue
        if any(other[0] != batch.shape[1] for other in kept):
            raise ValueError(
                f"images must all be grey or all in colour, got {batch.shape[1]} channels among others. "
                "Expand the grey ones to three channels."
            )
        with torch.no_grad():
            kept_of(kept, batch).add(batch, *purified_by(detox, batch))
    return kept


def kept_of(kept: dict[tuple[int, ...], Kept], batch: Float[Tensor, "n c h w"]) -> Kept:
    """Where images of this shape are kept; made where there are none yet."""
    limit = max(LEAST_IMAGES, min(KEPT_IMAGES, KEPT_VALUES // (2 * batch[0].numel())))
    return kept.setdefault(tuple(batch.shape[1:]), Kept(limit))
