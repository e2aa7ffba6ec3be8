"""Picture files: read with their alpha channel, colours and orientation, written whole or not at all."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampdetox_transforms._common import one_line
from sampdetox_transforms.cli.purify.buckets import BucketPath

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor


# What Pillow may decode: nothing that starts other programs (EPS), and no JPEG 2000, whose 16 bits it cuts to 8.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "AVIF")

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)

MAX_PIXELS = 50_000_000  # of a picture, width times height: minutes for a file of a few kilobytes


class PictureError(OSError):
    """A picture file that cannot be read, or that cannot be purified without loss; the message names it."""

    def __init__(self, path: Path | BucketPath, reason: str):
        super().__init__(f"{path}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Picture:
    """A picture file, taken apart.

    Attributes:
        pixels: (1 or 3, h, w), uint8, or float32 in [0, 1] if the file has 16 bits.
        alpha: the transparency, mode L, or None.
        icc_profile: the colour profile, or None.
    """

    pixels: "Tensor"
    alpha: "PIL.Image.Image | None"
    icc_profile: bytes | None


def read_picture(path: Path | BucketPath, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file, upright.

    Args:
        max_pixels: larger pictures are refused by their header, before anything is decoded.

    Raises:
        PictureError: whatever is wrong with the file.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        file = path if isinstance(path, Path) else io.BytesIO(path.read_bytes())
        with own_limit_only(), Image.open(file, formats=formats) as image:
            check_pixels(image, max_pixels)
            return take_apart(image)
    except UnidentifiedImageError as error:
        raise PictureError(path, f"not a picture of a known kind ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise PictureError(path, getattr(error, "strerror", None) or one_line(error)) from error


_OPENING = threading.Lock()  # Pillow's limit is one for the whole process


@contextmanager
def own_limit_only() -> Iterator[None]:
    """Within it, Pillow neither warns of large pictures nor refuses them: ``check_pixels`` does, at its own limit."""
    from PIL import Image

    with _OPENING:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def check_pixels(image: "PIL.Image.Image", max_pixels: int) -> None:
    """Raise ValueError for an open picture file, not yet decoded, of more than ``max_pixels``."""
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"pictures must have {max_pixels} pixels or fewer, got {width}x{height} = {width * height}. "
            "Make it smaller, or raise --max-pixels where there are time and memory."
        )


def take_apart(image: "PIL.Image.Image") -> Picture:
    """An open picture file, upright, in the modes L, RGB or 16-bit grey, without its alpha.

    Raises:
        ValueError: several frames, or values that Pillow would cut to 8 bits or whose range is unknown.
    """
    import numpy as np
    import torch
    from PIL import ImageOps

    deep = check_depth(image)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a photo with previews or a depth map behind it
        raise ValueError(f"pictures must have one frame, got {frames}. Save each frame as a file of its own.")
    profile = image.info.get("icc_profile") if image.mode not in ("CMYK", "YCbCr", "LAB", "HSV") else None
    image = ImageOps.exif_transpose(image)
    if deep:
        return Picture(torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)[None], None, profile)
    grey, alpha = image.mode in ("1", "L", "LA", "La"), None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    array = np.array(image.convert("L" if grey else "RGB"))
    pixels = torch.from_numpy(array)
    return Picture(pixels[None] if grey else pixels.movedim(-1, 0), alpha, profile)


def check_depth(image: "PIL.Image.Image") -> bool:
    """Whether a file not yet decoded is grey with 16 bits; ValueError for other pictures of more than 8 bits."""
    file: Any = image  # an ImageFile of some format
    bits, inverted = 8, False
    decoders = [arg for tile in file.tile for arg in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
    if image.format == "TIFF":
        bits = max(file.tag_v2.get(258, (1,)))  # BitsPerSample
        inverted = file.tag_v2.get(262) == 0  # PhotometricInterpretation: white is 0, which Pillow ignores at 16 bits
    elif image.format == "PPM" and any(isinstance(arg, int) and arg > 255 for arg in decoders):
        bits = 16  # the largest value, which Pillow scales to 65535 for grey, and to 255 for colours
    elif any(str(arg).endswith((";16B", ";16L", ";16N")) for arg in decoders):
        bits = 16
    range_known = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if range_known and bits == 16 and not inverted and "transparency" not in image.info:
        return True
    if bits > 8 or image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(
            "pictures must have 8 bits a colour, or 16 bits in one grey channel, "
            f"got {bits} bits in mode {image.mode}. Convert it to 8 bits first."
        )
    return False


def write_picture(target: Path | BucketPath, picture: Picture, pixels: "Tensor") -> None:
    """Write ``pixels`` as PNG with the alpha and profile of ``picture``; the file appears whole or not at all."""
    import numpy as np
    from PIL import Image

    from sampdetox_transforms._common import write_atomically

    if pixels.is_floating_point():
        array = (pixels[0] * 65535).round().numpy().astype(np.uint16)
    else:
        array = (pixels[0] if len(pixels) == 1 else pixels.movedim(0, -1)).contiguous().numpy()
    image = Image.fromarray(array)
    if picture.alpha is not None:
        image.putalpha(picture.alpha)
    if isinstance(target, BucketPath):
        file = io.BytesIO()
        image.save(file, format="PNG", icc_profile=picture.icc_profile)
        target.write_bytes(file.getvalue())
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda part: image.save(part, format="PNG", icc_profile=picture.icc_profile))
