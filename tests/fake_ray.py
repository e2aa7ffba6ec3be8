"""The little of Ray that ``sampdetox purify --ray`` uses, in this process: actors are objects, data are lists."""

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Method:
    def __init__(self, call: Callable):
        self.remote = call


class Actor:
    """An object whose methods are called as those of an actor are."""

    def __init__(self, it: Any):
        self._it = it

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self._it, name))


class Dataset:
    def __init__(self, blocks: list[list[dict]], fn: Callable | None = None):
        self.blocks, self.fn = blocks, fn

    def map_batches(self, kind: type, *, fn_constructor_kwargs: dict, **options: Any) -> "Dataset":
        assert options["batch_size"] is None  # a block a time
        SEEN.append(options)
        return Dataset(self.blocks, kind(**fn_constructor_kwargs))

    def iter_rows(self) -> Iterator[dict]:
        for block in self.blocks:
            column = np.empty(len(block), dtype=object)
            column[:] = [row["job"] for row in block]
            result = self.fn({"job": column})
            yield from ({"part": part} for part in result["part"])


SEEN: list[dict] = []  # the options of ``map_batches``


def from_items(items: list[dict], *, override_num_blocks: int) -> Dataset:
    return Dataset([list(block) for block in np.array_split(np.array(items, dtype=object), override_num_blocks)])


def install(monkeypatch, **resources: float) -> ModuleType:
    """Let ``import ray`` find this, with a cluster that is connected and has these resources."""
    ray: Any = ModuleType("ray")
    ray.data = ModuleType("ray.data")
    ray.is_initialized = lambda: True
    ray.cluster_resources = lambda: resources
    ray.get = lambda value: value
    ray.remote = lambda **options: lambda kind: SimpleNamespace(remote=lambda *given: Actor(kind(*given)))
    ray.data.from_items = from_items
    ray.data.ActorPoolStrategy = lambda *, size: size
    context = SimpleNamespace(enable_progress_bars=True)
    ray.data.DataContext = SimpleNamespace(get_current=lambda: context)
    SEEN.clear()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    return ray
