"""The measurements of a benchmark."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sampdetox_transforms.lab.speed.clocks import Stopwatch, TimedNoise, clock, time_runs
from sampdetox_transforms.lab.speed.table import PARTS, BatchSpeed, DefendedSpeed
from sampdetox_transforms.method.algorithm1 import Algorithm1
from sampdetox_transforms.method.noise import fresh_noise
from sampdetox_transforms.method.restore import Restore
from sampdetox_transforms.method.sampdetox import on_schedule
from sampdetox_transforms.method.samplers import Denoiser
from sampdetox_transforms.method.schedule import Schedule
from sampdetox_transforms.transforms.transform import SampDetox

MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}

IMPORTS = """
import time
start = time.perf_counter()
import torch, torchvision
from torchvision.transforms import v2
middle = time.perf_counter()
from sampdetox_transforms import DetoxLoader, DetoxWrapper, SampDetox
print(middle - start, time.perf_counter() - middle)
"""

STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def with_batch_size(detox: SampDetox, batch_size: int) -> SampDetox:
    """The same transform, sharing the network, that takes so many images at once."""
    other = copy.copy(detox)
    other.batch_size = batch_size
    return other


def batch_of(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "size c h w"]:
    """So many images, from the beginning again where there are too few."""
    return images[torch.arange(size) % len(images)]


def measure_import(repeats: int) -> tuple[float, float]:
    """Seconds that a new process takes to import torch and torchvision, and then this package's classes: medians."""
    found = []
    for _ in range(repeats):
        run = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
        first, second = run.stdout.split()
        found.append((float(first), float(second)))
    return median(first for first, _ in found), median(second for _, second in found)


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int, repeats: int) -> float:
    """FLOP per second of a product of two square matrices."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / median(time_runs(lambda: a @ a, device, repeats))


def network_of(detox: SampDetox, images: Float[Tensor, "b c h w"]) -> Callable[[Tensor, Tensor], Tensor]:
    """The denoiser that images of this size are given to for the light stage: it may be one of their own."""
    if detox.restorer is None or not isinstance(detox.settings, Restore):
        return detox.denoiser
    return detox.restorer.of(images).denoiser(detox.schedule, detox.settings.level_of(images)) or detox.denoiser


@torch.no_grad()
def count_flop(detox: SampDetox, image: Float[Tensor, "1 c h w"]) -> int:
    """FLOPs of an image's way through the denoiser, of convolutions, matrix products and attention."""
    channels, network = detox.denoiser.channels, network_of(detox, image)
    image = image.float().expand(-1, channels, -1, -1) if image.shape[1] == 1 else image.float()
    with FlopCounterMode(display=False) as counter:
        network(image[:, :channels], torch.zeros(1, device=image.device))
    return counter.get_total_flops()


def measure_batch(
    detox: SampDetox, images: Float[Tensor, "b c h w"], rate: float, flop: int, repeats: int
) -> BatchSpeed:
    """Purify one batch of images several times; ``rate`` and ``flop`` as in ``Benchmark``."""
    size, device, network = len(images), images.device, network_of(detox, images)
    detox = with_batch_size(detox, size)
    explained = []
    peak = peak_memory_mb(lambda: explained.append(detox.explain(images).network_calls), device)
    seconds = time_runs(lambda: detox(images), device, repeats)
    x = torch.rand(size, detox.denoiser.channels, *images.shape[2:], device=device) * 2 - 1
    t = torch.zeros(size, device=device)
    with torch.no_grad():
        seconds_of_call = median(time_runs(lambda: network(x, t), device, repeats))
    return BatchSpeed(
        batch_size=size,
        seconds=seconds,
        images_per_second=size / median(seconds),
        calls_per_image=float(explained[0].double().mean()),
        network_seconds=seconds_of_call,
        network_flop_per_second=flop * size / seconds_of_call,
        utilisation=flop * size / seconds_of_call / rate,
        peak_memory_mb=peak,
    )


def peak_memory_mb(run: Callable[[], Any], device: torch.device) -> float | None:
    """Megabytes at the most during a run; see ``BatchSpeed``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        RESET_PEAK.write_text("5")  # Linux: the peak of the resident size begins anew
    except OSError:
        run()
        return None
    run()
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def measure_parts(detox: SampDetox, images: Float[Tensor, "b c h w"], repeats: int) -> dict[str, float]:
    """Mean seconds of each of ``PARTS`` for one batch; "rest" is what is in none of the others.

    The algorithm is run beside the transform, with networks, map and noise that have clocks.
    """
    watch, x0 = Stopwatch(images.device), core_images(detox, images)
    algorithm, search = timed_algorithm(detox, watch), timed_search(detox, watch, images)
    denoiser = on_schedule(watch.timed("network", detox.denoiser), detox.denoiser.schedule, detox.schedule)
    noise = TimedNoise(fresh_noise, watch)
    with torch.no_grad():
        algorithm(x0, denoiser, detox.schedule, noise=noise, **search)  # warm-up
        watch.seconds.clear()
        started = clock(images.device)
        for _ in range(repeats):
            algorithm(x0, denoiser, detox.schedule, noise=noise, **search)
        inside = (clock(images.device) - started) / repeats
    known = {name: watch.seconds[name] / repeats for name in PARTS[:-1]}
    whole = median(time_runs(lambda: detox(images), images.device, repeats))
    return {**known, "rest": inside - sum(known.values()) + max(whole - inside, 0.0)}


def timed_algorithm(detox: SampDetox, watch: Stopwatch) -> Callable[..., Any]:
    """The algorithm of a transform's settings, with a map that has a clock, where it takes one."""
    settings = detox.settings
    if not isinstance(settings, Algorithm1):
        return settings.run
    timed = copy.copy(settings)
    object.__setattr__(timed, "difference", watch.timed("SSIM map", settings.difference))
    return timed.run


def timed_search(detox: SampDetox, watch: Stopwatch, images: Tensor) -> dict[str, Any]:
    """What the algorithm takes of a search, with networks that have clocks; nothing for one without."""
    if detox.restorer is None:
        return {}
    networks = copy.copy(detox.restorer.of(images))
    denoiser_for = networks.denoiser

    def timed(schedule: Schedule, level: float) -> Denoiser | None:
        own = denoiser_for(schedule, level)
        return own and watch.timed("network", own)

    object.__setattr__(networks, "denoiser", timed)
    for name in ("look", "estimate", "fill"):
        object.__setattr__(networks, name, watch.timed("network", getattr(networks, name)))
    return {"networks": networks, "calibrations": detox.calibration}


def core_images(detox: SampDetox, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "n k h w"]:
    """Images in [-1, 1] with the network's channels: a grey network gets one colour after the other."""
    x, wanted = images.float() * 2 - 1, detox.denoiser.channels
    return x.flatten(0, 1)[:, None] if x.shape[1] > wanted else x.expand(-1, wanted, -1, -1)


def measure_defended(
    detox: SampDetox, classifier: nn.Module, images: Float[Tensor, "b c h w"], name: str, repeats: int
) -> DefendedSpeed:
    """One batch through a classifier, and through purification and the classifier."""
    device, dtype = images.device, detox.denoiser.dtype
    network: Any = classifier.eval().to(device, dtype)
    network = network.to(memory_format=torch.channels_last)
    detox = with_batch_size(detox, len(images))

    def classify(x: Tensor) -> Tensor:
        return network(x.to(dtype, memory_format=torch.channels_last))

    with torch.no_grad():
        alone = median(time_runs(lambda: classify(images), device, repeats))
        defended = median(time_runs(lambda: classify(detox(images)), device, repeats))
    return DefendedSpeed(name, len(images), alone, defended, defended / alone)
