"""Modules whose weights are pickled as bytes.

A DataLoader with the start method ``forkserver`` or ``spawn`` pickles its transform for each worker, and every tensor
in it costs a file descriptor there: forkserver refuses more than some 250, and the default networks have 282 weights.
Bytes cost none, and need not outlive the pickle.
"""

import copy
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # numbers between the places where weights may begin, so that none costs the fast kernels


class WeightsAsBytes(nn.Module):
    """A module whose parameters and buffers are pickled as one piece of bytes a dtype; those on a card as ever.

    Values, dtypes, memory formats and ties between weights come back as they were. Copies are as of any module.

    Attributes:
        shared: names of attributes that other parts of the same pickle may hold as well, and that stay one object.
    """

    shared: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self) -> dict[str, Any]:
        tables = [table for module in self.modules() for table in (module._parameters, module._buffers)]
        weights = {id(value): value for table in tables for value in table.values() if is_plain(value)}
        buffers = Buffers()
        memo: dict[int, Any] = {key: buffers.put(value) for key, value in weights.items()}
        buffers.join()
        memo |= {id(self.__dict__[name]): self.__dict__[name] for name in self.shared}
        return copy.deepcopy(self.__dict__, memo)

    def __copy__(self) -> "WeightsAsBytes":
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightsAsBytes":
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


class Buffers:
    """Flat tensors, one a dtype, which are pickled as bytes."""

    def __init__(self) -> None:
        self.flat: dict[torch.dtype, Tensor] = {}
        self.waiting: dict[torch.dtype, list[Tensor]] = {}
        self.length: dict[torch.dtype, int] = {}

    def __getstate__(self) -> dict[torch.dtype, bytearray]:
        return {dtype: bytearray(flat.view(torch.uint8).numpy()) for dtype, flat in self.flat.items()}

    def __setstate__(self, state: dict[torch.dtype, bytearray]) -> None:
        empty = {dtype: torch.empty(0, dtype=dtype) for dtype in state}
        self.flat = empty | {dtype: torch.frombuffer(data, dtype=dtype) for dtype, data in state.items() if data}

    def put(self, value: Tensor) -> "Part":
        """Keep a tensor, and return what is pickled in its place."""
        start = self.length.get(value.dtype, 0)
        values = value.detach()
        if not values.is_contiguous() and values.ndim == 4 and is_channels_last(values):
            values, stride = values.permute(0, 2, 3, 1).reshape(-1), value.stride()
        else:
            values, stride = values.reshape(-1), value.stride() if values.is_contiguous() else None
        gap = values.new_zeros(-len(values) % ALIGNMENT)
        self.waiting.setdefault(value.dtype, []).extend((values, gap))
        self.length[value.dtype] = start + len(values) + len(gap)
        kind = (isinstance(value, nn.Parameter), value.requires_grad)
        return Part(self, (value.dtype, start, tuple(value.shape), stride, *kind))

    def join(self) -> None:
        """Make one tensor of all of a dtype."""
        self.flat = {dtype: torch.cat(parts) for dtype, parts in self.waiting.items()}
        self.waiting = {}


class Part:
    """Stands for a weight in a pickle; unpickled it is the weight, a view of its buffer."""

    def __init__(self, buffers: Buffers, about: tuple):
        self.buffers, self.about = buffers, about

    def __reduce__(self) -> tuple:
        return take, (self.buffers, *self.about)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Part":
        return self


def take(
    buffers: Buffers,
    dtype: torch.dtype,
    start: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...] | None,
    parameter: bool,
    gradients: bool,
) -> Tensor:
    """The weight that begins at ``start`` of a buffer; no stride: row after row."""
    buffer = buffers.flat[dtype]
    if stride is None:
        value = buffer[start : start + torch.Size(shape).numel()].view(shape)
    else:
        value = buffer.as_strided(shape, stride, start)
    return nn.Parameter(value, requires_grad=gradients) if parameter else value.requires_grad_(gradients)


def is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether it is a dense tensor in the processor's memory, of no special kind."""
    if type(value) is not Tensor and type(value) is not nn.Parameter:
        return False
    return value.layout is torch.strided and value.device.type == "cpu"


def is_channels_last(value: Tensor) -> bool:
    """Whether its channels are the innermost in memory."""
    return value.is_contiguous(memory_format=torch.channels_last)
