"""Files that are not trusted: hashes compared, sizes bounded, JSON and weights checked before anything is made of them.

Whoever wrote a checkpoint chose its numbers. A few bytes of JSON must not ask for gigabytes, a file may not hold more
than the network that it is for, and weights that are not finite would turn every image into NaN.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module

MAX_JSON_BYTES = 2**20

MAX_WEIGHTS_BYTES = 4 * 2**30

MAX_HEADER_BYTES = 8 * 2**20  # of a safetensors file: names and shapes; the largest network has some 100 KB

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names

AnyModule = TypeVar("AnyModule", bound=Module)

Shapes = dict[str, tuple[int, ...]]


class WeightsFileError(OSError):
    """A weights file is missing, truncated, or not the one that its hash stands for."""


def check_size(path: Path, largest: int) -> None:
    """Raise WeightsFileError for a file above a size, or for what is no file."""
    if not path.is_file():
        raise WeightsFileError(f"a checkpoint must hold the file {path.name}, got none at {path}. Fetch it anew.")
    if path.stat().st_size > largest:
        raise WeightsFileError(
            f"{path} must have {largest} bytes or fewer, got {path.stat().st_size}. "
            "Take weights from a source that you trust."
        )


def verify_sha256(path: Path, sha256: str) -> None:
    """Raise WeightsFileError unless the file has this sha256."""
    with path.open("rb") as file:
        require_sha256(path, hashlib.file_digest(file, "sha256").hexdigest(), sha256)


def require_sha256(path: Path, found: str, expected: str) -> None:
    """Raise WeightsFileError unless both are the same."""
    if found != expected:
        raise WeightsFileError(
            f"{path} must have the sha256 {expected}, got {found}: it is truncated or not the pinned file. "
            "Remove it and fetch it anew, from a source that you trust."
        )


def read_json(path: Path, sha256: str = "") -> dict[str, Any]:
    """The JSON object in a file, of the given sha256 unless that is empty.

    Raises:
        WeightsFileError: no such file, too large, another hash, or anything but one JSON object of finite numbers.
    """
    check_size(path, MAX_JSON_BYTES)
    data = path.read_bytes()
    if sha256:
        require_sha256(path, hashlib.sha256(data).hexdigest(), sha256)
    try:
        content = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise WeightsFileError(f"{path} must be a flat JSON file, got one nested too deeply. Fetch it anew.") from None
    except ValueError as error:
        raise WeightsFileError(f"{path} must be a JSON file, got: {error}. Fetch the checkpoint anew.") from error
    if not isinstance(content, dict):
        raise WeightsFileError(f"{path} must hold a JSON object, got {type(content).__name__}. Fetch it anew.")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"the number {name}")


def safetensors_shapes(path: Path) -> Shapes:
    """Names and shapes of the tensors in a safetensors file, from its header; no weight is read.

    Raises:
        WeightsFileError: no such file, too large, damaged, or with tensors that are not floating-point numbers.
    """
    check_size(path, MAX_WEIGHTS_BYTES)
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > MAX_HEADER_BYTES:
        raise WeightsFileError(
            f"{path} must be a whole safetensors file with a header of {MAX_HEADER_BYTES} bytes or fewer, "
            f"got {header}. Remove it and fetch it anew."
        )
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            others = sorted(name for name, part in slices.items() if part.get_dtype() not in FLOATS)
    except (SafetensorError, OSError) as error:
        raise WeightsFileError(
            f"{path} must be a whole safetensors file, got: {error}. Remove it and fetch it anew."
        ) from error
    if others:
        raise WeightsFileError(
            f"{path} must hold floating-point weights, got others in {_some(others)}. Fetch it anew."
        )
    return shapes


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The state dict of a ``.bin`` that ``torch.save`` wrote, without running code that it may hold.

    Raises:
        WeightsFileError: no such file, too large, packed, damaged, unsafe, or no state dict of floating-point numbers.
    """
    check_size(path, MAX_WEIGHTS_BYTES)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > os.path.getsize(path):
            raise ValueError("an archive that is larger unpacked")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) and value.is_floating_point()
            for name, value in state.items()
        ):
            raise TypeError("it holds no state dict of floating-point tensors")
        return state
    except Exception as error:  # torch.load raises many kinds on a damaged or unsafe file
        raise WeightsFileError(
            f"{path} must be readable with torch.load(weights_only=True), got: {type(error).__name__}. "
            "Use a safetensors file from a source that you trust."
        ) from error


def require_shapes(found: Shapes, expected: Shapes, source: str, fitting: str = "their config.json") -> None:
    """Raise ValueError unless the weights have the names and shapes of the network; the first misfits are named."""
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} of shape {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise ValueError(
            f"the weights of {source} must fit {fitting}, got {_some(problems)}. "
            "Fetch all files from the same revision."
        )


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise WeightsFileError where a weight is NaN or infinite; its tensor is named."""
    bad = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if bad:
        raise WeightsFileError(
            f"the weights of {source} must be finite numbers, got NaN or infinity in {_some(bad)}. "
            "Fetch them anew, or train again with a lower learning rate."
        )


def read_state(
    path: Path, unfilled: Callable[[Iterable[str]], Module], *, fitting: str, sha256: str = ""
) -> Mapping[str, Tensor]:
    """The weights of a safetensors file as stored, checked. A file that has not changed is read and hashed once.

    The weights are kept, and are only to be copied from.

    Args:
        unfilled: the network without values that a file with weights of these names is for.
        fitting: what that network is called in messages.
        sha256: what the file must have, or empty.

    Raises:
        WeightsFileError: a file that is missing, damaged, not finite or not the pinned one.
        ValueError: weights of another network.
    """
    path = path.resolve()
    check_size(path, MAX_WEIGHTS_BYTES)
    about = path.stat()
    return _read_state(path, (about.st_mtime_ns, about.st_size, about.st_ino), unfilled, fitting, sha256)


@lru_cache(maxsize=8)
def _read_state(
    path: Path,
    stamp: tuple[int, ...],
    unfilled: Callable[[Iterable[str]], Module],
    fitting: str,
    sha256: str,
) -> Mapping[str, Tensor]:
    """What ``read_state`` says, kept while the file keeps its ``stamp``."""
    if sha256:
        verify_sha256(path, sha256)
    found = safetensors_shapes(path)
    expected = {name: tuple(value.shape) for name, value in unfilled(found).state_dict().items()}
    require_shapes(found, expected, str(path), fitting)
    try:
        state = {name: value.clone() for name, value in load_file(path).items()}  # the file may change below a map
    except (SafetensorError, OSError) as error:
        raise WeightsFileError(f"{path} must be a whole safetensors file, got: {error}. Write it anew.") from error
    require_finite(state, str(path))
    return state


def _some(names: Iterable[str]) -> str:
    """The first four, each cut to a length for a message, and how many more."""
    names = [name if len(name) <= 200 else name[:200] + "..." for name in names]
    return "; ".join(names[:4]) + (f", and {len(names) - 4} more" if len(names) > 4 else "")


def filled(network: AnyModule, state: Mapping[str, Tensor]) -> AnyModule:
    """A network that was made on the device "meta", with these weights: copies of them, in float32.

    ``to_empty`` would do as well, and would load PyTorch's symbolic shapes for it, which take a second.

    Raises:
        RuntimeError: weights of other names or shapes.
    """
    network.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in state.items()}, assign=True)
    return network
