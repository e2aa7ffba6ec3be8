"""One training run, whatever is trained: AdamW, a rate that rises and falls, a moving average, a state to resume from.

A batch is a function of the number of its step, so that a killed run goes on as if nothing had happened.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sampdetox_transforms.networks.precision import has_fast_bf16
from sampdetox_transforms.training.config import RunConfig
from sampdetox_transforms.training.state import TrainingState

# Stage, steps done of all stages, steps of all stages, loss of the last step.
Progress = Callable[[str, int, int, float], None]


def silent(stage: str, done: int, total: int, loss: float) -> None:
    """A progress that shows nothing."""


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterator[Any]],
    loss: Callable[[nn.Module, Any], Tensor],
    config: RunConfig,
    state_file: Path,
    *,
    device: str | torch.device = "cpu",
    betas: tuple[float, float] = (0.9, 0.98),
    progress: Callable[[int, float], None] = lambda step, loss: None,
    save: Callable[[dict[str, Tensor], list[float]], None] = lambda average, losses: None,
) -> tuple[dict[str, Tensor], list[float]]:
    """Train ``model`` in place and return the moving average of its weights, and the loss of each step.

    ``state_file`` is what a killed run resumes from; it stays, for the caller to remove once the result is kept.

    Args:
        batches: the batches from a step on.
        loss: one number for the model and a batch, under autocast where bfloat16 is used.
        progress: called after each step with the steps done and the loss.
        save: called with average and losses whenever the state has been saved.

    Raises:
        ValueError: a state that was saved by other settings.
    """
    device = torch.device(device)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=betas, weight_decay=1e-3)
    state = TrainingState(state_file, config.fixed(), model, optimizer, average)
    losses = state.load()
    bf16 = has_fast_bf16(device) if config.bf16 is None else config.bf16
    batch_of = batches(len(losses))
    for step in range(len(losses), config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
        batch = next(batch_of)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            value = loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        for name, weights in model.state_dict().items():
            average[name].lerp_(weights.detach(), 1 - decay)
        losses.append(float(value.detach()))
        progress(step + 1, losses[-1])
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            state.save(losses)
            save(average, losses)
    return average, losses


def learning_rate_factor(step: int, config: RunConfig) -> float:
    """Linear warm-up, constant, linear cool-down to 0: the share of ``config.learning_rate`` at a step."""
    cooldown = max(1, round(config.steps * config.cooldown))
    return max(0.0, min(1.0, (step + 1) / (config.warmup + 1), (config.steps - step) / cooldown))


class Batches(Dataset):
    """The batches that ``make`` draws from a generator, which the seed and the number of the step decide."""

    def __init__(self, make: Callable[[Generator], Any], config: RunConfig):
        self.make, self.config = make, config

    def __getitem__(self, step: int) -> Any:
        return self.make(step_generator(self.config.seed, step))

    def __len__(self) -> int:
        return self.config.steps

    def __call__(self, first: int) -> Iterator[Any]:
        """From a step on, made in the workers that the settings ask for."""
        steps = range(first, self.config.steps)
        return iter(DataLoader(self, batch_size=None, sampler=steps, num_workers=self.config.workers))


def step_generator(seed: int, step: int) -> Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def to_device(batch: Any, device: str | torch.device) -> Any:
    """A tuple of tensors on a device, images in the memory layout that convolutions want."""

    def move(part: Tensor) -> Tensor:
        layout = torch.channels_last if part.ndim == 4 else torch.preserve_format
        return part.to(device, memory_format=layout, non_blocking=True)

    return type(batch)(*map(move, batch))
