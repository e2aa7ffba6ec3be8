"""``SharedTrigger``: a trigger that many images carry, recovered from them, shown, recognised and taken out."""

import hashlib
import json
import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import get_args

import PIL.Image
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.shared.estimate import OPAQUE, Shared
from sampdetox_transforms.method.shared.match import Filter, Way, is_patch, matching, patch_distance, strengths, without
from sampdetox_transforms.method.shared.moving import nearest, without_moving
from sampdetox_transforms.networks.checkpoints import WeightsFileError
from sampdetox_transforms.transforms.shared_images import Fill, as_unit

FORMAT = "sampdetox shared trigger 2"

ABOUT_FILTER = ("way", "deviation", "least", "near")  # what a file says of it beside its tensors

# What may be taken out of images with nobody asked: the share of pixels that it covers, and how much it changes the
# mean image, root mean square. Attackers need less; a frame, a title or half of a picture is more.
LARGEST_AREA, LARGEST_ENERGY = 0.15, 0.12

LARGEST_SHARE = 0.5  # of the images of one size: what more of them carry is their own, and stays


@dataclass(frozen=True, eq=False)
class SharedTrigger:
    """A trigger that many images carry: J = (1 - opacity) I + pattern, cut off at 0 and 1.

    Attributes:
        pattern: (c, h, w), what is added, in units of images in [0, 1].
        opacity: (1, h, w), what is taken of the image: 0 for an added pattern, 1 for a patch, between for a blend.
        p_value: how often images with nothing in common but chance agree so.
        images: how many images it was found in.
        false_alarm_rate: the share of images without it that may match.
        known: what a match is measured against.
        moves: whether it is a patch that has a place of its own in each image; ``pattern`` then shows it in the upper
            left corner.
        fill: fills opaque pixels; not saved. None spreads the pixels around them. ``recover_trigger`` gives it that of
            its ``detox``.
    """

    pattern: Float[Tensor, "c h w"]
    opacity: Float[Tensor, "1 h w"]
    p_value: float
    images: int
    false_alarm_rate: float
    known: Filter
    moves: bool = False
    fill: Fill | None = None

    def __repr__(self) -> str:
        size = "x".join(map(str, self.pattern.shape))
        covered = float((self.opacity >= OPAQUE).float().mean())
        kind = f"a patch of {covered:.1%}" if covered else f"opacity {float(self.opacity.mean()):.2f}"
        kind += " that moves" if self.moves else ""
        return f"SharedTrigger({size}, {kind}, from {self.images} images, p <= {self.p_value:.2g})"

    def matches(self, images: Tensor) -> Bool[Tensor, " n"]:
        """Which images of (n, c, h, w), uint8 or floats in [0, 1], carry it.

        Raises:
            ValueError, TypeError: images of another size or number of channels, NaN, out of range.
        """
        x, shared, known = self._checked(images)
        if self.moves:
            return nearest(x, shared)[0] <= known.near
        return matching(x, shared, known, false_alarm_rate=self.false_alarm_rate)

    def strength(self, images: Tensor) -> Float[Tensor, " n"]:
        """How much of it is in each image: about 1 where an image carries it, about 0 elsewhere.

        For a patch, 1 less the distance to it, in units of the distance at which an image matches no more. For a
        picture that was found in photographs themselves, in units of twice what a match needs at least.
        """
        x, shared, known = self._checked(images)
        if self._is_patch:
            distance = nearest(x, shared)[0] if self.moves else patch_distance(x, shared)
            return 1 - distance / (2 * known.near)
        amount = strengths(x, shared, known)[0]
        return amount / (2 * known.least) if known.way == "differences" else amount

    def remove(self, images: Tensor, fill: Fill | None = None) -> Tensor:
        """The images as they were before the trigger, in the type that they came in, whether or not they carry it.

        Args:
            images: (n, c, h, w), uint8 or floats in [0, 1].
            fill: fills opaque pixels; None for the trigger's own.
        """
        x, shared, _ = self._checked(images)
        result, opaque = without_moving(x, shared) if self.moves else without(x, shared)
        fill = self.fill if fill is None else fill
        if fill is not None and len(x) and bool(opaque.any()):
            with torch.no_grad():
                result = torch.where(opaque, fill(result, opaque).to(result).clamp(0, 1), result)
        return (result * 255).round().to(torch.uint8) if images.dtype == torch.uint8 else result.to(images.dtype)

    def remove_if_matched(self, images: Tensor, fill: Fill | None = None) -> tuple[Tensor, Bool[Tensor, " n"]]:
        """The images, the trigger taken out of those that carry it, and which these are; others stay as they are."""
        matched = self.matches(images)
        if not bool(matched.any()):
            return images, matched
        result = images.clone()
        result[matched] = self.remove(images[matched], fill)
        return result, matched

    def picture(self) -> PIL.Image.Image:
        """Pattern and opacity beside each other: where nothing is added grey, and the brighter the more opaque.

        What is blended in or covers the image is shown as it is; what is added is amplified about grey.
        """
        covering = self.opacity > 0.02
        covered = self.pattern / self.opacity.clamp(min=0.02)
        largest = float(self.pattern.abs().amax().clamp(min=1e-3))
        shown = torch.where(covering, covered, 0.5 + self.pattern / (2 * largest)).clamp(0, 1)
        both = torch.cat([shown.expand(3, -1, -1), self.opacity.expand(3, -1, -1).clamp(0, 1)], dim=2)
        return PIL.Image.fromarray((both * 255).round().byte().movedim(0, -1).cpu().numpy())

    def save(self, path: str | PathLike[str]) -> None:
        """Write it as one safetensors file, which appears whole or not at all.

        Raises:
            OSError: a place that cannot be written.
        """
        tensors = {
            "pattern": self.pattern,
            "opacity": self.opacity,
            "mean": self.known.mean,
            "scale": self.known.scale,
        }
        tensors = {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}
        about = {
            "p_value": self.p_value,
            "images": self.images,
            "false_alarm_rate": self.false_alarm_rate,
            **{name: getattr(self.known, name) for name in ABOUT_FILTER},
            "moves": self.moves,
        }
        text = json.dumps(about)
        metadata = {"format": FORMAT, "about": text, "sha256": _digest(tensors, text)}
        write_atomically(Path(path), lambda part: save_file(tensors, part, metadata))

    @classmethod
    def load(cls, path: str | PathLike[str], *, fill: Fill | None = None) -> "SharedTrigger":
        """Read what ``save`` wrote.

        Raises:
            WeightsFileError: no such file, one of another kind, changed or cut off, or one that holds NaN.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != FORMAT:
                raise ValueError("it is a file of another kind")
            if _digest(tensors, metadata["about"]) != metadata["sha256"]:
                raise ValueError("its content is not what was saved")
            about = json.loads(metadata["about"])
            known = {name: about.pop(name) for name in ABOUT_FILTER}
            known = Filter(tensors["mean"], tensors["scale"], **known)
            trigger = cls(tensors["pattern"], tensors["opacity"], **about, known=known, fill=fill)
            trigger._check()
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise WeightsFileError(
                f"a trigger must be a file that SharedTrigger.save wrote, got {path}: {error}. Recover it again."
            ) from error
        return trigger

    def to(self, device: str | torch.device) -> "SharedTrigger":
        """The same on another device."""
        known = self.known._replace(mean=self.known.mean.to(device), scale=self.known.scale.to(device))
        fields = {**vars(self), "pattern": self.pattern.to(device), "opacity": self.opacity.to(device), "known": known}
        return type(self)(**fields)

    @property
    def area(self) -> float:
        """The share of pixels in which nothing of the image is left."""
        return float((self.opacity >= OPAQUE).float().mean())

    @property
    def energy(self) -> float:
        """How much it changes the mean image: root mean square, in units of images in [0, 1]."""
        return float(Shared(self.pattern, self.opacity).change(self.known.mean).square().mean().sqrt())

    @property
    def is_small(self) -> bool:
        """Whether it is small and faint enough to be taken out with nobody asked, see ``LARGEST_AREA``.

        An attacker can make anything that images show a shared trigger, by a flood of images that show it.
        """
        return self.area <= LARGEST_AREA and self.energy <= LARGEST_ENERGY

    @property
    def covers(self) -> bool:
        """Whether some pixels are opaque, so that nothing of the image is left in them."""
        return bool((self.opacity >= OPAQUE).any())

    @property
    def _is_patch(self) -> bool:
        return is_patch(Shared(self.pattern, self.opacity))

    def _check(self) -> None:
        """What a file must hold beside the right hash."""
        shape = self.pattern.shape
        if self.pattern.ndim != 3 or shape[0] not in (1, 3) or self.opacity.shape != (1, *shape[1:]):
            raise ValueError(f"pattern and opacity have the shapes {tuple(shape)} and {tuple(self.opacity.shape)}")
        if self.known.mean.shape != shape or self.known.scale.shape != shape:
            raise ValueError("mean and scale have other shapes than the pattern")
        if self.known.way not in get_args(Way):
            raise ValueError(f"images are compared by {self.known.way!r}, which is none of {get_args(Way)}")
        numbers = self.p_value, self.false_alarm_rate, *(getattr(self.known, name) for name in ABOUT_FILTER[1:])
        finite = all(bool(t.isfinite().all()) for t in (self.pattern, self.opacity, self.known.mean, self.known.scale))
        if not finite or not all(math.isfinite(number) for number in numbers):
            raise ValueError("it holds NaN or infinity")
        if not bool(((self.opacity >= 0) & (self.opacity <= 1)).all()) or not bool((self.known.scale > 0).all()):
            raise ValueError("opacity must be in [0, 1] and scale above 0")

    def _checked(self, images: Tensor) -> tuple[Tensor, Shared, Filter]:
        x = as_unit(images)
        if x.shape[1:] != self.pattern.shape:
            raise ValueError(
                f"images must have the trigger's shape {tuple(self.pattern.shape)}, got {tuple(x.shape[1:])}. "
                "Recover a trigger from images of this size."
            )
        known = self.known._replace(mean=self.known.mean.to(x), scale=self.known.scale.to(x))
        return x, Shared(self.pattern.to(x), self.opacity.to(x)), known


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
