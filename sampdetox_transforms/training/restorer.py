"""Train the networks of small images on images of any kind with synthetic triggers or noise, and calibrate them.

A step of "local" searches 72 images (24 clean, 20 with a local trigger, 28 with a dense one) and fills an erased region
of 12 others; one of "dense" searches 72 (12 clean, 12 with a local trigger, 48 with a dense one); one of "light" takes
noise away from 72, of which six are grey and 30 carry a faint dense trigger.
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2.functional import pil_to_tensor

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.calibration import Calibration, calibrate, images_needed, strictest
from sampdetox_transforms.method.search import Answer, local_suspicion
from sampdetox_transforms.networks.light_denoiser import SIGMAS, LightDenoiser
from sampdetox_transforms.networks.restorer import Specialists
from sampdetox_transforms.networks.restorer_files import RESTORER, save_restorer
from sampdetox_transforms.training.config import RestorerTrainingConfig
from sampdetox_transforms.training.data import ImageCrops, held_out, list_images
from sampdetox_transforms.training.drawings import crops_and_drawings
from sampdetox_transforms.training.loop import Batches, Progress, fit, silent, to_device
from sampdetox_transforms.training.triggers.dense import dense_triggers, fine_triggers
from sampdetox_transforms.training.triggers.draw import uniform
from sampdetox_transforms.training.triggers.local import erasures, local_triggers
from sampdetox_transforms.training.triggers.pictures import Pictures

NETWORKS = ("local", "dense", "light")
SETTINGS = "training.json"
TOLERANCE = 6 / 255  # what of a dense trigger does not matter
MEASURED = 800  # images of a folder that thresholds are measured on, at most


def train_restorer(
    config: RestorerTrainingConfig,
    out: str | Path,
    *,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> Path:
    """Train the networks and calibrate the search, or resume, and return ``out``, which ``load_restorer`` reads.

    ``out`` gains ``restorer.safetensors`` (all three networks, in float16), ``calibration.json``, ``training.json``
    (the settings) and, until the run is finished, a state of each network, from which a killed run resumes.

    Raises:
        ValueError: settings that do not fit, too few images, or a state saved by other settings.
        OSError: data that cannot be read, or ``out`` that cannot be written.
    """
    out = Path(out)
    learnt, measured = split(config)
    if is_finished(out):
        raise ValueError(
            f"out must be a new folder, or that of an unfinished run, got {out} with finished weights. Name another."
        )
    out.mkdir(parents=True, exist_ok=True)
    more = list_images(config.fill_data) if config.fill_data else []
    searched = ImageCrops(learnt, Specialists.side, 3, config.zoom)
    filled = ImageCrops([*learnt, *more], Specialists.side, 3, config.zoom)
    pictures = Pictures(config.blend_data, Specialists.side) if config.blend_data else None
    make = {
        "local": partial(local_batch, searched, filled, config.batch_size, drawn=config.drawn),
        "dense": partial(dense_batch, searched, config.batch_size, drawn=config.drawn, pictures=pictures),
        "light": partial(light_batch, searched, config.batch_size, drawn=config.drawn),
    }
    torch.manual_seed(config.seed)
    model = Specialists(light=LightDenoiser()).to(device)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for k, name in enumerate(NETWORKS):
        network, loss = getattr(model, name), LOSSES[name]
        average, _ = fit(
            network.train(),
            Batches(make[name], config),
            lambda network, batch, loss=loss: loss(network, to_device(batch, device)),
            config,
            state_file(out, name),
            device=device,
            progress=lambda step, loss, k=k, name=name: progress(
                name, k * config.steps + step, len(NETWORKS) * config.steps, loss
            ),
        )
        network.load_state_dict({key: value.half().float() for key, value in average.items()})
    save_restorer(out, model, measure(model.eval(), measured, config, device))
    settings = json.dumps({"training": config.record()}, indent=2) + "\n"
    write_atomically(out / SETTINGS, lambda path: path.write_text(settings))
    for name in NETWORKS:
        state_file(out, name).unlink(missing_ok=True)
    return out


def state_file(out: Path, network: str) -> Path:
    """Where the state of an unfinished run lies."""
    return out / f"{network}_training_state.safetensors"


def is_finished(out: Path) -> bool:
    """Whether a folder holds networks that no run is still working on."""
    return (out / RESTORER).exists() and not any(state_file(out, name).exists() for name in NETWORKS)


# Data ----------------------------------------------------------------------------------------------------------------


def split(config: RestorerTrainingConfig) -> tuple[list[Path], dict[str, list[Path]]]:
    """Images to learn from, and of each folder those to measure thresholds on: evenly from its sorted files.

    Raises:
        ValueError: so few images to measure that the false-alarm rate cannot be, or none in another folder.
        OSError: a folder that does not exist.
    """
    for more in filter(None, (config.fill_data, config.blend_data)):
        list_images(more)
    measured = held_out(config.data, config.held_out, images_needed(config.false_alarm_rate))
    every = {path for images in measured.values() for path in images}
    return [path for path in list_images(config.data) if path not in every], measured


def draw(crops: ImageCrops, n: int, generator: Generator, drawn: float = 0.0) -> tuple[Tensor, Tensor]:
    """``n`` images in [0, 1], some of them drawings, varied at random, and the deviation of noise to add to each."""
    x = crops_and_drawings(crops, n, drawn, generator)
    brighten, gain, shift, by, blur, noise = uniform((6, n, 1, 1, 1), 0, 1, x, generator)
    x = x * torch.where(brighten < 0.3, 0.6 + 0.9 * gain, 1) + torch.where(shift < 0.2, 0.3 * (by - 0.5), 0)
    x = x.clamp(0, 1)
    x = torch.where(blur < 0.06, functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False), x)
    return x, torch.where(noise < 0.1, 0.3 * noise, 0)


def noised_and_rounded(images: Tensor, noise: Tensor, generator: Generator) -> Tensor:
    """Images with noise of the given standard deviations, half of them in whole 255ths."""
    images = (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    rounded = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(rounded, (images * 255).round() / 255, images)


class LocalBatch(NamedTuple):
    """What a step of "local" sees and should say: images to be searched, then images to be filled.

    Attributes:
        x: (s + f, c, h, w) in [-1, 1].
        erased: (s + f, 1, h, w), what is to be filled; nothing of the first s.
        target: the images as they were, in [-1, 1].
        region: (s, 1, h, w), the pixels of a local trigger.
        unseen: those of them that the trigger did not change, such as a white patch on white.
        is_dense: (s,), 1 where the image carries a dense trigger.
    """

    x: Tensor
    erased: Tensor
    target: Tensor
    region: Tensor
    unseen: Tensor
    is_dense: Tensor


def local_batch(
    searched: ImageCrops, filled: ImageCrops, n: int, generator: Generator, drawn: float = 0.0
) -> LocalBatch:
    """A third of ``n`` images clean, seven in eighteen with a dense trigger, the rest with a local one; n / 6 more to
    be filled."""
    clean, noise = draw(searched, n, generator, drawn)
    images, region = clean.clone(), torch.zeros_like(clean[:, :1], dtype=torch.bool)
    is_dense = torch.arange(n) >= n - round(n * 7 / 18)
    local = ~is_dense & (torch.arange(n) >= n // 3)
    images[local], region[local] = local_triggers(clean[local], generator)
    images[is_dense] = dense_triggers(clean[is_dense], generator)
    images = noised_and_rounded(images, noise, generator)
    whole, _ = draw(filled, n // 6, generator)
    erased = torch.cat([torch.zeros_like(region), erasures(whole, generator)])
    unseen = region & ((images - clean).abs().amax(dim=1, keepdim=True) <= 5 / 255)
    x, target = torch.cat([images, whole]) * 2 - 1, torch.cat([clean, whole]) * 2 - 1
    return LocalBatch(x, erased, target, region, unseen, is_dense.float())


class DenseBatch(NamedTuple):
    """What a step of "dense" sees and should say: ``x`` and ``target`` in [-1, 1], and which carry a dense trigger."""

    x: Tensor
    target: Tensor
    is_dense: Tensor


def dense_batch(
    searched: ImageCrops, n: int, generator: Generator, drawn: float = 0.0, pictures: Pictures | None = None
) -> DenseBatch:
    """Two thirds of ``n`` images with a dense trigger; half of the others with a local one."""
    clean, noise = draw(searched, n, generator, drawn)
    images, other = clean.clone(), n - 2 * n // 3
    images[other // 2 : other] = local_triggers(clean[other // 2 : other], generator)[0]
    images[other:] = dense_triggers(clean[other:], generator, pictures)
    images = noised_and_rounded(images, noise, generator)
    return DenseBatch(images * 2 - 1, clean * 2 - 1, (torch.arange(n) >= other).float())


class LightBatch(NamedTuple):
    """Images in [-1, 1], with the noise that is added to them.

    Attributes:
        x: (n, c, h, w), the images, some with a trigger.
        target: the images without.
        noise: of a standard deviation of 1.
        sigma: (n,), how much of it is added.
    """

    x: Tensor
    target: Tensor
    noise: Tensor
    sigma: Tensor


def light_batch(searched: ImageCrops, n: int, generator: Generator, drawn: float = 0.0) -> LightBatch:
    """``n`` images; one in twelve is grey, with the same noise in each channel, as grey images get it.

    Five in twelve carry a trigger that is faint and fine, as noise is, and is to go with it.
    """
    clean, _ = draw(searched, n, generator, drawn)
    noise, grey = torch.randn(clean.shape, generator=generator), torch.arange(n) < n // 12
    clean[grey], noise[grey] = clean[grey].mean(dim=1, keepdim=True), noise[grey, :1]
    low, high = (math.log(sigma) for sigma in SIGMAS)
    sigma = uniform((n,), low, high, clean, generator).exp()
    images, triggered = clean.clone(), torch.arange(n) >= n - n * 5 // 12
    images[triggered] = fine_triggers(clean[triggered], generator)
    return LightBatch(images * 2 - 1, clean * 2 - 1, noise, sigma)


# Losses --------------------------------------------------------------------------------------------------------------


def local_loss(network: nn.Module, batch: LocalBatch) -> Tensor:
    """Pixels and images with a trigger (cross-entropy), and the image without it and without the hole (L1)."""
    answer = Answer(*(part.float() for part in network(batch.x, batch.erased)))
    n, entropy = len(batch.region), functional.binary_cross_entropy_with_logits
    logits, region, seen = answer.local[:n], batch.region, ~batch.unseen
    pixels = entropy(logits, region.float(), weight=seen.float(), pos_weight=logits.new_tensor(3.0))
    suspicion = entropy(local_suspicion(logits), (region & seen).flatten(1).any(dim=1).float())
    all_over = entropy(answer.dense[:n], batch.is_dense)
    assert answer.image is not None
    error = (answer.image - batch.target).abs().mean(dim=1, keepdim=True)
    erased = batch.erased[n:]
    filled_in = (error[n:] * erased).sum() / erased.sum().clamp(min=1)
    return 5 * pixels + 0.3 * suspicion + all_over + 4 * error[:n].mean() + 4 * filled_in


def dense_loss(network: nn.Module, batch: DenseBatch) -> Tensor:
    """Images with a dense trigger against those with a local one or none (cross-entropy), and what is left of it."""
    answer = network(batch.x)
    found = functional.binary_cross_entropy_with_logits(answer.dense.float(), batch.is_dense)
    dense = batch.is_dense > 0
    left, was = (((x.float() - batch.target)[dense] / 2).square().mean(dim=(1, 2, 3)) for x in (answer.image, batch.x))
    # energies in proportion to the trigger's amplitude: between equal grey levels and equal shares for faint and strong
    return found + 10 * (left / (was + TOLERANCE**2).sqrt()).mean()


def light_loss(network: nn.Module, batch: LightBatch) -> Tensor:
    """The mean squared error of the noise (DDPM, equation 14) together with the trigger, beside the size of both."""
    sigma = batch.sigma[:, None, None, None]
    trigger = batch.x - batch.target
    found = network(batch.x + sigma * batch.noise, batch.sigma).float()
    size = 1 + (trigger / sigma).square().mean(dim=(1, 2, 3), keepdim=True)
    return ((found - batch.noise - trigger / sigma).square() / size).mean()


LOSSES = {"local": local_loss, "dense": dense_loss, "light": light_loss}


# Thresholds ----------------------------------------------------------------------------------------------------------


def measure(
    model: Specialists, folders: dict[str, list[Path]], config: RestorerTrainingConfig, device: str | torch.device
) -> Calibration:
    """Thresholds that keep the rate on the held-out images of every folder, whole images of their own sizes."""
    found = []
    for folder, paths in folders.items():
        some = paths[:: max(1, len(paths) // MEASURED)][:MEASURED]
        images = (read(path)[None].to(device) for path in some)
        name = "/".join(Path(folder).parts[-2:])
        found.append(calibrate(model, images, false_alarm_rate=config.false_alarm_rate, data=name))
    return strictest(found)


def read(path: Path) -> Tensor:
    """(3, h, w) in [-1, 1]."""
    with Image.open(path) as image:
        return pil_to_tensor(image.convert("RGB")).float() / 127.5 - 1
