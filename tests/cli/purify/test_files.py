"""Picture files: what is kept of them, and which ones are refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from cli_pictures import colours, files, pixels, png16, save
from PIL import Image, ImageFile

IDENTITY = ("--preset", "ddim", "--t1", "0", "--t2", "0")


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


# Large pictures


def huge_png(path: Path, side: int = 13_000) -> Path:
    """A PNG of one bit a pixel: 20 KB, for 169 million pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((side // 8 + 1) * side), 9)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@pytest.mark.filterwarnings("error")
def test_a_small_file_with_a_huge_picture_is_named_and_stops_nothing(run, weights, tmp_path, monkeypatch):
    """It is refused by its header, before it is decoded, without a warning of Pillow's."""
    assert huge_png(tmp_path / "in/b.png").stat().st_size < 25_000
    save(tmp_path / "in/a.png", colours())
    save(tmp_path / "in/c.png", colours(1))
    decode = ImageFile.ImageFile.load

    def load(self):
        assert self.size != (13_000, 13_000), "it was decoded"
        return decode(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    before = Image.MAX_IMAGE_PIXELS
    status, out, err = run("purify", tmp_path / "in", tmp_path / "out", "--weights", weights)
    assert status == 1 and "purified 2, failed 1" in out and err.count("\n") == 1
    assert "b.png: pictures must have 50000000 pixels or fewer, got 13000x13000 = 169000000." in err
    assert "raise --max-pixels" in err and files(tmp_path / "out") == ["a.png", "c.png"]
    assert before == Image.MAX_IMAGE_PIXELS, "the limit of other users of Pillow changed"


@pytest.mark.filterwarnings("error")
def test_max_pixels_decides_and_pillow_does_not(run, weights, tmp_path, monkeypatch):
    source = save(tmp_path / "in/a.png", colours())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # half of what it warns of, a tenth of what there is
    assert run("purify", source, tmp_path / "x.png", "--weights", weights, "--max-pixels", 108)[0] == 0
    status, _, err = run("purify", source, tmp_path / "y.png", "--weights", weights, "--max-pixels", 107)
    assert status == 1 and "must have 107 pixels or fewer, got 12x9 = 108" in err
    status, _, err = run("purify", source, tmp_path / "y.png", "--weights", weights, "--max-pixels", 0)
    assert status == 2 and "--max-pixels must be 1 or more, got 0" in err
