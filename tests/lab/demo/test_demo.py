"""The demo: what it claims about its triggers holds, one survives and is named, and picture and text appear."""

import itertools

import pytest
from PIL import Image

from sampdetox_transforms.lab.demo.demo import GOOD, Row, run_demo, summary


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a run says, line by line, what it said on the way, and its picture."""
    out, steps = tmp_path_factory.mktemp("demo") / "demo.png", []
    return run_demo(out, n=18, progress=steps.append).splitlines(), steps, out


def table(lines: list[str], columns: str) -> dict[str, list[str]]:
    """The words after each trigger's name, of the rows below the line that holds ``columns``."""
    start = next(i for i, line in enumerate(lines) if columns in line) + 1
    rows = itertools.takewhile(lambda line: line.startswith("  ") and "(" not in line, lines[start:])
    return {row[:17].strip(): row[17:].split() for row in rows}


@pytest.mark.slow
def test_what_it_claims_holds_and_what_survives_is_named(told):
    lines = told[0]
    photographs, signs = table(lines, "how much of it"), table(lines, "fooled: before")
    patches = ("white square", "checkerboard", "noise square", "sticker")
    assert list(photographs) == ["none", *patches, "sinusoid", "blend"]
    assert photographs["none"][0] == "0" and all(photographs[name][0] == "4" for name in patches)
    right = {name: float(words[1].rstrip("%")) for name, words in signs.items()}
    assert all(share >= 100 * GOOD for share in right.values())
    assert all(words[2] == "100%" for name, words in signs.items() if name != "none") and len(signs) == 6
    (verdict,) = [line for line in lines if line.startswith("On photographs")]
    gone, left = verdict.split("survives: ")
    assert all(name in gone for name in (*patches, "sinusoid")) and left.startswith("blend. On drawn signs, gone: ")
    assert any("sampdetox purify" in line for line in lines)


@pytest.mark.slow
def test_progress_counts_to_its_end_and_the_picture_is_wide(told):
    _, steps, out = told
    total = len(steps)
    assert [step.split(":")[0] for step in steps] == [f"{i} of {total}" for i in range(1, total + 1)]
    with Image.open(out) as picture:
        assert picture.width > picture.height > 300


def test_the_summary_follows_the_shares():
    rows = {name: Row("", share, None) for name, share in (("none", None), ("a", GOOD), ("b", GOOD - 0.01), ("c", 1.0))}
    assert summary("x", rows) == "On x, gone: a, c; survives: b."
    assert summary("x", {"a": Row("", 1.0, None)}) == "On x, gone: a."
