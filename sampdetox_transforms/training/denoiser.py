"""Train a denoiser on a folder of images: the noise-prediction loss of DDPM, on the lowest noise levels only.

Purification never leaves the low levels, so a network that knows only these needs far less capacity than a
generator of images. Sources: Ho et al. 2020, algorithm 1 and equation 14 (loss); section 4 (EMA of the weights).
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.networks.catalogue import load_denoiser
from sampdetox_transforms.networks.checkpoints import SAFETENSORS, save_checkpoint
from sampdetox_transforms.networks.denoiser import Denoiser
from sampdetox_transforms.networks.unet import UNet
from sampdetox_transforms.networks.unet_config import UNetConfig
from sampdetox_transforms.training.config import TrainingConfig
from sampdetox_transforms.training.data import ImageCrops, ResumableSampler, list_images
from sampdetox_transforms.training.loop import fit, step_generator, to_device
from sampdetox_transforms.training.state import STATE


def denoising_loss(denoiser: Callable, schedule: Schedule, x0: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise at one level an image, (b,): DDPM's equation 14."""
    x_t = schedule.add_noise(x0, level[:, None, None, None], noise)
    return (denoiser(x_t, level - 1).float() - noise).square().mean(dim=(1, 2, 3))


def train(
    config: TrainingConfig,
    out: str | Path,
    *,
    device: str | torch.device = "cpu",
    init: str | Path | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Path:
    """Train, or resume, and return the checkpoint's folder ``out``: readable by ``load_denoiser`` and by diffusers.

    ``out`` gains ``config.json``, ``scheduler_config.json``, ``diffusion_pytorch_model.safetensors`` (the averaged
    weights), ``sampdetox.json`` (levels known, the training settings), ``loss.csv`` and, until the run is finished,
    ``training_state.safetensors``, from which a killed run resumes when it is started again with the same settings.

    Args:
        init: a checkpoint folder to start from instead of random weights (fine-tuning, the paper's appendix C.4).
        progress: called after each step with the steps done and the loss.

    Raises:
        ValueError: settings that do not fit, a folder without images, or a state saved by other settings.
        OSError: data that cannot be read, or ``out`` that cannot be written.
    """
    out, device = Path(out), torch.device(device)
    paths = list_images(config.data)
    if is_finished(out):
        raise ValueError(
            f"out must be a new folder, or that of an unfinished run, got {out} with finished weights. Name another."
        )
    out.mkdir(parents=True, exist_ok=True)
    schedule = Schedule.named(config.schedule)
    torch.manual_seed(config.seed)
    model = UNet(config.unet_config()).to(device).train()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if init is not None:
        start = load_denoiser(init)
        check_same_network(start, config.unet_config())
        model.load_state_dict(start.network.state_dict())

    def batches(first: int) -> Iterator[Noised]:
        sampler = ResumableSampler(len(paths), config.seed, first * config.batch_size)
        crops = ImageCrops(paths, config.size, config.channels, config.zoom)
        images = DataLoader(crops, config.batch_size, sampler=sampler, num_workers=config.workers)
        for step, x0 in enumerate(images, start=first):
            generator = step_generator(config.seed, step)
            level = torch.randint(1, config.max_level + 1, (len(x0),), generator=generator)
            yield to_device(Noised(x0, level, torch.randn(x0.shape, generator=generator)), device)

    def loss(model: nn.Module, batch: Noised) -> Tensor:
        return denoising_loss(model, schedule, batch.x0, batch.level, batch.noise).mean()

    def save(average: dict[str, Tensor], losses: list[float]) -> None:
        save_result(out, config, average, losses)

    done = fit(
        model, batches, loss, config, out / STATE, device=device, betas=(0.9, 0.99), progress=progress, save=save
    )
    save(*done)
    (out / STATE).unlink(missing_ok=True)
    return out


class Noised(NamedTuple):
    """Images, and the level and the noise that each is shown with."""

    x0: Tensor
    level: Tensor
    noise: Tensor


def is_finished(out: Path) -> bool:
    """Whether a folder holds weights that no run is still working on."""
    return (out / SAFETENSORS).exists() and not (out / STATE).exists()


def check_same_network(start: Denoiser, config: UNetConfig) -> None:
    """Raise ValueError, naming the keys, unless the weights to start from are of a network of this shape."""
    own = getattr(start.network, "config", None)
    found = asdict(own) if isinstance(own, UNetConfig) else {}
    wrong = [k for k, v in asdict(config).items() if k not in ("sample_size", "dropout") and found.get(k) != v]
    if wrong:
        raise ValueError(
            f"init must be weights of the same network, got {start.source} with another {', '.join(wrong)}. "
            "Set these to what its config.json says."
        )


def save_result(out: Path, config: TrainingConfig, average: dict[str, Tensor], losses: list[float]) -> None:
    """Write the checkpoint with the averaged weights, and the loss of every step."""
    settings = {
        "max_level": config.max_level,
        "training": {
            **config.record(),
            "done": len(losses),
        },
    }
    dtype = torch.float16 if config.half else None
    save_checkpoint(out, config.unet_config(), average, Schedule.named(config.schedule), settings, dtype)
    lines = ["step,loss", *(f"{step},{loss:.6g}" for step, loss in enumerate(losses, start=1))]
    write_atomically(out / "loss.csv", lambda path: path.write_text("\n".join(lines) + "\n"))
