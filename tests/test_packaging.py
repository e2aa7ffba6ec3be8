"""The sdist, and the wheel built from it, hold what a user needs, and work where the sources are not."""

import functools
import hashlib
import http.server
import os
import site
import subprocess
import sys
import tarfile
import threading
import tomllib
import venv
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


@pytest.fixture
def index(built, tmp_path):
    """The address of a package index on loopback that holds the wheel, and what was asked of it."""
    (wheel,) = built.glob("*.whl")
    folder = tmp_path / "index/simple/sampdetox-transforms"
    folder.mkdir(parents=True)
    (folder / wheel.name).write_bytes(wheel.read_bytes())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "index.html").write_text(f'<!DOCTYPE html><a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append((self.path, int(code)))

    handler = functools.partial(Handler, directory=str(tmp_path / "index"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple", asked
        server.shutdown()


@pytest.fixture
def beside(tmp_path) -> Path:
    """An environment with all that is installed here but this package."""
    folder = tmp_path / "needed"
    folder.mkdir()
    for packages in site.getsitepackages():
        for path in Path(packages).iterdir():
            own = path.name.startswith(("sampdetox_transforms", "_sampdetox", "__editable__", "_editable"))
            if not own and path.suffix not in (".pth", ".egg-link") and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    venv.create(tmp_path / "venv", with_pip=True)
    (own,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (own / "needed.pth").write_text(f"import sys; sys.path.insert(0, {str(folder)!r})\n")  # before an old setuptools
    return tmp_path / "venv/bin"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="an environment of links")
def test_it_is_installed_from_an_index_by_its_name(index, beside, tmp_path):
    """pip finds the wheel by the project's name, checks its hash, and every dependency by the name it has here."""
    address, asked = index
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "PIP_CONFIG_FILE": os.devnull, "OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "env": environment}
    command = ("-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check", "--index-url", address)
    printed = run(beside / "python", *command, "sampdetox-transforms", **options)
    assert "Successfully installed sampdetox-transforms-" in printed
    assert [code for path, code in asked if path.endswith(".whl")] == [200]
    assert all(path.startswith("/simple/sampdetox-transforms/") for path, _ in asked)  # nothing else was missing

    assert run(beside / "sampdetox", "--version", **options).startswith("sampdetox ")
    where = run(beside / "python", "-c", "import sampdetox_transforms as s; print(s.__file__)", **options)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    make = "from PIL import Image; Image.effect_noise((40, 36), 40).convert('RGB').save('photo.png')"
    run(beside / "python", "-c", make, **options)
    printed = run(
        beside / "sampdetox", "purify", "photo.png", "clean.png", "--weights", "bundled", "--seed", "0", **options
    )
    assert printed.startswith("purified 1;") and (tmp_path / "clean.png").stat().st_size > 0


# What the project says of itself


def test_every_extra_and_address_is_one_that_is_meant():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"ray", "integrations", "test", "docs", "dev"} <= set(project["optional-dependencies"])
    citation = (ROOT / "CITATION.cff").read_text()
    for name, address in project["urls"].items():
        assert address.startswith("https://"), name
        known = address.removeprefix("https://doi.org/")
        assert known in citation, f"{name}: the citation file does not know {address}"


@pytest.mark.skipif(not (ROOT / ".github").exists(), reason="an sdist has no workflows")
def test_workflows_run_what_the_project_supports():
    yaml = pytest.importorskip("yaml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = [line.split("::")[-1].strip() for line in project["classifiers"] if "Python :: 3." in line]
    files = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
    for name, job in (("tests.yml", "tests"), ("release.yml", "wheel")):
        assert files[name]["jobs"][job]["strategy"]["matrix"]["python"] == pythons
    assert project["requires-python"] == f">={pythons[0]}"
    publish = files["release.yml"]["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and set(publish["needs"]) == {"tests", "build", "wheel"}
    text = (ROOT / ".github/workflows/release.yml").read_text()
    assert "secrets." not in text and "password" not in text  # trusted publishing needs neither
    for content in files.values():
        assert content["permissions"] == {"contents": "read"}


@pytest.mark.skipif(not (ROOT / "conda").exists(), reason="an sdist has no recipe")
def test_the_conda_recipe_needs_what_the_wheel_needs():
    yaml = pytest.importorskip("yaml")
    recipe = yaml.safe_load((ROOT / "conda/recipe.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    theirs = {"huggingface-hub": "huggingface_hub", "matplotlib": "matplotlib-base", "torch": "pytorch"}
    needed = [line.split(">=") for line in project["dependencies"]]
    expected = [f"{theirs.get(name, name)} >={version}" for name, version in needed]
    assert sorted(recipe["requirements"]["run"]) == sorted([f"python {project['requires-python']}", *expected])
    assert f'__version__ = "{recipe["context"]["version"]}"' in (ROOT / "sampdetox_transforms/__init__.py").read_text()
