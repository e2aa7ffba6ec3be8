"""Picture files and trees of them, for the command line: reading, purifying in batches, writing whole or not at all."""

import errno
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

    from sampdetox_transforms.transforms import Explanation, SampDetox

# What Pillow may decode: nothing that starts other programs (EPS), and no JPEG 2000, whose 16 bits it cuts to 8.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "AVIF")
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
BATCH_PIXELS, BATCH_MOST = 512 * 512, 64  # by default a batch is as many pictures as have so many pixels in all
THIS_FILE_ONLY = (errno.ENAMETOOLONG, errno.EISDIR)  # writing fails for one picture; all else would fail for every one


def one_line(error: BaseException) -> str:
    """The message of an error on one line; of an error in a DataLoader worker the message at its end."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else " ".join(" ".join(lines).split())


# Trees of pictures

Note = Callable[[list["Job"], "Tensor", "Explanation"], None]


@dataclass(frozen=True)
class Job:
    """A picture to read, and where its result goes."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Failure:
    """A picture, or a folder, and why there is no result of it."""

    source: Path
    reason: str

    def __str__(self) -> str:
        return " ".join(f"{self.source}: {self.reason}".split())


def plan(source: Path, out: Path) -> tuple[list[Job], list[Failure], int]:
    """What to purify to where; what could not be listed; the number of files left out. Touches nothing.

    Raises:
        OSError: ``source`` does not exist.
        ValueError: a folder without pictures; results that would lie among the pictures, or share a name.
    """
    if not source.exists():
        raise FileNotFoundError(f"IN must be a picture or a folder of pictures, got {source}. It does not exist.")
    if not source.is_dir():
        return [Job(source, target_of_file(source, out))], [], 0
    pictures, failures, left_out = find_pictures(source)
    if not pictures and not failures:
        raise ValueError(f"IN must hold pictures ({' '.join(SUFFIXES)}), got none in {source}. Check the path.")
    jobs = [Job(source / p, out / name) for p, name in zip(pictures, output_names(pictures), strict=True)]
    inputs = {folder.resolve() for folder in {source, *(job.source.parent for job in jobs)}}
    for folder in {out, *(job.target.parent for job in jobs)}:
        if not inputs.isdisjoint((folder.resolve(), *folder.resolve().parents)):
            raise ValueError(
                f"results must not lie among the pictures, or they would be purified again, got OUT {out} for "
                f"IN {source}. Give a folder beside IN."
            )
    return jobs, failures, left_out


def target_of_file(source: Path, out: Path) -> Path:
    """Where one picture goes: into ``out`` if that is a folder or has no ending, else to the .png file ``out``."""
    if out.is_dir() or not (out.suffix or out.exists()):
        out = out / source.with_suffix(".png").name
    elif out.suffix.lower() != ".png":
        raise ValueError(f"OUT must be a folder that exists or end in .png (lossless), got {out}. Rename it to .png.")
    if out.resolve() == source.resolve():
        raise ValueError(f"OUT must not be IN, got {out} for both. Give another name, or another folder.")
    return out


def find_pictures(folder: Path) -> tuple[list[Path], list[Failure], int]:
    """Relative paths of all pictures, sorted; folders that cannot be read; the number of other files."""
    found: list[Path] = []
    failures: list[Failure] = []
    left_out = 0

    def note(error: OSError) -> None:
        failures.append(Failure(Path(error.filename), error.strerror or one_line(error)))

    walk = os.walk(folder, followlinks=True, onerror=note)
    for base, folders, names in walk:
        here = Path(base)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not leads_back(here / name))
        for name in sorted(names):
            path = here / name
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES or (path.exists() and not path.is_file()):
                left_out += 1
            else:
                found.append(path.relative_to(folder))
    return found, failures, left_out


def leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def output_names(pictures: Sequence[Path]) -> list[Path]:
    """b.jpg -> b.png; pictures that would share a name (or take a folder's) keep theirs whole: b.jpg.png.

    Names that differ in capitals only count as shared, for file systems that do not tell them apart.
    """
    short = [path.with_suffix(".png") for path in pictures]
    taken = Counter(str(name).casefold() for name in short)
    folders = {str(parent).casefold() for path in pictures for parent in path.parents}
    names = [
        path.with_name(path.name + ".png") if taken[key] > 1 or key in folders else name
        for path, name in zip(pictures, short, strict=True)
        for key in [str(name).casefold()]
    ]
    for name, count in Counter(names).items():
        if count > 1:
            first, second = [path for path, given in zip(pictures, names, strict=True) if given == name][:2]
            raise ValueError(f"two pictures must not get one name, got {name} for {first} and {second}. Rename one.")
    return names


def purify_pictures(
    jobs: Sequence[Job],
    detox: "SampDetox",
    batch_size: int | None,
    failures: list[Failure],
    *,
    show: bool = True,
    note: Note | None = None,
) -> int:
    """Purify and write pictures, batch by batch; returns how many were written, and adds the others to ``failures``.

    Args:
        show: draw a bar where stderr is a terminal.
        note: is told what was done to each batch, before its results are written: its jobs, the (n, c, h, w) pictures
            and their explanation. Keeping these keeps them in memory.

    Raises:
        OSError: results cannot be written at all: a full disk, say.
    """
    from tqdm import tqdm

    done, before = 0, len(failures)
    with tqdm(total=len(jobs), unit="picture", file=sys.stderr, disable=None if show else True) as bar:
        for batch in batches(load_pictures(jobs, failures), batch_size):
            try:
                results = purify_batch(batch, detox, note)
            except ValueError as error:  # too large for the network's attention
                failures += [Failure(job.source, one_line(error)) for job, _ in batch]
                continue
            for (job, picture), pixels in zip(batch, results, strict=True):
                try:
                    write_picture(job.target, picture, pixels)
                    done += 1
                except OSError as error:
                    problem = f"{job.target} cannot be written: {error.strerror or error}"
                    if error.errno not in THIS_FILE_ONLY:
                        raise OSError(f"{problem}. {done} are done; start the same command again to go on.") from error
                    failures.append(Failure(job.source, problem))
            bar.update(done + len(failures) - before - bar.n)
    return done


def purify_batch(batch: Sequence[tuple[Job, "Picture"]], detox: "SampDetox", note: Note | None) -> "Tensor":
    """The results of pictures of one shape; the explanation, which is larger, is made for ``note`` only, and let go."""
    import torch

    pixels = torch.stack([picture.pixels for _, picture in batch])
    if note is None:
        return detox(pixels)
    explained = detox.explain(pixels)
    note([job for job, _ in batch], pixels, explained)
    return explained.image


def load_pictures(jobs: Iterable[Job], failures: list[Failure]) -> Iterator[tuple[Job, "Picture"]]:
    """Read one picture after the other; those that cannot be read are added to ``failures``."""
    for job in jobs:
        try:
            picture = read_picture(job.source)
        except PictureError as error:
            failures.append(Failure(job.source, error.reason))
        else:
            yield job, picture


def batches(pictures: Iterable[tuple[Job, "Picture"]], batch_size: int | None) -> Iterator[list[tuple[Job, "Picture"]]]:
    """Group pictures that follow each other and have one shape and dtype, reading no further than a batch."""
    for (shape, _), same in itertools.groupby(pictures, lambda item: (item[1].pixels.shape, item[1].pixels.dtype)):
        limit = batch_size or max(1, min(BATCH_MOST, BATCH_PIXELS // (shape[1] * shape[2])))
        while batch := list(itertools.islice(same, limit)):
            yield batch


# Picture files


class PictureError(OSError):
    """A picture file that cannot be read, or that cannot be purified without loss; the message names it."""

    def __init__(self, path: Path, reason: str):
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


def read_picture(path: Path) -> Picture:
    """Read a picture file, upright.

    Raises:
        PictureError: whatever is wrong with the file.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            return take_apart(image)
    except UnidentifiedImageError as error:
        raise PictureError(path, f"not a picture of a known kind ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise PictureError(path, getattr(error, "strerror", None) or one_line(error)) from error


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


def write_picture(target: Path, picture: Picture, pixels: "Tensor") -> None:
    """Write ``pixels`` as PNG with the alpha and profile of ``picture``; the file appears whole or not at all."""
    import numpy as np
    from PIL import Image

    from sampdetox_transforms.checkpoints import write_atomically

    if pixels.is_floating_point():
        array = (pixels[0] * 65535).round().numpy().astype(np.uint16)
    else:
        array = (pixels[0] if len(pixels) == 1 else pixels.movedim(0, -1)).contiguous().numpy()
    image = Image.fromarray(array)
    if picture.alpha is not None:
        image.putalpha(picture.alpha)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda part: image.save(part, format="PNG", icc_profile=picture.icc_profile))
