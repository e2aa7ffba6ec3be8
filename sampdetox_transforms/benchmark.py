"""How fast purification is, what takes its time, and beside what: the authors' loop, the classifier behind it.

The method itself holds no clocks: the network, the map and the noise are wrapped where they are handed over, in runs
of their own. On CUDA every clock waits for the device.
"""

import copy
import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sampdetox_transforms import environment
from sampdetox_transforms.checkpoints import Denoiser
from sampdetox_transforms.classifiers import CLASSIFIERS, build_classifier
from sampdetox_transforms.names import check_choice
from sampdetox_transforms.noise import fresh_noise, subset
from sampdetox_transforms.samplers import Noise
from sampdetox_transforms.schedule import Schedule
from sampdetox_transforms.ssim import minmax, ssim_map
from sampdetox_transforms.transforms import SampDetox

PARTS = ("network", "SSIM map", "noise", "rest")
AUTHORS_LEVELS, PAPER_LEVELS = (120, 120), (20, 120)  # t1 and t2 of the released code, and of the paper's text
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


@dataclass(frozen=True)
class BatchSpeed:
    """Purification at one batch size.

    Attributes:
        seconds: of each run, for one batch.
        images_per_second: of the median run.
        calls_per_image: how often an image went through the network, as a mean.
        network_seconds: of one network call on such a batch, the median.
        network_flop_per_second: of that call, from counted FLOPs.
        utilisation: that rate as a share of the measured matmul rate.
        peak_memory_mb: on CUDA what was allocated on the card, else what was resident of the whole process, at most;
            None where the system does not tell.
    """

    batch_size: int
    seconds: list[float]
    images_per_second: float
    calls_per_image: float
    network_seconds: float
    network_flop_per_second: float
    utilisation: float
    peak_memory_mb: float | None


@dataclass(frozen=True)
class NaiveSpeed:
    """The paper's algorithm as its authors wrote it: batch 1, DDPM, every level, a Python loop over the pixels.

    Attributes:
        images: how many it was measured on.
        levels, levels_walked: of both stages together; what was not walked is extrapolated, each stage by itself.
        seconds_per_image: at the levels 120 and 120 of the authors' code; ``paper_`` at 20 and 120, the paper's.
        ratio, paper_ratio: to the time of an image at ``batch_size``, the fastest one measured.
    """

    images: int
    levels: int
    levels_walked: int
    seconds_per_image: float
    paper_seconds_per_image: float
    ratio: float
    paper_ratio: float
    batch_size: int


@dataclass(frozen=True)
class DefendedSpeed:
    """A classifier alone, and behind purification; both in the dtype and memory format of the denoiser.

    Attributes:
        alone_seconds, defended_seconds: of one batch, the medians.
        ratio: of the second to the first.
    """

    classifier: str
    batch_size: int
    alone_seconds: float
    defended_seconds: float
    ratio: float


@dataclass(frozen=True)
class Benchmark:
    """All that ``benchmark`` measured; ``dataclasses.asdict`` is what goes into JSON.

    Attributes:
        settings: of the purification and of the runs.
        environment: hardware, versions and commit.
        matmul_size, matmul_flop_per_second: of a product of two square matrices in the network's dtype.
        flop_per_call: of one image's way through the network, counted; a multiplication and an addition are two.
        first_call_seconds: of the very first batch, at the first batch size, before any warm-up.
        import_seconds: of torch and torchvision in a new process, and of this package's classes after them.
        batches: by batch size.
        parts: seconds of the network, the map, the noise and the rest, for one batch of ``parts_batch_size`` images.
    """

    settings: dict[str, Any]
    environment: dict[str, str]
    matmul_size: int
    matmul_flop_per_second: float
    flop_per_call: int
    first_call_seconds: float
    import_seconds: tuple[float, float]
    batches: list[BatchSpeed]
    parts: dict[str, float]
    parts_batch_size: int
    naive: NaiveSpeed | None
    defended: DefendedSpeed

    @property
    def shares(self) -> dict[str, float]:
        """The share of each part in the time; 1 in all."""
        total = sum(self.parts.values())
        return {name: seconds / total for name, seconds in self.parts.items()}


def benchmark(
    detox: SampDetox,
    images: Float[Tensor, "n c h w"],
    *,
    batch_sizes: Sequence[int] = (1, 8, 64),
    repeats: int = 5,
    naive_images: int = 1,
    naive_every: int = 10,
    classifier: str = "preact-resnet18",
    classifier_batch_size: int = 64,
    num_classes: int = 43,
    progress: Callable[[str], None] = lambda step: None,
) -> Benchmark:
    """Measure one ``SampDetox`` on one machine: medians of ``repeats`` runs, after one for warm-up.

    Args:
        detox: with the network on the device, and in the dtype, to measure.
        images: in [0, 1]; they are repeated where a batch is larger.
        naive_images: how many to purify with the authors' loop; 0 leaves it out.
        naive_every: which of its levels to walk; 1 walks all, 10 every tenth, the others being extrapolated.
        classifier: a name of ``classifiers.CLASSIFIERS``, with random weights.
        progress: called with what is measured next.

    Raises:
        ValueError: a setting out of range; images that ``detox`` refuses.
    """
    sizes = list(batch_sizes)
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(f"batch sizes must be whole numbers of 1 or more, got {sizes}. Give 1,8,64, say.")
    for name, value, least in (
        ("repeats", repeats, 1),
        ("naive_images", naive_images, 0),
        ("naive_every", naive_every, 1),
        ("classifier_batch_size", classifier_batch_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}. Leave it out for the usual.")
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise ValueError(f"images must be floats (n, c, h, w), n > 0, got {tuple(images.shape)}. Stack them.")
    check_choice("classifier", classifier, tuple(CLASSIFIERS))
    device = detox.denoiser.device or images.device
    images = images.to(device)

    progress("import")
    import_seconds = measure_import(min(repeats, 3))
    progress("matrix product")
    matmul_size = MATMUL_SIZE.get(device.type, 1024)
    rate = matmul_rate(device, detox.denoiser.dtype, matmul_size, repeats)
    flop = count_flop(detox.denoiser, images[:1])
    started = clock(device)
    with_batch_size(detox, sizes[0])(batch_of(images, sizes[0]))
    first_call = clock(device) - started

    batches = []
    for size in sizes:
        progress(f"batch size {size}")
        batches.append(measure_batch(detox, batch_of(images, size), rate, flop, repeats))
    largest = max(sizes)
    progress("parts")
    parts = measure_parts(with_batch_size(detox, largest), batch_of(images, largest), repeats)
    progress(f"classifier {classifier}")
    network = build_classifier(classifier, num_classes, images.shape[1])
    defended = measure_defended(detox, network, batch_of(images, classifier_batch_size), classifier, repeats)
    naive = None
    if naive_images:
        progress("authors' loop")
        fastest = max(batches, key=lambda batch: batch.images_per_second)
        naive = measure_naive(detox, batch_of(images, naive_images), fastest, every=naive_every)
    s = detox.settings
    settings = {
        "weights": detox.denoiser.source,
        **{name: getattr(s, name) for name in ("t1", "t2", "sampler", "stride", "map", "window", "data_range")},
        "dtype": str(detox.denoiser.dtype).removeprefix("torch."),
        "image_shape": list(images.shape[1:]),
        "repeats": repeats,
        "naive_every": naive_every,
    }
    return Benchmark(
        settings=settings,
        environment=environment.describe(device),
        matmul_size=matmul_size,
        matmul_flop_per_second=rate,
        flop_per_call=flop,
        first_call_seconds=first_call,
        import_seconds=import_seconds,
        batches=batches,
        parts=parts,
        parts_batch_size=largest,
        naive=naive,
        defended=defended,
    )


# Clocks


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_runs(run: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` runs, after one that is not counted."""
    run()
    return time_each(run, device, repeats)


def time_each(run: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` runs."""
    seconds = []
    for _ in range(repeats):
        started = clock(device)
        run()
        seconds.append(clock(device) - started)
    return seconds


class Stopwatch:
    """Adds up, by name, the seconds that wrapped callables take."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time added to ``name``."""

        def run(*args, **kwargs):
            started = clock(self.device)
            result = function(*args, **kwargs)
            self.seconds[name] += clock(self.device) - started
            return result

        return run


class TimedNoise:
    """A source of noise with a clock."""

    def __init__(self, noise: Noise, watch: Stopwatch):
        self.noise, self.watch = noise, watch
        self.draw = watch.timed("noise", noise)

    def __call__(self, like: Tensor) -> Tensor:
        return self.draw(like)

    def subset(self, index: Tensor) -> "TimedNoise":
        return TimedNoise(subset(self.noise, index), self.watch)


class TimedSettings:
    """The settings of a ``SampDetox``, whose algorithm is handed a map and noise with clocks.

    A preset whose algorithm takes no map (the authors' code) has its map counted under "rest".
    """

    def __init__(self, settings: Any, watch: Stopwatch):
        self.settings, self.watch = settings, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.settings, name)

    def algorithm(self) -> Callable[..., Any]:
        algorithm = self.settings.algorithm()
        clocks = {}
        if "dissimilarity" in algorithm.keywords:
            clocks["dissimilarity"] = self.watch.timed("SSIM map", algorithm.keywords["dissimilarity"])

        def run(*args, noise: Noise, **kwargs):
            return algorithm(*args, noise=TimedNoise(noise, self.watch), **clocks, **kwargs)

        return run


def timed_network(network: nn.Module, watch: Stopwatch) -> list[Any]:
    """Hooks that add the time of a module's calls to "network"; remove them afterwards."""
    started = []

    def before(*_) -> None:
        started.append(clock(watch.device))

    def after(*_) -> None:
        watch.seconds["network"] += clock(watch.device) - started.pop()

    return [network.register_forward_pre_hook(before), network.register_forward_hook(after)]


# Measurements


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


@torch.no_grad()
def count_flop(denoiser: Denoiser, image: Float[Tensor, "1 c h w"]) -> int:
    """FLOPs of an image's way through the network, of convolutions, matrix products and attention."""
    image = image.float().expand(-1, denoiser.channels, -1, -1) if image.shape[1] == 1 else image.float()
    with FlopCounterMode(display=False) as counter:
        denoiser(image[:, : denoiser.channels], torch.zeros(1, device=image.device))
    return counter.get_total_flops()


def measure_batch(
    detox: SampDetox, images: Float[Tensor, "b c h w"], rate: float, flop: int, repeats: int
) -> BatchSpeed:
    """Purify one batch of images several times; ``rate`` and ``flop`` as in ``Benchmark``."""
    size, device, denoiser = len(images), images.device, detox.denoiser
    detox = with_batch_size(detox, size)
    explained = []
    peak = peak_memory_mb(lambda: explained.append(detox.explain(images).network_calls), device)
    seconds = time_runs(lambda: detox(images), device, repeats)
    x = torch.rand(size, denoiser.channels, *images.shape[2:], device=device) * 2 - 1
    t = torch.zeros(size, device=device)
    with torch.no_grad():
        network = median(time_runs(lambda: denoiser(x, t), device, repeats))
    return BatchSpeed(
        batch_size=size,
        seconds=seconds,
        images_per_second=size / median(seconds),
        calls_per_image=float(explained[0].double().mean()),
        network_seconds=network,
        network_flop_per_second=flop * size / network,
        utilisation=flop * size / network / rate,
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
    """Mean seconds of each of ``PARTS`` for one batch; "rest" is what is in none of the others."""
    watch = Stopwatch(images.device)
    timed: Any = copy.copy(detox)
    timed.settings = TimedSettings(detox.settings, watch)
    # Whatever a transform holds beside the denoiser is a network, too.
    networks = [child.network if isinstance(child, Denoiser) else child for child in detox.children()]
    networks = [n if isinstance(n, nn.Module) else detox.denoiser for n in networks]
    timed(images)  # warm-up, before there are hooks
    watch.seconds.clear()
    hooks = [hook for network in networks for hook in timed_network(network, watch)]
    try:
        total = sum(time_each(lambda: timed(images), images.device, repeats))
    finally:
        for hook in hooks:
            hook.remove()
    known = {name: watch.seconds[name] / repeats for name in PARTS[:-1]}
    return {**known, "rest": max(total / repeats - sum(known.values()), 0.0)}


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


def measure_naive(detox: SampDetox, images: Float[Tensor, "n c h w"], fastest: BatchSpeed, *, every: int) -> NaiveSpeed:
    """Purify images one by one with ``naive_purify``; see ``NaiveSpeed`` for what is extrapolated."""
    denoiser, device = detox.denoiser, images.device
    highest = denoiser.max_level - 1  # it noises one level higher than it denoises
    (t1, t2), (paper_t1, paper_t2) = (tuple(min(t, highest) for t in ts) for ts in (AUTHORS_LEVELS, PAPER_LEVELS))
    x0 = images.float()[:, : denoiser.channels].expand(-1, denoiser.channels, -1, -1) * 2 - 1
    watch = Stopwatch(device)
    walks = watch.timed("stage 1", naive_walk), watch.timed("stage 2", naive_walk)
    started = clock(device)
    with torch.no_grad():
        for image in x0:
            naive_purify(image[None], denoiser, denoiser.schedule, t1=t1, t2=t2, every=every, walks=walks)
    total = clock(device) - started
    walked = math.ceil(t1 / every), math.ceil(t2 / every)
    level1, level2 = (watch.seconds[f"stage {i + 1}"] / walked[i] for i in range(2))  # of all images
    once = total - sum(watch.seconds.values())
    seconds = (once + level1 * t1 + level2 * t2) / len(images)
    paper = (once + level1 * paper_t1 + level2 * paper_t2) / len(images)
    ours = 1 / fastest.images_per_second
    return NaiveSpeed(
        images=len(images),
        levels=t1 + t2,
        levels_walked=sum(walked),
        seconds_per_image=seconds,
        paper_seconds_per_image=paper,
        ratio=seconds / ours,
        paper_ratio=paper / ours,
        batch_size=fastest.batch_size,
    )


# The authors' loop


def naive_purify(
    x0: Float[Tensor, "1 c h w"],
    denoiser: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    *,
    t1: int = 120,
    t2: int = 120,
    every: int = 1,
    noise: Noise = fresh_noise,
    walks: tuple[Callable[..., Tensor], Callable[..., Tensor]] | None = None,
) -> Float[Tensor, "1 c h w"]:
    """What ``purify_authors_code`` computes, in the manner of the authors' program: one image, pixel by pixel.

    A yardstick for speed only, written anew. With ``every`` above 1 it takes steps of so many levels. The map is the
    package's, where the authors' is scikit-image's; it is made once.

    Args:
        x0: one image in [-1, 1].
        walks: what goes down the levels in each stage; ``naive_walk`` both times.
    """
    first, second = walks or (naive_walk, naive_walk)
    signal = [1.0, *schedule.alphas_cumprod.tolist()]
    shared = noise(x0)

    def noised(x: Tensor, z: Tensor, level: int) -> Tensor:
        return math.sqrt(signal[level]) * x + math.sqrt(1 - signal[level]) * z

    x = noised(x0, shared, t1 + 1)
    stage1 = first(x, denoiser, signal, t1, every, noise, None)
    similarity = ssim_map(x0, stage1, window="gaussian", data_range=255, channel_weights=(0.11, 0.59, 0.30))
    levels = (t2 * (1 - minmax(similarity))).trunc()[0, 0]
    x = stage1.clone()
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            x[0, :, i, j] = noised(stage1[0, :, i, j], shared[0, :, i, j], int(levels[i, j]) + 1)
    return second(x, denoiser, signal, t2, every, noise, levels)


def naive_walk(
    x: Float[Tensor, "1 c h w"],
    denoiser: Callable[[Tensor, Tensor], Tensor],
    signal: Sequence[float],
    start: int,
    every: int,
    noise: Noise,
    levels: Float[Tensor, "h w"] | None,
) -> Float[Tensor, "1 c h w"]:
    """DDPM from ``start`` to 0; with ``levels`` a loop over the pixels asks each whether it takes part in a step."""
    for level in range(start, 0, -every):
        after = max(level - every, 0)
        eps = denoiser(x, torch.full((1,), level - 1, device=x.device))
        alpha = signal[level] / signal[after]
        stepped = (x - (1 - alpha) / math.sqrt(1 - signal[level]) * eps) / math.sqrt(alpha)
        if after > 0:
            stepped = stepped + math.sqrt(1 - alpha) * noise(x)
        if levels is None:
            x = stepped
            continue
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                if levels[i, j] > after:
                    x[0, :, i, j] = stepped[0, :, i, j]
    return x.clamp(-1, 1)


# Tables


def render(result: Benchmark) -> str:
    """The numbers as Markdown."""
    lines = [
        "| batch size | images a second | ms an image | network calls an image | network GFLOP/s | of the matmul rate "
        "| peak memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for b in result.batches:
        numbers = (b.images_per_second, 1000 / b.images_per_second, b.calls_per_image, b.network_flop_per_second / 1e9)
        memory = "-" if b.peak_memory_mb is None else f"{b.peak_memory_mb:.0f}"
        cells = [str(b.batch_size), *(f"{value:.4g}" for value in numbers), f"{b.utilisation:.1%}", memory]
        lines.append(f"| {' | '.join(cells)} |")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result.shares.items())
    d, e, s = result.defended, result.environment, result.settings
    facts = [
        f"Share of the time at batch size {result.parts_batch_size}: {shares}.",
        f"Cost: {result.flop_per_call / 1e9:.4g} GFLOP a call and image; the matmul rate is "
        f"{result.matmul_flop_per_second / 1e9:.4g} GFLOP/s ({result.matmul_size} x {result.matmul_size}).",
        f"First call, batch size {result.batches[0].batch_size}: {result.first_call_seconds:.3g} s. Import: torch and "
        f"torchvision {result.import_seconds[0]:.3g} s, this package {result.import_seconds[1]:.3g} s more "
        f"({result.import_seconds[1] / result.import_seconds[0]:.1%}).",
        f"{d.classifier} at batch size {d.batch_size}: {1000 * d.alone_seconds / d.batch_size:.4g} ms an image alone, "
        f"{1000 * d.defended_seconds / d.batch_size:.4g} ms behind purification: {d.ratio:.3g} times.",
    ]
    if (n := result.naive) is not None:
        whole = n.levels_walked == n.levels
        how = "all measured" if whole else f"{n.levels_walked} of them measured, the others extrapolated"
        facts.append(
            f"The authors' loop, {n.levels} calls, {how}, {n.images} image{'s' if n.images > 1 else ''}: "
            f"{n.seconds_per_image:.3g} s an image, {n.ratio:.4g} times as long as batch size {n.batch_size}; with the "
            f"paper's levels of 20 and 120: {n.paper_seconds_per_image:.3g} s, {n.paper_ratio:.4g} times."
        )
    shape = "x".join(map(str, s["image_shape"]))
    facts.append(
        f"Weights `{s['weights']}`, t1={s['t1']}, t2={s['t2']}, {s['sampler']}, stride {s['stride']}, {s['dtype']}, "
        f"images {shape}, medians of {s['repeats']} runs; {e['hardware']}, torch {e['torch']}, sampdetox-transforms "
        f"{e['sampdetox-transforms']} ({e['commit'] or 'no checkout'})."
    )
    return "\n".join(lines) + "\n\n" + "\n\n".join(facts)


def about(result: Benchmark) -> Mapping[str, Any]:
    """The result as JSON takes it, with the shares beside the seconds."""
    return {**asdict(result), "shares": result.shares}
