"""What every room shares: files that appear whole or not at all."""

import pytest

from sampdetox_transforms._common import write_atomically


def test_write_atomically_replaces_the_file_or_leaves_it_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with path.open() as reader:
        write_atomically(path, lambda part: part.write_text("new"))
        assert reader.read() == "old", "the file is written over, not replaced: a kill would leave half of it"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
