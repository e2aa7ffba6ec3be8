"""The programs of ``examples/`` are short, and each does what it says."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
PROGRAMS = sorted(path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


@pytest.fixture
def printed(monkeypatch, capsys):
    """What a program prints, run as a user runs it, in this process."""

    def run(name: str) -> str:
        monkeypatch.chdir(FOLDER.parent)
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_folder_holds_short_programs_only():
    assert {path.suffix for path in PROGRAMS} == {".py"}
    long = {path.name: len(path.read_text().splitlines()) for path in PROGRAMS}
    assert max(long.values()) <= 70, long


def test_compose(printed):
    assert printed("compose.py").count("(2, 3, 32, 32) torch.float32") == 2


def test_wrap_classifier(printed):
    said = printed("wrap_classifier.py")
    assert "triangle  star      -> triangle" in said  # the faint trigger goes
    assert "network calls 7" in said
