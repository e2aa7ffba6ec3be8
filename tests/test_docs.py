"""What README and docs show runs, what they say was measured, and no page is long or names what is not there."""

import json
import re
import runpy
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from sampdetox_transforms.method.restore import Restore

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "notes").glob("*.md"))]
LONGEST = 1500  # words of a page

LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
NAMED = re.compile(r"(?<![\w/.$])((?:docs|examples|tests|sampdetox_transforms|benchmarks)/[\w./-]*\.\w+)")
MADE = ("docs/results/", "docs/_build")  # what a command on a page writes


def test_the_readme_cleans_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((40, 36), 40).convert("RGB").save("photo.jpg")
    exec(BLOCKS[0], {})
    assert Image.open("clean.png").size == (40, 36)
    assert capsys.readouterr().out.strip() in ("a trigger was taken out", "nothing was found")


def test_the_readme_wraps_a_classifier():
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    names = {"classifier": classifier, "images": torch.rand(2, 3, 16, 16) * 2 - 1}
    exec(BLOCKS[1], names)
    assert names["logits"].shape == (2, 4)


def test_the_readme_has_both_blocks():
    assert len(BLOCKS) == 2


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_under_numbers_are_those_of_the_results():
    """A result that is older than its weights is called so; ``python docs/measured.py`` writes the lines."""
    run("docs/measured.py", "--check")


def test_a_result_names_the_commits_that_its_rows_are_from_and_no_other():
    for file in sorted((DOCS / "results").glob("*.json")):
        document = json.loads(file.read_text())
        if "environments" in document and all("environment" in row for row in document["rows"]):
            own = {document["environments"][row["environment"]].get("commit") for row in document["rows"]}
            assert set(measured()["facts"](file.stem)["commits"]) <= own, file.name


def test_every_setting_of_the_default_dates_a_result():
    """The pattern by which a changed setting is searched for in the history finds each of them."""
    found = re.findall(
        measured()["FIELD"].format(names="([a-z0-9_]+)"), (ROOT / measured()["DEFAULT"]).read_text(), re.MULTILINE
    )
    assert set(found) == {field.name for field in fields(Restore)}


@cache
def measured() -> dict:
    return runpy.run_path(str(DOCS / "measured.py"))


def test_the_figures_are_those_of_the_results():
    run("docs/plots.py", "--check")


def test_the_first_picture_is_drawn_with_the_weights_in_the_package():
    run("docs/first_picture.py", "--check")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_is_long(page):
    assert len(page.read_text().split()) <= LONGEST


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    linked = [page.parent / target for target in LINK.findall(text)]
    named = [ROOT / name for name in NAMED.findall(text) if not name.startswith(MADE)]
    assert [str(path) for path in [*linked, *named] if not path.exists()] == []
