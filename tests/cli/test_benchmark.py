"""``sampdetox benchmark``."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sampdetox_transforms.cli import main as cli
from sampdetox_transforms.lab.speed import benchmark


@pytest.fixture(autouse=True)
def _import_is_known(monkeypatch):
    monkeypatch.setattr(benchmark, "measure_import", lambda repeats: (2.0, 0.25))


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
