"""Train the networks of small images on images of any kind with synthetic triggers or noise, and calibrate them.

``restorer_batches.py`` has what each sees in a step.
"""

import json
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2.functional import pil_to_tensor

from sampdetox_transforms._common import write_atomically
from sampdetox_transforms.method.calibration import Calibration, calibrate, images_needed, strictest
from sampdetox_transforms.method.search import Answer, local_suspicion
from sampdetox_transforms.networks.light_denoiser import LightDenoiser
from sampdetox_transforms.networks.restorer import Specialists
from sampdetox_transforms.networks.restorer_files import RESTORER, save_restorer
from sampdetox_transforms.training.config import RestorerTrainingConfig
from sampdetox_transforms.training.data import ImageCrops, held_out, list_images
from sampdetox_transforms.training.encoders import encoder_steps, find_encoders
from sampdetox_transforms.training.loop import Batches, Progress, fit, silent, to_device
from sampdetox_transforms.training.restorer_batches import (
    DenseBatch,
    LightBatch,
    LocalBatch,
    dense_batch,
    draw,
    light_batch,
    local_batch,
)
from sampdetox_transforms.training.triggers.pictures import Pictures

NETWORKS = ("local", "dense", "light")
SETTINGS, ENCODERS = "training.json", "encoders.safetensors"
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
    (the settings) and, until the run is finished, the encoders of hidden bits and a state of each network, from which a
    killed run resumes.

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
    total = all_steps(config)
    before = total - len(NETWORKS) * config.steps
    encoders = find_encoders(
        lambda n, generator: draw(searched, n, generator, config.drawn)[0],
        config,
        out / ENCODERS,
        progress=lambda step, loss: progress("encoders", step, total, loss),
    )
    learnt_triggers = {"drawn": config.drawn, "encoders": encoders}
    make = {
        "local": partial(local_batch, searched, filled, config.batch_size, drawn=config.drawn),
        "dense": partial(dense_batch, searched, config.batch_size, pictures=pictures, **learnt_triggers),
        "light": partial(light_batch, searched, config.batch_size, **learnt_triggers),
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
            progress=lambda step, loss, k=k, name=name: progress(name, before + k * config.steps + step, total, loss),
        )
        network.load_state_dict({key: value.half().float() for key, value in average.items()})
    save_restorer(out, model, measure(model.eval(), measured, config, device))
    settings = json.dumps({"training": config.record()}, indent=2) + "\n"
    write_atomically(out / SETTINGS, lambda path: path.write_text(settings))
    for file in (out / ENCODERS, *(state_file(out, name) for name in NETWORKS)):
        file.unlink(missing_ok=True)
    return out


def all_steps(config: RestorerTrainingConfig) -> int:
    """Steps of the encoders and of the networks."""
    return config.encoders * encoder_steps(config) + len(NETWORKS) * config.steps


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
