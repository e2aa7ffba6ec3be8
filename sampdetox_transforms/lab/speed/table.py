"""What a benchmark measured, and its table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PARTS = ("network", "SSIM map", "noise", "rest")


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
        flop_per_call: of one image's way through the denoiser of its size; a multiplication and an addition are two.
        first_call_seconds: of the very first batch, at the first batch size, before any warm-up.
        import_seconds: of torch and torchvision in a new process, and of this package's classes after them.
        batches: by batch size.
        parts: seconds of all networks, the map, the noise and the rest, for one batch of ``parts_batch_size`` images.
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
        f"Cost: {result.flop_per_call / 1e9:.4g} GFLOP an image and call of the denoiser; the matmul rate is "
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
    walk = f"{s['sampler']}, stride {s['stride']}, " if "sampler" in s else ""  # of every level otherwise
    shape = "x".join(map(str, s["image_shape"]))
    facts.append(
        f"Weights `{s['weights']}`, t1={s['t1']}, t2={s['t2']}, {walk}{s['dtype']}, "
        f"images {shape}, medians of {s['repeats']} runs; {e['hardware']}, torch {e['torch']}, sampdetox-transforms "
        f"{e['sampdetox-transforms']} ({e['commit'] or 'no checkout'})."
    )
    return "\n".join(lines) + "\n\n" + "\n\n".join(facts)


def about(result: Benchmark) -> Mapping[str, Any]:
    """The result as JSON takes it, with the shares beside the seconds."""
    return {**asdict(result), "shares": result.shares}
