"""docs/modules.md: every module that it names is there, and has what is said to be in it."""

import re
from importlib import import_module
from pathlib import Path

import pytest

import sampdetox_transforms

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "modules.md").read_text()
ROWS = [line.split("|")[1:3] for line in PAGE.splitlines() if line.startswith("| `sampdetox_transforms")]


def modules(cell: str) -> list[str]:
    """The modules of a row's first cell; ``.name`` is one beside the first."""
    first, *others = re.findall(r"`([\w.]+)`", cell)
    return [first, *(first.rsplit(".", 1)[0] + other for other in others)]


@pytest.mark.parametrize(("where", "what"), ROWS, ids=[modules(where)[0] for where, _ in ROWS])
def test_a_module_has_what_the_page_says(where, what):
    found = {name for module in modules(where) for name in dir(import_module(module))}
    named = {name for name in re.findall(r"`(\w+)`", what) if name not in dir(sampdetox_transforms)}
    elsewhere = {"SampDetox", "UNet2DModel", "Denoiser"}
    assert named - elsewhere <= found


def test_the_imports_of_the_page_are_there():
    block = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    exec("\n".join(line for line in block.splitlines() if line.startswith("from ")), {})
