"""Train a denoiser on a folder of images: the noise-prediction loss of DDPM, on the lowest noise levels only.

Purification never leaves the low levels, so a network that knows only these needs far less capacity than a
generator of images. Sources: Ho et al. 2020, algorithm 1 and equation 14 (loss); section 4 (EMA of the weights).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from sampdetox_transforms.checkpoints import SAFETENSORS, Denoiser, load_denoiser, save_checkpoint, write_atomically
from sampdetox_transforms.precision import has_fast_bf16
from sampdetox_transforms.schedule import Schedule
from sampdetox_transforms.unet import UNet, UNetConfig

STATE = "training_state.safetensors"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that a training run depends on; saved beside the checkpoint.

    Attributes:
        data: image folders, searched at any depth; one that is named twice counts twice.
        size: height and width of the training crops, in pixels.
        max_level: noise levels 1...max_level are trained (160 covers sigma up to .55 on the linear schedule).
        steps: optimiser steps in all.
        learning_rate: reached after ``warmup`` steps, and taken linearly to 0 over the last ``cooldown`` share.
        ema: decay of the moving average of the weights, which is what is saved; 0 turns it off.
        zoom: the smallest share of an image's area that a crop takes; 1 takes whole images.
        bf16: None uses bfloat16 where the processor or card has it.
        half: store the weights in float16, half the size; they are read back as float32.
        network: further keys of ``UNetConfig``.
    """

    data: tuple[str, ...]
    size: int = 32
    max_level: int = 160
    schedule: str = "linear"
    channels: int = 3
    block_out_channels: tuple[int, ...] = (64, 64, 128)
    layers_per_block: int = 1
    steps: int = 10_000
    batch_size: int = 32
    learning_rate: float = 6e-4
    warmup: int = 200
    cooldown: float = 0.3
    ema: float = 0.999
    zoom: float = 0.35
    seed: int = 0
    workers: int = 1
    bf16: bool | None = None
    save_every: int = 500
    half: bool = False
    network: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        levels = Schedule.named(self.schedule).num_levels
        if isinstance(self.data, str):
            raise TypeError(f"data must be a tuple of folders, got the string {self.data!r}. Write ({self.data!r},).")
        if not self.data:
            raise ValueError("data must name one folder of images or more, got none. Give the folder's path.")
        for name in ("size", "steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}. Give a larger number.")
        if not 1 <= self.max_level <= levels:
            raise ValueError(f"max_level must be in [1, {levels}], got {self.max_level}. 160 suits the defaults.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}. 0.999 is usual, 0 turns it off.")
        if not 0 < self.zoom <= 1:
            raise ValueError(f"zoom must be in (0, 1], got {self.zoom}. 1 takes whole images.")
        if self.size % self.unet_config().size_multiple:
            raise ValueError(
                f"size must be a multiple of {self.unet_config().size_multiple} for this network, got {self.size}. "
                "Change the size, or give fewer block_out_channels."
            )

    def unet_config(self) -> UNetConfig:
        """The network: no attention, so that any height and width can be restored."""
        depth = len(self.block_out_channels)
        return UNetConfig.from_dict(
            {
                "sample_size": self.size,
                "in_channels": self.channels,
                "out_channels": self.channels,
                "block_out_channels": tuple(self.block_out_channels),
                "layers_per_block": self.layers_per_block,
                "down_block_types": ("DownBlock2D",) * depth,
                "up_block_types": ("UpBlock2D",) * depth,
                "norm_num_groups": 8,
                "resnet_time_scale_shift": "scale_shift",
                "add_attention": False,
                **self.network,
            }
        )


def list_images(folders: Sequence[str | Path]) -> list[Path]:
    """All image files under the folders, sorted, a folder named twice listed twice.

    Raises:
        OSError: a folder that does not exist.
        ValueError: no image in any of them.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"the training data must be a folder, got {folder}. Check the path.")
        found += sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"the data folders must hold images ({', '.join(IMAGE_SUFFIXES)}), got none in {folders}.")
    return found


class ImageCrops(Dataset):
    """Random crops, (c, size, size) in [-1, 1]; an item is asked for as (index, key), and the key decides the crop."""

    def __init__(self, paths: list[Path], size: int, channels: int, zoom: float):
        self.paths = paths
        self.mode = "RGB" if channels == 3 else "L"
        crop = v2.RandomResizedCrop(size, scale=(zoom, 1.0), ratio=(0.9, 1.1), antialias=True)
        whole = v2.RandomResizedCrop(size, scale=(1.0, 1.0), ratio=(1.0, 1.0), antialias=True)
        self.augment = v2.Compose(
            [
                v2.RandomChoice([crop, whole]),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * channels, [0.5] * channels),
            ]
        )

    def __getitem__(self, item: tuple[int, int]) -> Tensor:
        index, key = item
        try:
            with Image.open(self.paths[index]) as file:
                image = file.convert(self.mode)
        except Exception as error:  # Pillow raises many kinds on damaged files
            message = f"training images must be readable, got {error} at {self.paths[index]}. Remove it from the data."
            raise OSError(message) from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            return self.augment(image).as_subclass(Tensor)


class ResumableSampler(Sampler):
    """Shuffled (index, key) pairs without end, the same from any first item on, so that a resumed run goes on alike."""

    def __init__(self, length: int, seed: int, first: int):
        self.length, self.seed, self.first = length, seed, first

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.first
        while True:
            epoch, offset = divmod(position, self.length)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            for index in torch.randperm(self.length, generator=generator)[offset:].tolist():
                yield index, self.seed * 1_000_003 + position
                position += 1


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, constant, linear cool-down to 0: the share of ``config.learning_rate`` at a step."""
    cooldown = max(1, round(config.steps * config.cooldown))
    return max(0.0, min(1.0, (step + 1) / (config.warmup + 1), (config.steps - step) / cooldown))


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
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    fixed = {k: v for k, v in asdict(config).items() if k not in ("steps", "save_every", "workers", "cooldown")}
    state = TrainingState(out / STATE, json.dumps(fixed, sort_keys=True), model, optimizer, average)
    losses = state.load()
    first = len(losses)

    sampler = ResumableSampler(len(paths), config.seed, first * config.batch_size)
    dataset = ImageCrops(paths, config.size, config.channels, config.zoom)
    loader = iter(DataLoader(dataset, config.batch_size, sampler=sampler, num_workers=config.workers))
    bf16 = has_fast_bf16(device) if config.bf16 is None else config.bf16
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
        x0 = next(loader).to(device, memory_format=torch.channels_last, non_blocking=True)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        level = torch.randint(1, config.max_level + 1, (len(x0),), generator=generator).to(device)
        noise = torch.randn(x0.shape, generator=generator).to(x0, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = denoising_loss(model, schedule, x0, level, noise).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            average[name].lerp_(value.detach(), 1 - decay)
        losses.append(float(loss.detach()))
        progress(step + 1, losses[-1])
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            state.save(losses)
            save_result(out, config, average, losses)
    save_result(out, config, average, losses)
    (out / STATE).unlink(missing_ok=True)
    return out


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
            **asdict(config),
            "data": ["/".join(Path(folder).parts[-2:]) for folder in config.data],
            "done": len(losses),
        },
    }
    dtype = torch.float16 if config.half else None
    save_checkpoint(out, config.unet_config(), average, Schedule.named(config.schedule), settings, dtype)
    lines = ["step,loss", *(f"{step},{loss:.6g}" for step, loss in enumerate(losses, start=1))]
    write_atomically(out / "loss.csv", lambda path: path.write_text("\n".join(lines) + "\n"))


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
        write_atomically(self.path, lambda path: save_file(tensors, path, {"settings": self.settings}))

    def load(self) -> list[float]:
        """Restore what was saved and return the losses; [] where there is nothing to resume."""
        if not self.path.exists():
            return []
        with safe_open(self.path, "pt") as file:
            if (file.metadata() or {}).get("settings") != self.settings:
                raise ValueError(
                    f"a run can be resumed only with the settings that it was started with, got others than those of "
                    f"{self.path}. Repeat the settings, or remove that file to begin anew."
                )
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


def psnr(x0: Tensor, restored: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for each image in [-1, 1] (peak to peak 2): (b, c, h, w) -> (b,)."""
    return -10 * (((x0 - restored) / 2).square().mean(dim=(1, 2, 3))).log10()


@torch.no_grad()
def denoise_once(denoiser: Denoiser, x0: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Add noise of std ``sigma`` to images in [-1, 1] and take it away with one call (equation 4), clamped."""
    level = float(denoiser.schedule.level(sigma))
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    eps = denoiser(denoiser.schedule.add_noise(x0, level, noise), torch.full((len(x0),), level - 1, device=x0.device))
    return (x0 + sigma * (noise - eps)).clamp(-1, 1)
