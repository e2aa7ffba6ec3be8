"""The demo: what it claims about its triggers holds, one survives and is named, and picture and text appear."""

import pytest
import torch
from PIL import Image

from sampdetox_transforms.lab.demo.demo import GOOD, Row, run_demo, summary


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a run says, line by line, what it said on the way, and its picture."""
    out, steps = tmp_path_factory.mktemp("demo") / "demo.png", []
    return run_demo(out, n=18, progress=steps.append).splitlines(), steps, out


def shares(lines: list[str], column: int) -> dict[str, float]:
    """Of each trigger the number in a column, counted from the right."""
    return {line[:15].strip(): float(line.split()[column].rstrip("%")) for line in lines}


@pytest.mark.slow
def test_what_it_claims_holds_and_what_survives_is_named(told):
    lines = told[0]
    photographs, signs = lines[2:9], lines[12:18]
    assert [line[:15].strip() for line in photographs[:5]] == [
        *("none", "white square", "checkerboard", "noise square", "sticker")
    ]
    assert all("4 of 4" in line for line in photographs[1:5]) and "0 of 4" in photographs[0]
    right, fooled = shares(signs, -3), shares(signs[1:], -2)
    right_after = {line[:15].strip(): float(line.split()[-3].rstrip("%")) for line in signs}
    assert all(right_after[name] >= 100 * GOOD for name in ("none", "white square", "red square", "noise square"))
    assert all(share == 100 for share in fooled.values()) and right
    (verdict,) = [line for line in lines if line.startswith("On photographs")]
    assert "survive" in verdict and "white square" in verdict.split("go")[0]
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
    assert summary("x", rows) == "On x, a, c go; b survive."
    assert summary("x", {"a": Row("", 1.0, None)}) == "On x, a go."
    assert torch.tensor(GOOD) > 0.5
