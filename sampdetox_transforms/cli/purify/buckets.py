"""Folders and files in a bucket: ``BucketPath`` answers what ``purify`` asks of a ``Path``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

ADDRESS = re.compile(r"[a-z][a-z0-9+]+://", re.IGNORECASE)


def place(text: str) -> "Path | BucketPath":
    """A path on this machine, or where text has the form ``s3://bucket/folder`` one in a bucket.

    Raises:
        ValueError: no pyarrow to reach it with, or an address that pyarrow does not know.
    """
    if not ADDRESS.match(text):
        return Path(text)
    address, _, options = text.partition("?")
    scheme, rest = address.split("://", 1)
    bucket, _, key = rest.rstrip("/").partition("/")
    store = f"{scheme}://{bucket}" + (f"?{options}" if options else "")
    connect(store)
    return BucketPath(store, PurePosixPath(bucket, key))


@lru_cache
def connect(store: str) -> Any:
    """pyarrow's file system of a bucket; ValueError where there is none."""
    try:
        from pyarrow.fs import FileSystem  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"buckets need pyarrow, got {store} without it. pip install 'sampdetox-transforms[ray]'."
        ) from error
    try:
        return FileSystem.from_uri(store)[0]
    except (ValueError, OSError) as error:
        raise ValueError(
            f"a bucket must have an address that pyarrow opens, s3://bucket/folder say, got {store}: {error}."
        ) from error


@dataclass(frozen=True)
class BucketPath:
    """A file or folder in a bucket.

    Attributes:
        store: the address of the bucket with its options, s3://bucket?region=eu-west-1 say.
        path: the bucket's name, and the key in it.
    """

    store: str
    path: PurePosixPath

    def __str__(self) -> str:
        return f"{self.store.split('://')[0]}://{self.path}"

    def __truediv__(self, name: object) -> "BucketPath":
        return self.at(self.path / str(name))

    def at(self, path: PurePosixPath) -> "BucketPath":
        """Another path in the same bucket."""
        return replace(self, path=path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def suffix(self) -> str:
        return self.path.suffix

    @property
    def parent(self) -> "BucketPath":
        return self.at(self.path.parent)

    @property
    def parents(self) -> list["BucketPath"]:
        return [self.at(path) for path in self.path.parents]

    def with_suffix(self, suffix: str) -> "BucketPath":
        return self.at(self.path.with_suffix(suffix))

    def resolve(self) -> "BucketPath":
        return self

    def is_relative_to(self, other: object) -> bool:
        return isinstance(other, BucketPath) and self.path.is_relative_to(other.path)

    def relative_to(self, other: "BucketPath") -> PurePosixPath:
        return self.path.relative_to(other.path)

    def exists(self) -> bool:
        return self.info().type.name != "NotFound"

    def is_file(self) -> bool:
        return self.info().is_file

    def is_dir(self) -> bool:
        return self.info().type.name == "Directory"

    def info(self) -> Any:
        """What pyarrow knows of it: one request."""
        return connect(self.store).get_file_info(str(self.path))

    def files(self) -> Iterator["BucketPath"]:
        """All files below it, sorted; none where there is nothing."""
        from pyarrow.fs import FileSelector  # pyright: ignore[reportMissingImports]

        found = connect(self.store).get_file_info(FileSelector(str(self.path), allow_not_found=True, recursive=True))
        yield from (self.at(path) for path in sorted(PurePosixPath(info.path) for info in found if info.is_file))

    def read_bytes(self) -> bytes:
        with connect(self.store).open_input_file(str(self.path)) as file:
            return file.read()

    def write_bytes(self, content: bytes) -> None:
        """Write the file: stores show it when it is whole."""
        with connect(self.store).open_output_stream(str(self.path)) as file:
            file.write(content)
