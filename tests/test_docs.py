"""What README and docs show runs, and their tables are the measured ones."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_the_readme_runs(block):
    names = {
        "classifier": nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)),
        "images": torch.rand(2, 3, 16, 16) * 2 - 1,
        "picture": torch.rand(3, 16, 16),
    }
    exec(block, names)
    if "logits" in names:
        assert names["logits"].shape == (2, 4)
        assert names["details"].image.shape == (3, 16, 16)
    else:
        assert names["transform"](torch.rand(3, 16, 16)).shape == (3, 16, 16)


def test_the_readme_has_both_blocks():
    assert len(BLOCKS) == 2


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tables_in_the_docs_are_the_measured_ones():
    run("examples/include_results.py", "--check")


def test_the_short_examples_run():
    assert run("examples/compose.py").count("(2, 3, 32, 32) torch.float32") == 2
    printed = run("examples/wrap_classifier.py")
    assert "triangle  star      -> triangle" in printed  # the faint trigger goes
    assert "network calls 7" in printed
