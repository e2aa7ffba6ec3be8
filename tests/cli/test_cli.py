"""The command line, called in-process on small pictures and a tiny network with random weights."""

import errno
import os
import struct
import subprocess
import sys
import types
import zlib
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from sampdetox_transforms import SampDetox, __version__, load_denoiser
from sampdetox_transforms.cli import main as cli
from sampdetox_transforms.cli.purify import tree as pictures_module
from sampdetox_transforms.lab.demo.demo import TRIGGERS
from sampdetox_transforms.lab.demo.signs import draw_signs
from sampdetox_transforms.lab.drawing import panel
from sampdetox_transforms.networks import checkpoints
from sampdetox_transforms.networks.catalogue import DetoxWeights
from sampdetox_transforms.networks.checkpoints import SAFETENSORS
from sampdetox_transforms.networks.hub import DownloadError
from sampdetox_transforms.training import denoiser as training
from sampdetox_transforms.transforms import transform as transforms

IDENTITY = ("--preset", "ddim", "--t1", "0", "--t2", "0")
TINY_RUN = (
    *("--size", 8, "--block-out-channels", "8,8", "--batch-size", 2),
    *("--workers", 0, "--no-bf16", "--warmup", 0, "--device", "cpu"),
)


@pytest.fixture
def weights(tiny) -> str:
    """A checkpoint folder with a tiny random network that knows the levels up to 160."""
    return str(tiny)


@pytest.fixture
def no_weights(monkeypatch):
    """Fail where weights are loaded before the error that is expected."""

    def refuse(*args, **kwargs):
        raise AssertionError("the weights were loaded first")

    monkeypatch.setattr(transforms, "load_denoiser", refuse)


def colours(seed: int = 0, size: tuple[int, ...] = (9, 12, 3), dtype: str = "uint8") -> np.ndarray:
    """Smooth random (h, w, c) pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype="uint8")).resize(
        size[1::-1], Image.Resampling.BICUBIC
    )
    array = np.asarray(small)[..., : size[2] if len(size) > 2 else 1]
    array = array if len(size) > 2 else array[..., 0]
    return array.astype(dtype) * 257 if dtype == "uint16" else array


def save(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def files(folder: Path) -> list[str]:
    """All files under a folder, temporary ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def png16(path: Path, colour_type: int, channels: int) -> Path:
    """A PNG with 16 bits a channel, which Pillow cannot write in colour."""
    values = np.random.default_rng(0).integers(0, 65536, (4, 4, channels)).astype(">u2")

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


# The program itself


def test_version_of_the_module_as_a_program():
    result = subprocess.run([sys.executable, "-m", "sampdetox_transforms", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, f"sampdetox {__version__}")


def test_help_is_quick_because_it_needs_none_of_the_heavy_modules():
    code = "import sys; from sampdetox_transforms import cli; cli.build_parser(); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "numpy", "PIL", "matplotlib", "huggingface_hub"} & set(result.stdout.split())


def test_no_command_prints_help(run):
    status, _, err = run()
    assert status == 2
    assert all(name in err for name in ("purify", "inspect", "weights", "train", "demo"))


@pytest.mark.parametrize("command", ["purify", "inspect", "train", "demo"])
def test_every_flag_says_its_default(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    options = capsys.readouterr().out.split("options:")[1]
    assert stop.value.code == 0
    assert options.count("(default") >= options.count("\n  --")


def test_an_interrupt_is_130(run, monkeypatch, tmp_path):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "plan", interrupt)
    status, _, err = run("purify", tmp_path, tmp_path / "out")
    assert status == 130 and "Traceback" not in err


# purify


def test_a_tree_is_mirrored_without_loss(run, weights, tmp_path):
    a = save(tmp_path / "in/a.png", colours(1))
    b = save(tmp_path / "in/deep/er/b.bmp", colours(2))
    c = save(tmp_path / "in/deep/c.JPG", colours(3, (16, 16, 3)), format="JPEG")
    d = save(tmp_path / "in/deep/d.webp", colours(4, (7, 5)), lossless=True)
    (tmp_path / "in/labels.csv").write_text("a,1\n")
    (tmp_path / "in/.hidden.png").write_text("no picture")
    status, out, err = run("purify", tmp_path / "in", tmp_path / "new/out", "--weights", weights, *IDENTITY)
    assert (status, err) == (0, "")
    assert "purified 4, left out 2 other files" in out
    assert files(tmp_path / "new/out") == ["a.png", "deep/c.png", "deep/d.png", "deep/er/b.png"]
    for source, name in ((a, "a"), (b, "deep/er/b"), (c, "deep/c"), (d, "deep/d")):
        with Image.open(tmp_path / f"new/out/{name}.png") as image:
            assert image.format == "PNG"
            assert np.array_equal(np.asarray(image), pixels(source))


def test_pictures_are_really_purified(run, weights, tmp_path):
    source = save(tmp_path / "a.png", colours())
    status, out, _ = run("purify", source, tmp_path / "b.png", "--weights", weights, "--seed", 1)
    assert status == 0 and "purified 1;" in out
    detox = transforms.SampDetox(weights, seed=1)
    with Image.open(source) as image:
        assert np.array_equal(pixels(tmp_path / "b.png"), np.asarray(detox(image)))
    assert not np.array_equal(pixels(tmp_path / "b.png"), pixels(source))


@pytest.mark.parametrize(("out", "written"), [("there", "there/a.png"), ("new", "new/a.png"), ("x.png", "x.png")])
def test_one_picture_goes_to_a_folder_or_a_file(run, weights, tmp_path, out, written):
    (tmp_path / "there").mkdir()
    save(tmp_path / "a.jpg", colours())
    assert run("purify", tmp_path / "a.jpg", tmp_path / out, "--weights", weights)[0] == 0
    assert files(tmp_path) == sorted(["a.jpg", written])


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("out", ["a.png", ".", "b.jpg", "there.txt"])
def test_one_picture_is_not_replaced_nor_made_lossy(run, tmp_path, out):
    (tmp_path / "there.txt").touch()
    source = save(tmp_path / "a.png", colours())
    status, _, err = run("purify", source, tmp_path / out, "--overwrite")
    assert status == 2 and err.startswith("sampdetox: error: OUT must")
    assert np.array_equal(pixels(source), colours()) and len(files(tmp_path)) == 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(run, weights, tmp_path, orientation):
    upright = colours(size=(8, 14, 3))
    turn = {  # what a camera stored, from which a viewer makes the upright picture (EXIF 2.3, tag 0x0112)
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "b.tif"):
        save(tmp_path / f"in/{name}", np.ascontiguousarray(turn(upright)), exif=exif)
    assert run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights, *IDENTITY)[0] == 0
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert np.array_equal(np.asarray(image), upright)
            assert 0x0112 not in image.getexif()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_kept_and_only_colours_are_purified(run, weights, tmp_path, mode):
    alpha = np.arange(9 * 12, dtype="uint8").reshape(9, 12)
    plain = colours(size=(9, 12, 3) if mode == "RGBA" else (9, 12))
    save(tmp_path / "plain.png", plain)
    save(tmp_path / "see.png", np.dstack([plain, alpha]))
    for name in ("plain", "see"):
        out = tmp_path / f"{name}-out.png"
        assert run("purify", tmp_path / f"{name}.png", out, "--weights", weights, "--seed", 0)[0] == 0
    with Image.open(tmp_path / "see-out.png") as image:
        assert image.mode == mode
    found, expected = pixels(tmp_path / "see-out.png"), pixels(tmp_path / "plain-out.png")
    assert np.array_equal(found[..., -1], alpha)
    assert np.array_equal(found[..., :-1].squeeze(), expected)
    assert not np.array_equal(expected, plain)


def test_transparent_palettes_and_keys_keep_their_alpha(run, weights, tmp_path):
    (tmp_path / "in").mkdir()
    palette = Image.fromarray(colours()).quantize(8)
    palette.save(tmp_path / "in/p.png", transparency=bytes([0, 90, 255]))
    palette.save(tmp_path / "in/g.gif", transparency=3)
    grey = Image.fromarray(colours(size=(9, 12)) // 64)
    grey.save(tmp_path / "in/key.png", transparency=1)
    grey.point(lambda v: 255 * (v > 1), "1").save(tmp_path / "in/one.png", transparency=0)
    assert run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights, *IDENTITY)[0] == 0
    for name, mode in (("p.png", "RGBA"), ("g.gif", "RGBA"), ("key.png", "LA"), ("one.png", "LA")):
        with Image.open(tmp_path / "in" / name) as source, Image.open(tmp_path / f"out/{name[:-4]}.png") as image:
            assert image.mode == mode
            assert np.array_equal(np.asarray(image), np.asarray(source.convert(mode)))
            assert len(np.unique(np.asarray(image)[..., -1])) > 1


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_grey_pictures_of_16_bits_keep_them(run, weights, tmp_path, name):
    deep = colours(size=(9, 12), dtype="uint16") - np.arange(12, dtype="uint16")
    source = save(tmp_path / name, deep)
    out, changed = tmp_path / "out.png", tmp_path / "changed.png"
    assert run("purify", source, out, "--weights", weights, *IDENTITY)[0] == 0
    assert pixels(out).dtype == np.uint16 and np.array_equal(pixels(out), deep)

    assert run("purify", source, changed, "--weights", weights, "--seed", 0)[0] == 0
    shallow = save(tmp_path / "shallow.png", (deep / 257).round().astype("uint8"))
    assert run("purify", shallow, tmp_path / "shallow-out.png", "--weights", weights, "--seed", 0)[0] == 0
    difference = pixels(changed) / 257 - pixels(tmp_path / "shallow-out.png")
    assert np.abs(difference).max() < 4, "16 bits were wrapped or scaled"


def write_unsuitable(path: Path, kind: str) -> None:
    """A picture file of a kind that is refused, at ``path``."""
    frames = [Image.fromarray(colours(i)) for i in range(3)]
    several = {"gif": "GIF", "apng": "PNG", "pages": "TIFF"}
    if kind in several:
        frames[0].save(path, several[kind], save_all=True, append_images=frames[1:])
    elif kind in ("float", "int32"):
        Image.fromarray(colours(size=(9, 12)).astype("float32" if kind == "float" else "int32")).save(path, "TIFF")
    elif kind == "pfm":
        path.write_bytes(b"Pf 2 2 -1.0\n" + bytes(16))
    elif kind == "ppm16":
        path.write_bytes(b"P6 2 2 1023\n" + bytes(24))
    elif kind == "tiff16":
        pytest.importorskip("tifffile").imwrite(path, colours(dtype="uint16"), photometric="rgb")
    elif kind == "tiff16-planes":
        planes = np.ascontiguousarray(colours(dtype="uint16").transpose(2, 0, 1))
        pytest.importorskip("tifffile").imwrite(path, planes, photometric="rgb", planarconfig="separate")
    elif kind == "tiff16-signed":
        pytest.importorskip("tifffile").imwrite(path, colours(size=(9, 12)).astype("int16"))
    elif kind == "tiff16-inverted":
        array = colours(size=(9, 12), dtype="uint16")
        pytest.importorskip("tifffile").imwrite(path, array, photometric="miniswhite")
    else:
        png16(path, *{"rgb16": (2, 3), "la16": (4, 2), "rgba16": (6, 4)}[kind])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        *(("gif", "one frame"), ("apng", "one frame"), ("pages", "one frame")),
        *(("rgb16", "16 bits"), ("la16", "16 bits"), ("rgba16", "16 bits"), ("ppm16", "16 bits")),
        *(("tiff16", "16 bits"), ("tiff16-planes", "16 bits"), ("tiff16-signed", "16 bits")),
        *(("tiff16-inverted", "16 bits"), ("float", "mode F"), ("int32", "mode I"), ("pfm", "mode F")),
    ],
)
def test_unsuitable_pictures_are_refused_by_name(run, weights, tmp_path, kind, reason):
    suffix = {"gif": "gif", "ppm16": "ppm", "pfm": "ppm"}.get(
        kind, "tif" if kind[:3] in ("tif", "flo", "int", "pag") else "png"
    )
    write_unsuitable(tmp_path / f"odd.{suffix}", kind)
    status, out, err = run("purify", tmp_path / f"odd.{suffix}", tmp_path / "out", "--weights", weights)
    assert status == 1 and "purified 0, failed 1" in out
    assert f"odd.{suffix}: pictures must have" in err and reason in err
    assert not (tmp_path / "out").exists()


def test_other_colour_models_become_grey_or_rgb(run, weights, tmp_path):
    (tmp_path / "in").mkdir()
    image = Image.fromarray(colours(size=(16, 16, 3)))
    image.convert("1").save(tmp_path / "in/one.png")
    image.quantize(16).save(tmp_path / "in/palette.png")
    image.convert("CMYK").save(tmp_path / "in/cmyk.jpg", quality=95, icc_profile=b"for cmyk")
    image.convert("YCbCr").save(tmp_path / "in/ycbcr.tif")
    Image.merge("LAB", [Image.new("L", (4, 4), v) for v in (255, 128, 128)]).save(tmp_path / "in/lab.tif")
    status, _, err = run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights, *IDENTITY)
    assert (status, err) == (0, "")
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as result:
            assert result.mode == ("L" if path.stem == "one" else "RGB")
            assert "icc_profile" not in result.info
            if path.stem == "palette":
                assert np.array_equal(np.asarray(result), np.asarray(image.quantize(16).convert("RGB")))
            if path.stem in ("cmyk", "ycbcr"):
                assert np.abs(np.asarray(result).astype(int) - np.asarray(image)).mean() < 12, path.name
    assert pixels(tmp_path / "out/lab.png").min() > 250, "white in LAB is not white"


def test_the_colour_profile_is_kept(run, weights, tmp_path):
    source = save(tmp_path / "a.png", colours(), icc_profile=b"a profile")
    assert run("purify", source, tmp_path / "b.png", "--weights", weights, *IDENTITY)[0] == 0
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["icc_profile"] == b"a profile"


def test_damaged_files_are_reported_and_stop_nothing(run, weights, tmp_path):
    for i in range(3):
        save(tmp_path / f"in/{i}.png", colours(i))
    whole = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype="uint8"))
    (tmp_path / "in/1b.png").write_bytes(whole.read_bytes()[:2500])
    save(tmp_path / "whole.jpg", pixels(whole))
    (tmp_path / "in/1c.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    (tmp_path / "in/1d.jpg").write_text("no picture")
    (tmp_path / "in/1e.png").touch()
    (tmp_path / "in/1f.png").symlink_to("nowhere")
    damaged = bytearray(whole.read_bytes())
    damaged[2000] ^= 255
    (tmp_path / "in/1g.png").write_bytes(damaged)
    status, out, err = run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights, "--batch-size", 3)
    assert status == 1 and "purified 3, failed 6" in out and "Traceback" not in err
    assert [line.split("/")[-1][:2] for line in err.splitlines()] == ["1b", "1c", "1d", "1e", "1f", "1g"]
    assert files(tmp_path / "out") == ["0.png", "1.png", "2.png"]


def test_a_decompression_bomb_is_reported(run, weights, tmp_path, monkeypatch):
    save(tmp_path / "in/a.png", colours(size=(20, 20, 3)))
    save(tmp_path / "in/b.png", colours(size=(9, 12, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    status, _, err = run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)
    assert status == 1 and "decompression bomb" in err
    assert files(tmp_path / "out") == ["b.png"]


def test_a_second_run_writes_only_what_is_missing(run, weights, tmp_path):
    for i in range(3):
        save(tmp_path / f"in/{i}.png", colours(i))
    command = ("purify", tmp_path / "in", tmp_path / "out", "--weights", weights, "--seed", 0)
    assert "purified 3;" in run(*command)[1]
    first = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files(tmp_path / "out")}
    status, out, _ = run(*command)
    assert status == 0 and "purified 0, skipped 3" in out
    (tmp_path / "out/1.png").unlink()
    assert "purified 1, skipped 2" in run(*command)[1]
    second = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files(tmp_path / "out")}
    assert {name for name in first if first[name] != second[name]} == {"1.png"}
    assert "purified 3;" in run(*command, "--overwrite")[1]
    assert (tmp_path / "out/0.png").stat().st_mtime_ns != first["0.png"]


def test_nothing_to_do_loads_no_weights(run, weights, tmp_path, monkeypatch):
    save(tmp_path / "in/a.png", colours())
    run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)
    monkeypatch.setattr(cli, "make_detox", None)
    assert run("purify", tmp_path / "in", tmp_path / "out")[0] == 0


def test_names_that_collide_are_kept_whole(run, weights, tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "c.jpg", "C.bmp"):
        save(tmp_path / "in" / name, colours())
    save(tmp_path / "in/d.png/e.png", colours())
    save(tmp_path / "in/d.jpg", colours())
    assert run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)[0] == 0
    expected = ["C.bmp.png", "a.jpg.png", "a.png.png", "b.png", "c.jpg.png", "d.jpg.png", "d.png/e.png"]
    assert files(tmp_path / "out") == expected


@pytest.mark.usefixtures("no_weights")
def test_names_that_collide_all_the_same_are_refused(run, tmp_path):
    for name in ("a.png", "a.jpg", "a.jpg.bmp"):
        save(tmp_path / "in" / name, colours())
    status, _, err = run("purify", tmp_path / "in", tmp_path / "out")
    assert status == 2 and "a.jpg.png" in err and "Rename one" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("out", ["in", "in/out", "in/../in/x", "link", "."])
def test_results_never_lie_among_the_pictures(run, tmp_path, out):
    save(tmp_path / "in/in/a.png", colours())
    (tmp_path / "link").symlink_to("in/in")
    status, _, err = run("purify", tmp_path / "in", tmp_path / out)
    assert status == 2 and "Give a folder beside IN" in err
    assert files(tmp_path / "in") == ["in/a.png"]


def test_linked_folders_are_followed_and_loops_are_not(run, weights, tmp_path):
    save(tmp_path / "elsewhere/b.png", colours())
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/linked").symlink_to("../elsewhere")
    (tmp_path / "in/deep/loop").symlink_to("..")
    os.mkfifo(tmp_path / "in/pipe.png")
    assert run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)[0] == 0
    assert files(tmp_path / "out") == ["linked/b.png"]
    for out in ("elsewhere", "elsewhere/below"):  # seen through the link, these are inside of IN
        assert "Give a folder beside IN" in run("purify", tmp_path / "in", tmp_path / out, "--weights", weights)[2]


@pytest.mark.usefixtures("no_weights")
def test_bad_paths_are_known_before_the_weights_are_loaded(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    save(tmp_path / "in/a.png", colours())
    for source, out, reason in (
        ("absent", "out", "does not exist"),
        ("empty", "out", "got none in"),
        ("in", "file", "Not a directory"),
        ("in", "file/below", "Not a directory"),
        ("in/a.png", "file/below", "Not a directory"),
    ):
        status, stdout, err = run("purify", tmp_path / source, tmp_path / out)
        assert (status, stdout) == (2, "")
        assert err.startswith("sampdetox: error: ") and err.count("\n") == 1 and reason in err
    assert files(tmp_path) == ["file", "in/a.png"] and not (tmp_path / "out").exists()


def test_a_folder_without_permission_is_known_before(run, tmp_path, monkeypatch):
    save(tmp_path / "in/a.png", colours())

    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(cli.tempfile, "TemporaryFile", refuse)  # root may write anywhere
    monkeypatch.setattr(cli, "make_detox", None)
    status, _, err = run("purify", tmp_path / "in", tmp_path / "out")
    assert status == 2 and "Permission denied" in err


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_stops_and_leaves_nothing_half_written(run, weights, tmp_path, monkeypatch, code):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.png").write_text("no picture")
    for i in range(1, 5):
        save(tmp_path / f"in/{i}.png", colours(i))
    real, calls = Image.Image.save, []

    def full(self, path, *args, **kwargs):
        calls.append(path)
        if len(calls) > 2:
            Path(path).write_bytes(b"half")
            raise OSError(code, os.strerror(code))
        real(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full)
    status, out, err = run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)
    lines = err.splitlines()
    assert (status, out, len(lines)) == (2, "", 2)
    assert "0.png" in lines[0] and lines[1].startswith("sampdetox: error: ") and os.strerror(code) in lines[1]
    assert len(calls) == 3
    assert files(tmp_path / "out") == ["1.png", "2.png"]
    assert all(pixels(tmp_path / f"out/{i}.png").shape == (9, 12, 3) for i in (1, 2))


def test_a_name_that_is_too_long_fails_alone(run, weights, tmp_path):
    long = "x" * 245
    for name in (f"{long}.png", "y.png"):
        save(tmp_path / "in" / name, colours())
    status, out, err = run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)
    assert status == 1 and "purified 1, failed 1" in out and long in err
    assert files(tmp_path / "out") == ["y.png"]


def test_a_seeded_result_depends_on_nothing_else(run, weights, tmp_path):
    for i in range(5):
        save(tmp_path / f"in/{i}.png", colours(i))
    seeded = ("--weights", weights, "--seed", 3)
    assert run("purify", tmp_path / "in", tmp_path / "all", *seeded)[0] == 0
    assert run("purify", tmp_path / "in", tmp_path / "two", *seeded, "--batch-size", 2)[0] == 0
    assert run("purify", tmp_path / "in/3.png", tmp_path / "alone.png", *seeded)[0] == 0
    assert run("purify", tmp_path / "in/3.png", tmp_path / "other.png", "--weights", weights, "--seed", 4)[0] == 0
    together = pixels(tmp_path / "all/3.png").astype(int)
    assert np.abs(together - pixels(tmp_path / "two/3.png")).max() <= 1
    assert np.abs(together - pixels(tmp_path / "alone.png")).max() <= 1
    assert np.abs(together - pixels(tmp_path / "other.png")).max() > 1


def test_batches_are_of_one_kind_and_read_no_further_than_needed():
    sizes = [(3, 8, 8)] * 5 + [(1, 8, 8)] + [(3, 8, 8)] * 2 + [(3, 600, 600)] * 2
    read = []

    def pictures():
        for i, size in enumerate(sizes):
            read.append(i)
            yield i, pictures_module.Picture(torch.zeros(size, dtype=torch.uint8), None, None)

    found = []
    for batch in pictures_module.batches(pictures(), 3):
        assert len(read) <= batch[-1][0] + 2
        found.append([i for i, _ in batch])
    assert found == [[0, 1, 2], [3, 4], [5], [6, 7], [8, 9]]
    assert [len(batch) for batch in pictures_module.batches(pictures(), None)] == [5, 1, 2, 1, 1]


def test_pictures_that_the_transform_refuses_fail_alone(run, weights, tmp_path, monkeypatch):
    save(tmp_path / "in/a.png", colours(size=(20, 20, 3)))
    save(tmp_path / "in/b.png", colours())

    def limited(self, image):
        if image.shape[-2] > 10:
            raise ValueError("images must be at most 10x10")

    monkeypatch.setattr(SampDetox, "_check_image", limited)
    status, _, err = run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)
    assert status == 1 and "a.png: images must be at most" in err
    assert files(tmp_path / "out") == ["b.png"]


# Settings


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--preset", "papr"), "Did you mean 'paper'"),
        (("--sampler", "ddmp"), "Did you mean"),
        (("--t1", "-1"), "t1 must be 0 or more"),
        (("--t2", "161"), "t1 and t2 must be in [0, 160]"),
        (("--preset", "authors-code", "--t2", "160"), "level 161 is needed"),
        (("--preset", "authors-code", "--stride", "20"), "fixes stride"),
        (("--weights", "bundeld"), "Did you mean BUNDLED"),
        (("--device", "cuda:99"), "device must be one that is available"),
        (("--batch-size", "0"), "batch_size must be a whole number of 1 or more"),
    ],
)
def test_a_bad_setting_is_one_line(run, weights, tmp_path, flags, message):
    source = save(tmp_path / "a.png", colours())
    status, out, err = run("purify", source, tmp_path / "b.png", "--weights", weights, *flags)
    assert (status, out) == (2, "")
    assert err.startswith("sampdetox: error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "b.png").exists()


def test_flags_reach_the_transform(weights):
    parser = cli.build_parser()

    def detox(*flags):
        return cli.make_detox(parser.parse_args(["purify", "in", "out", "--weights", weights, *flags]))

    assert detox().settings == transforms.SampDetox(weights).settings
    assert detox().seed is None and detox().denoiser.dtype == torch.float32
    paper = detox("--preset", "paper", "--t2", "80.5", "--seed", "7", "--dtype", "bfloat16", "--batch-size", "5")
    s = paper.settings
    assert (s.schedule, s.sampler, s.stride, s.t1, s.t2) == ("cosine", "ddpm", 1, 20, 80.5)
    assert (paper.seed, paper.denoiser.dtype, paper.batch_size) == (7, torch.bfloat16, 5)
    s = detox("--sampler", "ddpm", "--stride", "10", "--t1", "30").settings
    assert (s.local_stage, s.sampler, s.stride, s.t1, s.t2) == ("restore", "ddpm", 10, 30, 120)


# inspect


def test_inspect_draws_and_reports(run, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = save(tmp_path / "in/a.png", colours())
    status, out, err = run("inspect", source, "--weights", weights, "--preset", "ddim", "--seed", 0)
    assert (status, err) == (0, "")
    assert files(tmp_path) == ["a-panel.png", "in/a.png"]
    assert pixels(tmp_path / "a-panel.png").shape[1] > 1000
    facts = dict(line.split("  ", 1) for line in out.splitlines())
    detox = transforms.SampDetox(weights, preset="ddim", seed=0)
    with Image.open(source) as image:
        explained = detox.explain(image)
    change = np.abs(np.asarray(explained.image).astype(float) - colours()).mean()
    assert float(facts["mean change"].split()[0]) == pytest.approx(change, abs=0.01)
    sigma, grey = facts["sigma1"].replace("(", "").split()[:2]
    assert float(sigma) == pytest.approx(explained.sigma1, abs=1e-4)
    assert float(grey) == pytest.approx(explained.sigma1 * 127.5, abs=0.1)
    share = float((explained.timestep_map > 60).double().mean()) * 100
    assert float(facts["level > 60"].split()[0]) == pytest.approx(share, abs=0.06)
    moved = float((explained.timestep_map > 0).double().mean()) * 100
    assert float(facts["level > 0"].split()[0]) == pytest.approx(moved, abs=0.06) and moved < 100
    assert facts["network calls"].strip() == "7"


@pytest.mark.parametrize("name", ["panel.pdf", "deeper/panel.svg", "."])
def test_inspect_takes_drawings_and_folders(run, weights, tmp_path, name):
    save(tmp_path / "a.tif", colours(size=(9, 12), dtype="uint16"))
    (tmp_path / "deeper").mkdir()
    assert run("inspect", tmp_path / "a.tif", "-o", tmp_path / name, "--weights", weights)[0] == 0
    assert (tmp_path / ("a-panel.png" if name == "." else name)).stat().st_size > 1000


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("name", "reason"), [("a.png", "must not replace"), ("x.jpg", ".png"), ("a.png/x.png", "Not")])
def test_inspect_refuses_before_the_weights_are_loaded(run, tmp_path, name, reason):
    source = save(tmp_path / "a.png", colours())
    status, _, err = run("inspect", source, "-o", tmp_path / name)
    assert status == 2 and reason in err and err.count("\n") == 1
    assert files(tmp_path) == ["a.png"]


@pytest.mark.usefixtures("no_weights")
def test_inspect_names_an_unreadable_picture(run, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    status, _, err = run("inspect", tmp_path / "a.png")
    assert status == 2 and "a.png: not a picture of a known kind" in err


# weights


def test_weights_list(run, monkeypatch):
    def absent(repo, **options):
        assert options["local_files_only"], "the list must not download"
        raise DownloadError

    monkeypatch.setattr(checkpoints, "fetch", absent)
    status, out, _ = run("weights", "list")
    assert status == 0
    assert "ddpm_cifar10_32 (default)" in out and "google/ddpm-cifar10-32" in out and "not yet" in out
    assert "bundled" in out and "in package" in out and "Apache-2.0" in out
    monkeypatch.setattr(checkpoints, "fetch", lambda repo, **options: Path("/cache"))
    assert "cached" in run("weights", "list")[1]


def test_weights_fetch_checks_the_hash_of_what_is_pinned(run, weights, monkeypatch):
    asked = []

    def fetched(repo, **options):
        asked.append(str(repo))
        return Path(weights)

    monkeypatch.setattr(checkpoints, "fetch", fetched)
    status, out, err = run("weights", "fetch", "some/one@v1")
    assert (status, out.strip(), err) == (0, weights, "")
    status, out, err = run("weights", "fetch", "ddpm-cifar10-32")
    assert (status, out) == (2, "") and DetoxWeights.DEFAULT.meta.sha256[SAFETENSORS] in err
    assert asked == ["some/one@v1", f"google/ddpm-cifar10-32@{DetoxWeights.DEFAULT.meta.revision}"]
    assert "is here already" in run("weights", "fetch", weights)[2]
    assert run("weights", "fetch", "bundled")[1].strip() == str(checkpoints.BUNDLED_FOLDER)


def test_weights_verify(run, weights, tmp_path, monkeypatch):
    status, out, _ = run("weights", "verify", weights)
    assert status == 0 and "1 to 160 of the linear schedule" in out
    for name in files(Path(weights)):
        (tmp_path / name).write_bytes((Path(weights) / name).read_bytes())
    (tmp_path / SAFETENSORS).write_bytes((Path(weights) / SAFETENSORS).read_bytes()[:-9])
    status, _, err = run("weights", "verify", tmp_path)
    assert status == 2 and "must be a whole safetensors file" in err
    monkeypatch.setattr(checkpoints, "BUNDLED_FOLDER", Path(weights))
    status, _, err = run("weights", "verify", "bundled")
    assert status == 2 and DetoxWeights.BUNDLED.meta.sha256[SAFETENSORS] in err


# train


def train_tiny(run, tmp_path, out: str, *flags) -> tuple[int, str, str]:
    if not (tmp_path / "data").exists():
        for i in range(4):
            save(tmp_path / f"data/{i % 2}/{i}.png", colours(i, (10, 10, 3)))
    return run("train", tmp_path / "data", tmp_path / out, *TINY_RUN, *flags)


def test_flags_of_train_have_the_librarys_defaults():
    parsed = vars(cli.build_parser().parse_args(["train", "data", "more", "out"]))
    assert parsed["data"] == ["data", "more"] and parsed["out"] == Path("out")
    for field in fields(training.TrainingConfig):
        if field.name not in ("data", "network"):
            assert field.default is not MISSING and parsed[field.name] == field.default, field.name


def test_train_resumes_after_a_kill_and_the_result_loads(run, tmp_path, monkeypatch):
    kept = cli.training_progress
    seen = []

    def stopping(bar, last):
        def progress(step, loss):
            seen.append(step)
            if step > last:
                raise KeyboardInterrupt

        return progress

    flags = ("--steps", 6, "--save-every", 3)
    monkeypatch.setattr(cli, "training_progress", lambda bar: stopping(bar, last=3))
    assert train_tiny(run, tmp_path, "out", *flags)[0] == 130
    assert seen == [1, 2, 3, 4] and "loss.png" not in files(tmp_path / "out")
    seen.clear()
    monkeypatch.setattr(cli, "training_progress", lambda bar: stopping(bar, last=6))
    status, out, err = train_tiny(run, tmp_path, "out", *flags)
    assert (status, err) == (0, "")
    assert seen == [4, 5, 6]
    assert "trained 6 steps" in out and f"--weights {tmp_path / 'out'}" in out
    assert files(tmp_path / "out") == sorted(
        ["config.json", SAFETENSORS, "loss.csv", "loss.png", "sampdetox.json", "scheduler_config.json"]
    )
    assert pixels(tmp_path / "out/loss.png").shape[1] > 500

    monkeypatch.setattr(cli, "training_progress", kept)
    assert train_tiny(run, tmp_path, "whole", *flags)[0] == 0
    resumed, whole = (load_file(tmp_path / name / SAFETENSORS) for name in ("out", "whole"))
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)

    denoiser = load_denoiser(str(tmp_path / "out"))
    assert denoiser.max_level == 160
    x, t = torch.rand(1, 3, 8, 8), torch.tensor([50])
    model = pytest.importorskip("diffusers").UNet2DModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(denoiser(x, t), model(x, t).sample, atol=1e-5)


def test_train_starts_from_other_weights(run, tmp_path):
    assert train_tiny(run, tmp_path, "first", "--steps", 1)[0] == 0
    flags = ("--steps", 1, "--init", tmp_path / "first", "--half", "--seed", 1, "--learning-rate", 1e-9)
    assert train_tiny(run, tmp_path, "next", *flags)[::2] == (0, "")
    first, following = (load_file(tmp_path / name / SAFETENSORS)["conv_in.weight"] for name in ("first", "next"))
    assert following.dtype == torch.float16
    assert torch.allclose(following.float(), first, atol=1e-3) and first.abs().mean() > 0.01


def test_train_refuses_at_once(run, tmp_path, monkeypatch):
    assert train_tiny(run, tmp_path, "done", "--steps", 1)[0] == 0
    (tmp_path / "file").touch()
    monkeypatch.setattr(training, "UNet", None)
    for out, flags, reason in (
        ("done", (), "finished weights"),
        ("data/out", (), "outside of DATA"),
        ("file", (), "Not a directory"),
        ("file/below", (), "Not a directory"),
        ("new", ("--max-level", 1001), "max_level must be in"),
        ("new", ("--size", 7), "size must be a multiple of"),
        ("new", ("--steps", 0), "steps must be 1 or more"),
        ("new", ("--device", "cuda:99"), "device must be one that is available"),
    ):
        status, _, err = train_tiny(run, tmp_path, out, *flags)
        assert status == 2 and reason in err and err.count("\n") == 1
    status, _, err = run("train", tmp_path / "absent", tmp_path / "new")
    assert status == 2 and "absent" in err and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SafetensorError("No space left on device"), "No space left on device"),
        (RuntimeError("CUDA error:\n  out of memory"), "CUDA error: out of memory"),
        (OSError("Caught OSError in worker 0.\nOriginal Traceback (most recent call last):\nTraceback\nOSError: a.png"),
         "OSError: a.png"),
    ],
)  # fmt: skip
def test_errors_of_training_are_one_line(run, tmp_path, monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(training, "train", fail)
    status, _, err = train_tiny(run, tmp_path, "out")
    assert status == 2 and err == f"sampdetox: error: {message}\n"


def test_the_bar_of_a_resumed_run_starts_where_it_does():
    class Bar:
        initial, n, text = 0, 0, ""

        def set_postfix_str(self, text, refresh):
            self.text = text

        def update(self):
            self.n += 1

    bar = Bar()
    progress = cli.training_progress(bar)
    for step in (4, 5):
        progress(step, 0.25)
    assert (bar.initial, bar.n, bar.text) == (3, 5, "loss 0.2500")


# demo


def test_demo_is_wired(run, tmp_path, monkeypatch):
    def run_demo(out, *, seed, device, progress):
        progress("white square")
        out.write_text(f"{seed} {device}")
        return "the table"

    monkeypatch.setitem(sys.modules, "sampdetox_transforms.demo", types.SimpleNamespace(run_demo=run_demo))
    status, out, err = run("demo", "-o", tmp_path / "x.png", "--seed", 5, "--device", "cpu")
    assert status == 0 and out.startswith("the table\n") and "x.png" in out and "white square" in err
    assert (tmp_path / "x.png").read_text() == "5 cpu"
    assert "Not a directory" in run("demo", "-o", tmp_path / "x.png/y.png")[2]


# Drawings


def test_an_explanation_becomes_six_tiles(weights):
    image = torch.tensor(colours(size=(8, 8, 3))).permute(2, 0, 1)
    detox = transforms.SampDetox(weights, preset="ddim", seed=0)
    alone, batch = detox.explain(image), detox.explain(torch.stack([image.flip(1), image]))
    row, same = panel.explanation_row(image, alone, t2=120, factor=2), panel.explanation_row(image, batch, 1, factor=2)
    assert len(row) == 6 and row[3].high == 120
    for tile, other in zip(row, same, strict=True):
        assert tile.title == other.title and np.allclose(tile.image, other.image, atol=0.02, rtol=1e-2)
    difference = np.clip(0.5 + 2 * (row[4].image - row[0].image), 0, 1)
    assert np.array_equal(row[5].image, difference) and "x 2" in row[5].title
    assert np.allclose(row[0].image, colours(size=(8, 8, 3)) / 255)


def test_an_explanation_with_a_search_shows_suspicion_and_filled_pixels(tmp_path, run):
    signs, _ = draw_signs(2, seed=4)
    marked = TRIGGERS[2].plant(signs[1])
    explained = transforms.SampDetox("bundled", preset="restore", seed=0).explain(marked)
    row = panel.explanation_row(marked, explained)
    assert [tile.title for tile in row[2:4]] == ["suspicion of each pixel", "filled pixels"]
    assert (row[2].low, row[2].high) == (0, 1) and 0 <= row[2].image.min() <= row[2].image.max() <= 1
    assert row[2].image[27:31, 27:31].mean() > 0.5 > row[2].image[:20].mean()
    assert row[3].image[27:31, 27:31].all() and not row[3].image[:20].any()

    picture = save(tmp_path / "sign.png", (marked * 255).round().byte().permute(1, 2, 0).numpy())
    flags = ("--weights", "bundled", "--preset", "restore", "--seed", 0, "-o", tmp_path / "panel.png")
    status, out, err = run("inspect", picture, *flags)
    assert status == 0, err
    assert "of clean pictures look at least as suspicious: treated" in out and "filled" in out


def test_amplification_fills_the_range_without_leaving_it():
    assert panel.amplification(np.full((4, 4), 0.02)) == 20
    assert panel.amplification(np.full((4, 4), -0.3)) == 1
    assert panel.amplification(np.zeros((4, 4))) == 100


def test_panels_of_many_shapes(tmp_path):
    grey, colour = np.zeros((5, 9)), np.full((9, 5, 3), 200, dtype="uint8")
    rows = [
        ("a row\nof two", [("grey", grey), ("map", grey, "magma", 0, 1)]),
        [panel.Tile("colour", colour)],
        [],
        ("tall", [("", np.zeros((300, 2)), "viridis")] * 3),
    ]
    panel.draw_panel(rows, tmp_path / "p.png", heading="heading")
    one = tmp_path / "one.png"
    panel.draw_panel([[("colour", colour)]], one)
    assert pixels(tmp_path / "p.png").shape[0] > 2 * pixels(one).shape[0]
    for bad in ([], [[]], [[("x", np.zeros((2, 2, 4)))]], [[("x", np.zeros((0, 2)))]]):
        with pytest.raises(ValueError, match=r"tile must|must have a tile"):
            panel.draw_panel(bad, tmp_path / "no.png")
    with pytest.raises(ValueError, match=r"must end in"):
        panel.draw_panel([[("colour", colour)]], tmp_path / "no.jpg")
    assert files(tmp_path) == ["one.png", "p.png"]


def test_a_drawing_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(panel.Figure, "savefig", full)
    with pytest.raises(OSError, match=r"No space"):
        panel.draw_loss_curve([1.0], tmp_path / "loss.png")
    assert files(tmp_path) == []


@pytest.mark.parametrize("losses", [[0.5], [0.5, float("nan")], list(np.geomspace(1, 0.01, 400)), [-1.0, 2.0, 3.0]])
def test_loss_curves(tmp_path, losses):
    panel.draw_loss_curve(losses, tmp_path / "loss.png")
    assert files(tmp_path) == ["loss.png"]
    with pytest.raises(ValueError, match="a step at least"):
        panel.draw_loss_curve([], tmp_path / "none.png")
