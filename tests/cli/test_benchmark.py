"""``sampdetox benchmark``: what is printed and written; the measuring itself has tests of its own."""

import json
from pathlib import Path

import pytest
import torch
from cli_pictures import colours, save

from sampdetox_transforms import SampDetox
from sampdetox_transforms.cli.benchmark import data_name
from sampdetox_transforms.lab.speed import benchmark as speed
from sampdetox_transforms.lab.speed.images import benchmark_images
from sampdetox_transforms.transforms import transform


@pytest.fixture
def bench(run, tiny, monkeypatch):
    """Call ``benchmark`` on as little as there is; what starts processes or takes seconds is measured elsewhere."""
    monkeypatch.setattr(speed, "measure_import", lambda repeats: (2.0, 0.5))
    monkeypatch.setattr(speed, "matmul_rate", lambda *settings: 1e9)

    def call(*flags):
        small = ("--size", 8, "--batch-sizes", "1,2", "--repeats", 1, "--naive-images", 0)
        small += ("--classifier", "preact-resnet18-narrow", "--device", "cpu")
        return run("benchmark", "--weights", tiny, *small, *flags)

    return call


def test_the_table_is_printed_and_three_files_are_written(bench, tiny, tmp_path):
    out = tmp_path / "new/speed.json"
    status, printed, err = bench("--out", out)
    assert status == 0 and "measuring: batch size 2" in err
    assert sorted(path.name for path in out.parent.iterdir()) == ["speed.json", "speed.md", "speed.png"]
    document = json.loads(out.read_text())
    assert document["about"]["data"] == "drawn signs" and document["settings"]["image_shape"] == [3, 8, 8]
    assert document["about"]["command"].startswith(f"sampdetox benchmark --weights {Path(tiny).name} --preset restore")
    assert str(Path(tiny).parent) not in document["about"]["command"]
    assert printed.strip() in out.with_suffix(".md").read_text()


def test_json_and_quiet(bench):
    status, printed, err = bench("--json", "--quiet")
    assert (status, err) == (0, "") and json.loads(printed)["about"]["preset"] == "restore"


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--size", 0), "--size must be 1 or more, got 0"),
        (("--out", "speed.txt"), "--out must end in .json, got speed.txt"),
        (("--batch-sizes", "1;8"), "--batch-sizes must be whole numbers with commas between, got '1;8'"),
        (("--preset", "papr"), "Did you mean 'paper'"),
    ],
)
def test_benchmark_refuses_before_any_work(bench, flags, reason):
    status, printed, err = bench(*flags)
    assert (status, printed) == (2, "") and reason in err and err.count("\n") == 1


def test_doors_are_handed_on_where_they_are_given(bench, tmp_path, monkeypatch):
    handed = []

    def build(weights, **settings):
        handed.append({name: settings.pop(name) for name in ("calibration", "restorer") if name in settings})
        return SampDetox(weights, **settings)

    def stop(*args, **settings):
        raise ValueError("far enough")

    monkeypatch.setattr(transform, "SampDetox", build)
    monkeypatch.setattr(speed, "benchmark", stop)
    assert "far enough" in bench()[2]
    assert "far enough" in bench("--calibration", tmp_path / "c.json", "--restorer", tmp_path)[2]
    assert handed == [{}, {"calibration": tmp_path / "c.json", "restorer": tmp_path}]


def test_images_come_from_a_folder_or_are_drawn(tmp_path):
    for i in range(3):
        save(tmp_path / f"data/{i % 2}/{i}.png", colours(i))
    images = benchmark_images(str(tmp_path / "data"), 8, 2)
    assert images.shape == (2, 3, 8, 8) and torch.equal(images, benchmark_images(str(tmp_path / "data"), 8, 2))
    assert benchmark_images(None, 8, 5).shape == (5, 3, 8, 8)
    assert (data_name(None), data_name("/a/b/c")) == ("drawn signs", "b/c")
