"""Pictures and results in a bucket: pyarrow's stand-in for one, in memory."""

from pathlib import Path, PurePosixPath

import pytest
from cli_pictures import colours, files, pixels, save

from sampdetox_transforms.cli.purify import buckets
from sampdetox_transforms.cli.purify.buckets import BucketPath, place

pytest.importorskip("pyarrow.fs")


@pytest.fixture
def store():
    """An empty bucket of pyarrow, which wants folders made before files."""
    buckets.connect.cache_clear()
    system = buckets.connect("mock://photos")
    for folder in ("photos/in/deep", "photos/out/deep", "photos/.hidden"):
        system.create_dir(folder)
    yield system
    buckets.connect.cache_clear()


def put(system, name: str, content: bytes) -> None:
    with system.open_output_stream(f"photos/{name}") as file:
        file.write(content)


def listing(system, folder: str) -> list[str]:
    from pyarrow.fs import FileSelector

    found = system.get_file_info(FileSelector(f"photos/{folder}", recursive=True))
    return sorted(info.path.removeprefix(f"photos/{folder}/") for info in found if info.is_file)


@pytest.fixture
def tree(tmp_path, store) -> Path:
    """The same pictures in a folder and in the bucket, one of them damaged."""
    for i, name in enumerate(("a.png", "deep/b.bmp", "deep/c d#é.png")):
        put(store, f"in/{name}", save(tmp_path / "in" / name, colours(i)).read_bytes())
    for name, content in (("damaged.png", b"no"), ("labels.txt", b"a"), (".hidden.png", b"no")):
        (tmp_path / "in" / name).write_bytes(content)
        put(store, f"in/{name}", content)
    return tmp_path / "in"


def test_a_bucket_is_purified_as_a_folder_is_and_resumes(run, weights, tree, tmp_path, store):
    flags = ("--weights", weights, "--seed", 0, "--dtype", "float32")
    status, out, _ = run("purify", tree, tmp_path / "out", *flags)
    there = run("purify", "mock://photos/in", "mock://photos/out/", *flags)
    assert status == there[0] == 1 and "damaged.png: not a picture" in there[2]
    assert there[1] == out.replace(str(tmp_path / "out"), "mock://photos/out")
    assert listing(store, "out") == files(tmp_path / "out") == ["a.png", "deep/b.png", "deep/c d#é.png"]
    for name in listing(store, "out"):
        (tmp_path / "copy.png").write_bytes(place(f"mock://photos/out/{name}").read_bytes())
        assert (pixels(tmp_path / "copy.png") == pixels(tmp_path / "out" / name)).all()
    store.delete_file("photos/out/a.png")
    assert "purified 1, skipped 2" in run("purify", "mock://photos/in", "mock://photos/out", *flags)[1]
    assert "purified 3" in run("purify", "mock://photos/in", tmp_path / "local", *flags)[1]
    assert files(tmp_path / "local") == files(tmp_path / "out")


def test_one_picture_of_a_bucket(run, weights, tree, tmp_path, store):
    flags = ("--weights", weights, "--seed", 0)
    assert run("purify", "mock://photos/in/a.png", "mock://photos/out/x.png", *flags)[0] == 0
    assert listing(store, "out") == ["x.png"]
    assert run("purify", tree / "a.png", "mock://photos/out/", *flags)[0] == 0
    assert listing(store, "out") == ["a.png", "x.png"]


@pytest.mark.usefixtures("no_weights", "tree")
@pytest.mark.parametrize(
    ("source", "out", "reason"),
    [
        ("mock://photos/in", "mock://photos/in/out", "must not lie among the pictures"),
        ("mock://photos/in", "mock://photos/in", "must not lie among the pictures"),
        ("mock://photos/in/a.png", "mock://photos/in/a.png", "OUT must not be IN"),
        ("mock://photos/absent", "out", "does not exist"),
        ("mock://photos/out", "mock://photos/in2", "got none in mock://photos/out"),
        ("nowhere://photos/in", "out", "must have an address that pyarrow opens"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(run, source, out, reason):
    status, printed, err = run("purify", source, out)
    assert (status, printed) == (2, "") and reason in err and err.count("\n") == 1


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.fs", None)
    buckets.connect.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'sampdetox-transforms\[ray\]'"):
        place("mock://photos/in")


def test_a_path_is_a_path_and_options_belong_to_the_bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "connect", lambda store: None)
    assert place(str(tmp_path)) == tmp_path and place("C:/photos") == Path("C:/photos")
    found = place("s3://b/in/deep/?region=eu-west-1")
    assert found == BucketPath("s3://b?region=eu-west-1", PurePosixPath("b/in/deep"))
    assert str(found / "a.jpg") == "s3://b/in/deep/a.jpg" and (found / "a.jpg").parent == found
    assert str(place("s3://b")) == "s3://b/" or str(place("s3://b")) == "s3://b"
