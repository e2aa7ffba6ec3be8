"""The sdist, and the wheel built from it, hold what a user needs, and work where the sources are not."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("build")
pytest.importorskip("hatchling")


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist of the sources, and the wheel that is built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return out


def test_the_wheel_holds_the_weights_and_stays_small(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        sizes = {info.filename: info.compress_size for info in file.infolist() if "/weights/" in info.filename}
    assert sum(size for name, size in sizes.items() if "/networks/weights/bundled/" in name) <= 10_000_000
    assert sum(sizes.values()) <= 40_000_000
    for name in (
        "sampdetox_transforms/py.typed",
        "sampdetox_transforms/networks/weights/bundled/config.json",
        "sampdetox_transforms/networks/weights/restorer/photographs.safetensors",
        "sampdetox_transforms/networks/weights/bundled/sampdetox.json",
        "sampdetox_transforms/networks/weights/bundled/diffusion_pytorch_model.safetensors",
        "sampdetox_transforms/lab/demo/weights/classifier.safetensors",
        "sampdetox_transforms/lab/demo/weights/classifier128.safetensors",
        "sampdetox_transforms/lab/demo/pictures/SOURCES.txt",
        "sampdetox_transforms/lab/demo/pictures/coffee.jpg",
        "sampdetox_transforms/cli/app/page.html",
    ):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "examples/"))]


def test_the_sdist_holds_the_tests(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    assert {"tests/reference.py", "README.md", "CHANGELOG.md", "examples/compose.py"} <= names


def test_the_installed_wheel_works(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    code = (
        "import torch, sampdetox_transforms as sd; print(sd.__file__);"
        "print(sd.SampDetox('bundled', seed=0)(torch.zeros(3, 9, 9)).shape)"
    )
    printed = run(sys.executable, "-c", code, cwd=tmp_path, env=environment)
    assert printed.splitlines() == [str(site / "sampdetox_transforms" / "__init__.py"), "torch.Size([3, 9, 9])"]
    assert (site / "bin" / "sampdetox").exists()
