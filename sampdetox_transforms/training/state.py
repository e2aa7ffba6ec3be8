"""What a killed run needs to go on."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sampdetox_transforms._common import write_atomically

STATE = "training_state.safetensors"
SETTINGS = "settings"  # key of a file's metadata


class TrainingState:
    """What a killed run needs to go on, in one safetensors file: weights, the optimiser's moments, losses.

    Args:
        path: the file.
        settings: what a run must share with the one that it goes on from.
        average: a moving average of the weights, where the run keeps one.
    """

    def __init__(
        self,
        path: Path,
        settings: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: dict[str, Tensor] | None = None,
    ):
        self.path, self.settings, self.model, self.optimizer = path, settings, model, optimizer
        self.average = {} if average is None else average

    def save(self, losses: list[float]) -> None:
        """Write the state, whole or not at all; ``losses`` has one for each step done."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        write_atomically(self.path, lambda path: save_file(tensors, path, {SETTINGS: self.settings}))

    def load(self) -> list[float]:
        """Restore what was saved and return the losses; [] where there is nothing to resume."""
        if not self.path.exists():
            return []
        with safe_open(self.path, "pt") as file:
            require_settings(file.metadata(), self.settings, self.path)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        part = lambda name: {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}  # noqa: E731
        self.model.load_state_dict(part("model."))
        for name, value in part("average.").items():
            self.average[name].copy_(value)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer.").items():
            index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        return tensors["losses"].tolist()


def require_settings(metadata: Mapping[str, str] | None, settings: str, path: Path) -> None:
    """Raise ValueError unless a file of an unfinished run was written under these settings."""
    if (metadata or {}).get(SETTINGS) != settings:
        raise ValueError(
            f"a run can be resumed only with the settings that it was started with, got others than those of "
            f"{path}. Repeat the settings, or remove that file to begin anew."
        )
