"""Search networks as they are handed to an algorithm, with some of what they do changed."""

from typing import Any

from sampdetox_transforms.method.search import SearchNetworks


class Changed:
    """Networks of which some attributes and methods are others; the networks themselves stay as they are."""

    def __init__(self, networks: SearchNetworks, **changes: Any):
        self._networks, self._changes = networks, changes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not set yet, as in a copy that is being made
            raise AttributeError(name)
        return self._changes[name] if name in self._changes else getattr(self._networks, name)
