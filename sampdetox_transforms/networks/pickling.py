"""Modules whose weights are pickled as few buffers.

A DataLoader with the start method ``forkserver`` or ``spawn`` pickles its transform for each worker, and every tensor
in it costs a file descriptor there: forkserver refuses more than some 250, and the default networks have 282 weights.
Weights that lie in one buffer cost one.
"""

import copy
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # numbers between the places where weights may begin, so that none costs the fast kernels


class FewBuffers(nn.Module):
    """A module whose parameters and buffers are pickled as one flat tensor a dtype and device.

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

    def __copy__(self) -> "FewBuffers":
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> "FewBuffers":
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


class Buffers:
    """Flat tensors, one a dtype and device, and what has yet to be joined to them."""

    def __init__(self) -> None:
        self.flat: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self.waiting: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        self.length: dict[tuple[torch.dtype, torch.device], int] = {}

    def put(self, value: Tensor) -> "Part":
        """Keep a tensor, and return what is pickled in its place."""
        key = (value.dtype, value.device)
        start = self.length.get(key, 0)
        values = value.detach()
        if not values.is_contiguous() and values.ndim == 4 and is_channels_last(values):
            values, stride = values.permute(0, 2, 3, 1).reshape(-1), value.stride()
        else:
            values, stride = values.reshape(-1), value.stride() if values.is_contiguous() else None
        gap = values.new_zeros(-len(values) % ALIGNMENT)
        self.waiting.setdefault(key, []).extend((values, gap))
        self.length[key] = start + len(values) + len(gap)
        kind = (isinstance(value, nn.Parameter), value.requires_grad)
        return Part(self, (key, start, tuple(value.shape), stride, *kind))

    def join(self) -> None:
        """Make one tensor of all of a kind."""
        self.flat = {key: torch.cat(parts) for key, parts in self.waiting.items()}
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
    key: tuple,
    start: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...] | None,
    parameter: bool,
    gradients: bool,
) -> Tensor:
    """The weight that begins at ``start`` of a buffer; no stride: row after row."""
    buffer = buffers.flat[key]
    if stride is None:
        value = buffer[start : start + torch.Size(shape).numel()].view(shape)
    else:
        value = buffer.as_strided(shape, stride, start)
    return nn.Parameter(value, requires_grad=gradients) if parameter else value.requires_grad_(gradients)


def is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether it is a dense tensor with values, of no special kind."""
    if type(value) is not Tensor and type(value) is not nn.Parameter:
        return False
    return value.layout is torch.strided and not value.is_meta


def is_channels_last(value: Tensor) -> bool:
    """Whether its channels are the innermost in memory."""
    return value.is_contiguous(memory_format=torch.channels_last)
