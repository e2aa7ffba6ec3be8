"""Small picture files for the tests of the command line."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def colours(seed: int = 0, size: tuple[int, ...] = (9, 12, 3), dtype: str = "uint8") -> np.ndarray:
    """Smooth random (h, w, c) pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype="uint8")).resize(
        size[1::-1], Image.Resampling.BICUBIC
    )
    array = np.asarray(small)[..., : size[2] if len(size) > 2 else 1]
    array = array if len(size) > 2 else array[..., 0]
    return array.astype(dtype) * 257 if dtype == "uint16" else array


def save(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def files(folder: Path) -> list[str]:
    """All files under a folder, temporary ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def png16(path: Path, colour_type: int, channels: int) -> Path:
    """A PNG with 16 bits a channel, which Pillow cannot write in colour."""
    values = np.random.default_rng(0).integers(0, 65536, (4, 4, channels)).astype(">u2")

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path
