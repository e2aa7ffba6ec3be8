"""A whole benchmark on a tiny network, and what is refused."""

import json
import math
from dataclasses import replace
from statistics import median

import pytest
from clockwork import pixels

from sampdetox_transforms import SampDetox
from sampdetox_transforms.lab.speed import benchmark
from sampdetox_transforms.lab.speed.measure import measure_import
from sampdetox_transforms.lab.speed.table import PARTS, about, render

IMPORT = (2.0, 0.25)
QUICK = {"batch_sizes": (1, 2), "repeats": 2, "naive_every": 60, "classifier": "preact-resnet18-narrow",
         "classifier_batch_size": 2}  # fmt: skip


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
        assert batch.images_per_second == pytest.approx(batch.batch_size / median(batch.seconds))
        assert batch.utilisation == pytest.approx(batch.network_flop_per_second / result.matmul_flop_per_second)
    assert math.isclose(sum(result.shares.values()), 1) and list(result.shares) == list(PARTS)
    assert result.parts_batch_size == 2 and result.first_call_seconds > 0
    fastest = max(result.batches, key=lambda batch: batch.images_per_second)
    assert result.naive is not None and result.naive.batch_size == fastest.batch_size
    assert result.naive.ratio == pytest.approx(result.naive.seconds_per_image * fastest.images_per_second)
    assert result.naive.paper_seconds_per_image < result.naive.seconds_per_image
    assert result.defended.ratio == pytest.approx(result.defended.defended_seconds / result.defended.alone_seconds)
    assert {"hardware", "torch", "commit"} <= set(result.environment)
    assert steps[:2] == ["import", "matrix product"] and len(steps) == 7
    assert result.import_seconds == IMPORT and "this package 0.25 s more (12.5%)" in render(result)

    document = json.loads(json.dumps(about(result)))
    assert document["batches"][1]["batch_size"] == 2 and document["settings"]["dtype"] == "float32"
    text = render(result)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and all(row.count("|") == rows[0].count("|") for row in rows)
    assert "4 of them measured, the others extrapolated" in text
    whole = replace(result, naive=replace(result.naive, levels_walked=240))
    assert "240 calls, all measured" in render(whole)
    assert "authors" not in render(replace(result, naive=None))


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
