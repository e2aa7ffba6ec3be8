"""The encoders of hidden bits that a run trains first, kept in a file from which a killed run goes on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.networks.precision import has_fast_bf16
from sampdetox_transforms.training.config import RestorerTrainingConfig
from sampdetox_transforms.training.loop import step_generator
from sampdetox_transforms.training.state import SETTINGS, require_settings
from sampdetox_transforms.training.triggers.draw import Images
from sampdetox_transforms.training.triggers.hidden_bits import Encoder, Terms, train_encoder

STEPS = 1200  # of an encoder; fewer where the networks take fewer
POOL = 3000  # images that the encoders learn from

TERMS = "terms"


def encoder_steps(config: RestorerTrainingConfig) -> int:
    """Steps of each encoder."""
    return min(STEPS, config.steps)


def find_encoders(
    draw: Callable[[int, Generator], Images],
    config: RestorerTrainingConfig,
    file: Path,
    *,
    progress: Callable[[int, float], None] = lambda done, loss: None,
) -> list[Encoder]:
    """The encoders of the file, and those that it still lacks, each added to it when it is trained.

    Args:
        draw: n images in [0, 1].
        progress: called after each step with the steps done of all encoders, and the loss.

    Raises:
        ValueError: a file that a run with other settings wrote.
    """
    settings = replace(config, encoders=0).fixed()  # how many there are changes none of them
    found = read_encoders(file, settings) if file.exists() else []
    if len(found) >= config.encoders:
        return found[: config.encoders]
    pool = draw(min(POOL, config.steps * config.batch_size), step_generator(config.seed, -1))
    bf16 = has_fast_bf16(torch.device("cpu")) if config.bf16 is None else config.bf16

    def images(n: int, generator: Generator) -> Images:
        return pool[torch.randint(len(pool), (n,), generator=generator)]

    for k in range(len(found), config.encoders):
        found.append(
            train_encoder(
                images,
                encoder_steps(config),
                step_generator(config.seed, -2 - k),
                bf16=bf16,
                progress=lambda step, loss, k=k: progress(k * encoder_steps(config) + step, loss),
            )
        )
        write_encoders(file, found, settings)
    return found


def write_encoders(file: Path, encoders: list[Encoder], settings: str) -> None:
    """Write encoders with their terms, and the run's settings, into a file that appears whole or not at all."""
    state: dict[str, Tensor] = {}
    for k, encoder in enumerate(encoders):
        state |= {f"{k}.{name}": value.contiguous() for name, value in encoder.state_dict().items()}
        state[f"{k}.{TERMS}"] = torch.tensor(encoder.terms, dtype=torch.float64)
    write_atomically(file, lambda path: save_file(state, path, {SETTINGS: settings}))


def read_encoders(file: Path, settings: str) -> list[Encoder]:
    """What ``write_encoders`` wrote under the same settings; ValueError for others."""
    with safe_open(file, "pt") as stored:
        require_settings(stored.metadata(), settings, file)
    state, encoders = load_file(file), []
    while f"{len(encoders)}.{TERMS}" in state:
        prefix = f"{len(encoders)}."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        grey, place, price, flat, smooth = own.pop(TERMS).tolist()
        encoder = Encoder(Terms(bool(grey), int(place), price, flat, smooth))
        encoder.load_state_dict(own)
        encoders.append(encoder.eval().requires_grad_(False))
    return encoders
