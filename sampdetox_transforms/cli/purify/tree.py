"""Trees of pictures: what is to be purified to where, and what a run that was killed left there."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sampdetox_transforms._common import one_line
from sampdetox_transforms.cli.purify.buckets import BucketPath
from sampdetox_transforms.cli.purify.files import SUFFIXES

Place = Path | BucketPath  # of a picture, a result, or a folder of them


@dataclass(frozen=True)
class Job:
    """A picture to read, and where its result goes."""

    source: Place
    target: Place


@dataclass(frozen=True)
class Failure:
    """A picture, or a folder, and why there is no result of it."""

    source: Place
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


def plan(source: Place, out: Place) -> tuple[list[Job], list[Failure], int]:
    """What to purify to where; what could not be listed; the number of files left out. Touches nothing.

    Raises:
        OSError: ``source`` does not exist.
        ValueError: a folder without pictures; results that would lie among the pictures, or share a name.
    """
    if not source.exists():
        raise FileNotFoundError(f"IN must be a picture or a folder of pictures, got {source}. It does not exist.")
    if not source.is_dir():
        return [Job(source, target_of_file(source, out))], [], 0
    pictures, failures, left_out = find_pictures(source) if isinstance(source, Path) else find_in_bucket(source)
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


def target_of_file(source: Place, out: Place) -> Place:
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


def find_in_bucket(folder: BucketPath) -> tuple[list[Path], list[Failure], int]:
    """The same for a folder in a bucket."""
    files = [Path(file.relative_to(folder)) for file in folder.files()]
    found = [
        file
        for file in files
        if file.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in file.parts)
    ]
    return found, [], len(files) - len(found)


def results_there(jobs: Sequence[Job], out: Place) -> set[Place]:
    """The results that exist already; a bucket is listed once."""
    if isinstance(out, BucketPath):
        there = set(out.files()) | ({out} if out.is_file() else set())
        return {job.target for job in jobs} & there
    return {job.target for job in jobs if job.target.is_file()}


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


# What a run that was killed left behind

PART = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d{1,9})\.part", re.DOTALL)  # as ``write_atomically`` names its files


def remove_leftovers(results: Iterable[Place]) -> list[Path]:
    """Remove half-written files of processes that are gone from the folders of results; returns what was removed.

    Only files of this package's own naming go, ``.NAME.PID.part``, with a NAME that ends as results there do.
    """
    endings: defaultdict[Path, set[str]] = defaultdict(set)
    for result in results:
        if isinstance(result, Path):
            endings[result.parent].add(result.suffix.lower())
    removed = []
    for folder, allowed in endings.items():
        try:
            names = sorted(os.listdir(folder))
        except OSError:  # not there yet, or not readable: writing says what is the matter
            continue
        for path in (folder / name for name in names):
            found = PART.fullmatch(path.name)
            if found is None or Path(found["name"]).suffix.lower() not in allowed or not is_gone(int(found["pid"])):
                continue
            try:
                path.unlink()
            except OSError:  # another run took it away, or it is a folder
                continue
            removed.append(path)
    return removed


def is_gone(pid: int) -> bool:
    """Whether no process of this number runs on this machine; False where that cannot be told."""
    if os.name != "posix":  # signal 0 is a real signal elsewhere
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it belongs to somebody else
        return False
    return False
