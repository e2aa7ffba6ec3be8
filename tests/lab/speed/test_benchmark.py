"""``sampdetox benchmark``: with a clock of our own every number is known beforehand; real times are never asserted."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from reference import DrawnNoise, toy_denoiser
from torch import nn

from sampdetox_transforms import Denoiser, SampDetox, Schedule
from sampdetox_transforms.cli import main as cli
from sampdetox_transforms.lab.speed import benchmark
from sampdetox_transforms.lab.speed.measure import measure_import
from sampdetox_transforms.method.authors_code import purify_authors_code
from sampdetox_transforms.transforms import presets
from sampdetox_transforms.transforms import transform as transforms

IMPORT = (2.0, 0.25)
CPU = torch.device("cpu")
QUICK = {"batch_sizes": (1, 2), "repeats": 2, "naive_every": 60, "classifier": "preact-resnet18-narrow",
         "classifier_batch_size": 2}  # fmt: skip


class Clock:
    """A clock that stands still but for what ``passes`` is told, in place of ``benchmark.clock``."""

    def __init__(self):
        self.now = 0.0

    def __call__(self, device) -> float:
        return self.now

    def __deepcopy__(self, memo) -> "Clock":  # there is one clock, whatever holds it
        return self

    def passes(self, seconds: float, function):
        """``function``, which takes so long."""

        def run(*args, **kwargs):
            self.now += seconds
            return function(*args, **kwargs)

        return run


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(benchmark, "clock", made)
    return made


class Slow(nn.Module):
    """A network that takes so many seconds an image, and a half for each call."""

    def __init__(self, clock: Clock, seconds: float):
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        self.clock.now += self.seconds * len(x) + 0.5
        return self.conv(x)


def slow(clock: Clock, seconds: float = 2.0) -> Denoiser:
    return Denoiser(Slow(clock, seconds), Schedule.named("linear"))


def pixels(n: int = 3, size: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def speed(**changes) -> benchmark.BatchSpeed:
    return replace(benchmark.BatchSpeed(4, [2.0], 2.0, 7.0, 0.1, 1e9, 0.5, 100.0), **changes)


# The parts


def test_parts_are_told_apart(clock, monkeypatch):
    monkeypatch.setattr(transforms, "fresh_noise", clock.passes(1, transforms.fresh_noise))
    monkeypatch.setattr(presets, "dissimilarity_map", clock.passes(3, presets.dissimilarity_map))
    monkeypatch.setattr(SampDetox, "_to_core", clock.passes(5, SampDetox._to_core))
    detox = SampDetox(slow(clock), preset="ddim", batch_size=4)
    parts = benchmark.measure_parts(detox, pixels(4), repeats=3)
    assert parts == {"network": 7 * (2 * 4 + 0.5), "SSIM map": 3, "noise": 2, "rest": 5}


def test_measuring_parts_leaves_the_transform_as_it_was(tiny):
    detox = SampDetox(str(tiny), preset="ddim", seed=0)
    before, settings = detox(pixels()), detox.settings
    parts = benchmark.measure_parts(detox, pixels(), repeats=1)
    assert list(parts) == list(benchmark.PARTS) and all(seconds > 0 for seconds in parts.values())
    assert detox.settings is settings and torch.equal(detox(pixels()), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in detox.modules())


@pytest.mark.parametrize("preset", ["authors-code", "paper"])
def test_parts_of_other_presets(preset, fast_denoiser):
    preset = replace(presets.PRESETS[preset], t1=2, t2=3)
    parts = benchmark.measure_parts(SampDetox(fast_denoiser, preset=preset), pixels(1), repeats=1)
    assert parts["network"] > 0 and parts["noise"] > 0
    assert (parts["SSIM map"] > 0) == (preset.gate == "own-level")


def test_noise_with_a_clock_is_the_same_noise(clock):
    class Half:
        def __call__(self, like):
            return like

        def subset(self, keep):
            return clock.passes(7, lambda like: like / 2)

    watch = benchmark.Stopwatch(CPU)
    noise = benchmark.TimedNoise(Half(), watch)
    assert torch.equal(noise(torch.ones(2)), torch.ones(2)) and watch.seconds["noise"] == 0
    part = noise.subset(torch.tensor([0]))
    assert torch.equal(part(torch.ones(1)), torch.full((1,), 0.5)) and watch.seconds["noise"] == 7


# One batch


def test_a_batch_is_measured_in_seconds_calls_and_flop(clock):
    detox = SampDetox(slow(clock), preset="ddim", batch_size=1)
    found = benchmark.measure_batch(detox, pixels(4), rate=1e6, flop=17, repeats=3)
    assert found.batch_size == 4 and found.calls_per_image == 7
    assert found.seconds == [7 * 8.5] * 3, "the batch did not go through the network at once"
    assert found.images_per_second == pytest.approx(4 / (7 * 8.5))
    assert found.network_seconds == 8.5
    assert found.network_flop_per_second == pytest.approx(17 * 4 / 8.5)
    assert found.utilisation == pytest.approx(17 * 4 / 8.5 / 1e6)
    assert detox.batch_size == 1


def test_flop_are_counted():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    expected = 2 * 3 * 3 * 9 * 8 * 8  # a multiplication and an addition for each weight and place
    denoiser = Denoiser(lambda x, t: conv(x), Schedule.named("linear"))
    assert benchmark.count_flop(denoiser, pixels(1)) == expected
    assert benchmark.count_flop(denoiser, pixels(1)[:, :1]) == expected


def test_the_matmul_rate(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(benchmark, "clock", lambda device: next(ticks))
    assert benchmark.matmul_rate(CPU, torch.float32, 8, repeats=3) == 2 * 8**3


def test_runs_after_a_warm_up_are_counted(clock):
    lengths = iter((100, 1, 2, 3))

    def run():
        clock.now += next(lengths)

    assert benchmark.time_runs(run, CPU, 3) == [1, 2, 3]


def test_peak_memory(monkeypatch, tmp_path):
    kept = []
    if benchmark.RESET_PEAK.exists():
        little = benchmark.peak_memory_mb(lambda: None, CPU)
        # not a tensor: torch may take one from memory that it kept from an earlier test
        much = benchmark.peak_memory_mb(lambda: kept.append(b"x" * 120_000_000), CPU)
        assert little is not None and much is not None and 100 < much - little < 400
    monkeypatch.setattr(benchmark, "RESET_PEAK", tmp_path / "no" / "such")
    assert benchmark.peak_memory_mb(lambda: kept.append("ran"), CPU) is None and kept[-1] == "ran"


def test_batches_begin_again_where_images_run_out():
    images = pixels(3)
    assert torch.equal(benchmark.batch_of(images, 7), images[[0, 1, 2, 0, 1, 2, 0]])
    assert torch.equal(benchmark.batch_of(images, 2), images[:2])


# The classifier behind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_classifier_alone_and_behind(clock, dtype):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3 * 8 * 8, 2)

        def forward(self, x):
            clock.now += 10
            assert x.dtype == self.linear.weight.dtype == dtype
            return self.linear(x.flatten(1))

    detox = SampDetox(slow(clock), preset="ddim", dtype=dtype)
    found = benchmark.measure_defended(detox, Counted(), pixels(2), "counted", repeats=2)
    assert found == benchmark.DefendedSpeed("counted", 2, 10, 10 + 7 * 4.5, (10 + 7 * 4.5) / 10)


# The authors' loop


def test_the_naive_loop_is_the_authors_algorithm():
    x0 = pixels(1, 6) * 2 - 1
    schedule = Schedule.named("linear")
    found = benchmark.naive_purify(
        x0, toy_denoiser, schedule, t1=6, t2=9, noise=DrawnNoise(x0.shape, calls=14, dtype=torch.float32)
    )
    expected = purify_authors_code(
        x0, toy_denoiser, schedule, t1=6, t2=9, noise=DrawnNoise(x0.shape, calls=14, dtype=torch.float32)
    )
    assert expected.timestep_map.unique().numel() > 3, "the gate is not put to a test"
    torch.testing.assert_close(found, expected.image, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("every", "walked"), [(1, 240), (10, 24), (7, 36), (120, 2)])
def test_levels_that_are_not_walked_are_extrapolated(clock, every, walked):
    detox = SampDetox(slow(clock, seconds=0.5), preset="ddim")  # a second a call at batch 1
    found = benchmark.measure_naive(detox, pixels(2, 4), speed(images_per_second=4.0), every=every)
    assert (found.images, found.levels, found.levels_walked, found.batch_size) == (2, 240, walked, 4)
    assert found.seconds_per_image == pytest.approx(240) and found.paper_seconds_per_image == pytest.approx(140)
    assert found.ratio == pytest.approx(240 * 4) and found.paper_ratio == pytest.approx(140 * 4)


def test_what_is_done_once_is_not_extrapolated(clock, monkeypatch):
    monkeypatch.setattr(benchmark, "ssim_map", clock.passes(1000, benchmark.ssim_map))
    detox = SampDetox(slow(clock, seconds=0.5), preset="ddim")
    found = benchmark.measure_naive(detox, pixels(1, 4), speed(), every=60)
    assert found.seconds_per_image == pytest.approx(1240)


def test_a_denoiser_of_few_levels_walks_those_it_knows(clock, fast_denoiser):
    detox = SampDetox(Denoiser(Slow(clock, 0.5), Schedule.named("linear"), max_level=41), preset="ddim", t2=40)
    found = benchmark.measure_naive(detox, pixels(1, 4), speed(), every=10)
    assert (found.levels, found.levels_walked) == (80, 8)
    assert found.seconds_per_image == pytest.approx(80) and found.paper_seconds_per_image == pytest.approx(60)


# All together


@pytest.fixture(autouse=True)
def _import_is_known(monkeypatch):
    monkeypatch.setattr(benchmark, "measure_import", lambda repeats: IMPORT)


def test_the_package_adds_little_to_the_import_of_torch():
    torch_alone, package = measure_import(1)
    assert 0 < package < torch_alone


def test_everything_on_a_tiny_network(tiny):
    steps = []
    result = benchmark.benchmark(SampDetox(str(tiny), preset="ddim"), pixels(), progress=steps.append, **QUICK)
    assert [batch.batch_size for batch in result.batches] == [1, 2]
    for batch in result.batches:
        assert len(batch.seconds) == 2
        assert batch.images_per_second == pytest.approx(batch.batch_size / (sum(batch.seconds) / 2))
        assert batch.utilisation == pytest.approx(batch.network_flop_per_second / result.matmul_flop_per_second)
    assert math.isclose(sum(result.shares.values()), 1) and list(result.shares) == list(benchmark.PARTS)
    assert result.parts_batch_size == 2 and result.first_call_seconds > 0
    fastest = max(result.batches, key=lambda batch: batch.images_per_second)
    assert result.naive is not None and result.naive.batch_size == fastest.batch_size
    assert result.naive.ratio == pytest.approx(result.naive.seconds_per_image * fastest.images_per_second)
    assert result.naive.paper_seconds_per_image < result.naive.seconds_per_image
    assert result.defended.ratio == pytest.approx(result.defended.defended_seconds / result.defended.alone_seconds)
    assert {"hardware", "torch", "commit"} <= set(result.environment)
    assert steps[:2] == ["import", "matrix product"] and len(steps) == 7
    assert result.import_seconds == IMPORT and "this package 0.25 s more (12.5%)" in benchmark.render(result)

    document = json.loads(json.dumps(benchmark.about(result)))
    assert document["batches"][1]["batch_size"] == 2 and document["settings"]["dtype"] == "float32"
    text = benchmark.render(result)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and all(row.count("|") == rows[0].count("|") for row in rows)
    assert "4 of them measured, the others extrapolated" in text
    whole = replace(result, naive=replace(result.naive, levels_walked=240))
    assert "240 calls, all measured" in benchmark.render(whole)
    assert "authors" not in benchmark.render(replace(result, naive=None))


def test_grey_networks_are_measured_too(tiny_grey):
    settings = {**QUICK, "batch_sizes": (2,), "naive_images": 0, "repeats": 1}
    result = benchmark.benchmark(SampDetox(str(tiny_grey), preset="ddim"), pixels(), **settings)
    assert result.naive is None and result.batches[0].calls_per_image == 21


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": ()}, r"batch sizes must be whole numbers of 1 or more, got \[\]\. Give"),
        ({"batch_sizes": (4, 0)}, r"got \[4, 0\]\. Give"),
        ({"batch_sizes": (True,)}, r"got \[True\]"),
        ({"repeats": 0}, r"repeats must be 1 or more, got 0\. Leave"),
        ({"naive_images": -1}, r"naive_images must be 0 or more, got -1"),
        ({"naive_every": 0}, r"naive_every must be 1 or more"),
        ({"classifier_batch_size": 0}, r"classifier_batch_size must be 1 or more"),
        ({"classifier": "vit"}, r"classifier must be"),
    ],
)
def test_settings_out_of_range_are_refused(forbidden, changes, message):
    with pytest.raises(ValueError, match=message):
        benchmark.benchmark(SampDetox(forbidden), pixels(), **{**QUICK, **changes})


@pytest.mark.parametrize("images", [pixels()[0], pixels()[:0], (pixels() * 255).byte()])
def test_images_of_another_kind_are_refused(forbidden, images):
    with pytest.raises(ValueError, match=r"images must be floats \(n, c, h, w\), n > 0, got .*Stack"):
        benchmark.benchmark(SampDetox(forbidden), images, **QUICK)


# The command


@pytest.fixture
def run(capsys, tiny):
    def call(*flags) -> tuple[int, str, str]:
        capsys.readouterr()
        small = ("--size", 8, "--batch-sizes", "1,2", "--repeats", 1, "--naive-every", 120)
        arguments = ["benchmark", "--weights", tiny, "--device", "cpu", *small]
        arguments += ["--classifier", "preact-resnet18-narrow", *flags]
        status = cli.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


def test_the_command_prints_a_table_and_writes_three_files(run, tiny, tmp_path):
    out = tmp_path / "new" / "speed.json"
    status, printed, err = run("--out", out)
    assert status == 0, err
    assert "measuring: batch size 2" in err
    assert sorted(path.name for path in out.parent.iterdir()) == ["speed.json", "speed.md", "speed.png"]
    document = json.loads(out.read_text())
    assert document["about"]["data"] == "drawn signs" and document["settings"]["image_shape"] == [3, 8, 8]
    assert str(Path(tiny).parent) not in document["about"]["command"]
    assert set(document["environment"]) >= {"hardware", "commit"}
    assert printed.strip() in out.with_suffix(".md").read_text() and document["about"]["command"] in (
        out.with_suffix(".md").read_text()
    )
    with Image.open(out.with_suffix(".png")) as image:
        assert image.width > 500


def test_the_command_takes_images_of_a_folder(run, tmp_path):
    (tmp_path / "data/class").mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (9, 9), (40 * i, 90, 10)).save(tmp_path / f"data/class/{i}.png")
    status, printed, err = run("--data", tmp_path / "data", "--naive-images", 0, "--dtype", "bfloat16")
    assert status == 0, err
    assert "images 3x8x8" in printed and "bfloat16" in printed and "authors" not in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--out", "x.txt"), "--out must end in .json"),
        (("--batch-sizes", "0"), "batch sizes must be whole numbers"),
        (("--size", 0), "--size must be 1 or more"),
        (("--preset", "fast"), "preset must be"),
        (("--classifier", "vit"), "classifier must be"),
        (("--data", "nowhere"), "the data must be a folder"),
    ],
)
def test_the_command_refuses(run, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    status, printed, err = run(*flags)
    assert (status, printed) == (2, "") and message in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
