"""The report of ``sampdetox purify``: its numbers beside the files, and pages that untrusted names cannot break."""

import base64
import csv
import errno
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sampdetox_transforms import SampDetox
from sampdetox_transforms.cli import shared
from sampdetox_transforms.cli.purify import report
from sampdetox_transforms.cli.purify.report import COLUMNS
from sampdetox_transforms.cli.purify.rows import Row
from sampdetox_transforms.cli.purify.thumbnails import encode
from sampdetox_transforms.lab.demo.signs import draw_signs
from sampdetox_transforms.transforms import transform as transforms

PNG = encode(torch.zeros(3, 2, 2, dtype=torch.uint8))

SQUARE = (20, 5, 26, 11)  # left, top, right, bottom of the white square that is pasted


@pytest.fixture
def tree(tmp_path) -> Path:
    """A sign as it is, the same with a white square, and a file that is no picture; sorted clean, failing, square.

    The sign is one of the few drawn ones that look clean to networks that know photographs.
    """
    (tmp_path / "in").mkdir()
    sign = draw_signs(1, seed=36)[0][0]
    left, top, right, bottom = SQUARE
    triggered = sign.clone()
    triggered[:, top:bottom, left:right] = 1
    for name, image in (("a-clean", sign), ("c-square", triggered)):
        array = (image * 255).round().byte().movedim(0, -1).numpy()
        Image.fromarray(array).save(tmp_path / f"in/{name}.png")
    (tmp_path / "in/b-no-picture.png").write_text("no picture")
    return tmp_path / "in"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(float)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """The elements and the texts of a page, and the cells of its table by row."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text, self.in_cell = "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def images(self) -> list[np.ndarray]:
        """The embedded pictures, decoded."""
        start = "data:image/png;base64,"
        assert all(image["src"].startswith(start) for image in self.all("img"))
        data = [base64.b64decode(image["src"][len(start) :], validate=True) for image in self.all("img")]
        return [np.asarray(Image.open(io.BytesIO(png))) for png in data]


def test_the_report_says_what_was_found_where(run, tree, tmp_path):
    out = tmp_path / "out"
    command = ("purify", tree, out, "--weights", "bundled", "--preset", "restore", "--seed", 0, "--device", "cpu")
    status, printed, err = run(*command, "--report", tmp_path / "new/found.csv")
    assert status == 1 and err.count("\n") == 1 and "b-no-picture.png: not a picture" in err
    assert printed == (
        f"purified 2, failed 1; results in {out}; report in {tmp_path / 'new/found.csv'}\n"
        "1 of 2 pictures were changed beyond the light stage; most: c-square.png\n"
    )
    clean, failed, square = rows_of(tmp_path / "new/found.csv")
    assert tuple(clean) == COLUMNS
    assert [Path(row["source"]) for row in (clean, failed, square)] == sorted(tree.iterdir())

    assert square["treated"] == "yes" and 0 < float(square["p_value"]) < 0.05
    left, top, right, bottom = (int(square[name]) for name in ("left", "top", "right", "bottom"))
    assert max(left, SQUARE[0]) < min(right, SQUARE[2]) and max(top, SQUARE[1]) < min(bottom, SQUARE[3])
    assert 0 < float(square["mask_share"]) <= (right - left) * (bottom - top) / 32**2
    assert clean["treated"] == "no" and float(clean["p_value"]) >= 0.05
    assert [clean[name] for name in ("left", "top", "right", "bottom", "failure")] == [""] * 5
    assert (float(clean["mask_share"]), clean["network_calls"]) == (0, "3") and int(square["network_calls"]) > 3
    assert float(square["p_value"]) < float(clean["p_value"])
    for row in (clean, square):
        change = np.abs(pixels(Path(row["result"])) - pixels(Path(row["source"])))
        assert float(row["largest_change"]) == change.max() and float(row["mean_change"]) == pytest.approx(
            change.mean()
        )
    assert "not a picture of a known kind" in failed["failure"] and failed["result"] == failed["treated"] == ""

    run(*command, "--report", tmp_path / "found.html", "--overwrite")
    page = Page((tmp_path / "found.html").read_text())
    heads = [row[0] for row in page.rows[1:]]
    assert heads == [square["source"], clean["source"], failed["source"]], "not the most suspicious first"
    assert page.rows[1][6] == "yes" and page.rows[2][6] == "no"
    assert page.rows[3][1].startswith("failed: not a picture") and "1 failed" in page.text
    assert "2 purified, 1 of them treated" in page.text and "below 5.00%" in page.text
    before, over, after = page.images()[:3]
    assert np.array_equal(before, pixels(Path(square["source"])))
    assert np.array_equal(after, pixels(Path(square["result"])))
    marked = np.argwhere((over != before).any(-1))
    assert marked.min(0).tolist() == [top, left] and (marked.max(0) + 1).tolist() == [bottom, right]
    assert len(marked) == round(float(square["mask_share"]) * 32**2)


def test_a_report_changes_no_result(run, tree, tmp_path, tiny):
    for name, flags in (("with", ("--report", tmp_path / "found.htm")), ("without", ())):
        run("purify", tree, tmp_path / name, "--weights", tiny, "--seed", 0, "--device", "cpu", *flags)
    for name in ("a-clean.png", "c-square.png"):
        assert np.array_equal(pixels(tmp_path / "with" / name), pixels(tmp_path / "without" / name))


def test_a_preset_without_search_leaves_its_columns_empty_and_shows_the_map(run, tree, tmp_path, tiny):
    command = ("purify", tree, tmp_path / "out", "--weights", tiny, "--preset", "ddim", "--seed", 0)
    command += ("--device", "cpu", "--overwrite")
    run(*command, "--report", tmp_path / "found.csv")
    for row in rows_of(tmp_path / "found.csv"):
        empty = {name for name, value in row.items() if not value}
        searched = {"p_value", "treated", "mask_share", "left", "top", "right", "bottom", "retouched"}
        changes = {"result", "network_calls", "largest_change", "mean_change"}
        assert empty == searched | (changes if "b-no" in row["source"] else {"failure"})
    run(*command, "--report", tmp_path / "found.html")
    page = Page((tmp_path / "found.html").read_text())
    shown = page.images()[1]
    with Image.open(tree / "a-clean.png") as image:
        explained = SampDetox(tiny, preset="ddim", seed=0).explain(image)
    assert (shown.ndim, shown.max()) == (2, 255)
    assert shown.argmax() == int(explained.difference_map.argmax())
    assert "map: changed by stage 1" in page.rows[0] and "treated as triggered" not in page.text


def test_names_are_escaped(run, tree, tmp_path, tiny):
    name = "<script>alert(1)<&'\"quote.png"
    os.rename(tree / "c-square.png", tree / name)
    os.rename(tree / "b-no-picture.png", tree / "<img src=x onerror=alert(2)>.png")
    assert run("purify", tree, tmp_path / "out", "--weights", tiny, "--report", tmp_path / "found.html")[0] == 1
    page = Page((tmp_path / "found.html").read_text())
    assert {str(tree / name), str(tree / "<img src=x onerror=alert(2)>.png")} < {row[0] for row in page.rows}
    assert f"{tree / name}: original" in [image["alt"] for image in page.all("img")]
    assert len(page.all("img")) == 6 and not page.all("script")
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)


def test_names_that_are_not_utf8_are_written(run, tree, tmp_path, tiny):
    os.rename(os.fsencode(tree / "c-square.png"), os.fsencode(tree) + b"/\xff.png")
    for ending in ("html", "csv"):
        found = tmp_path / f"found.{ending}"
        run("purify", tree, tmp_path / ending, "--weights", tiny, "--report", found)
        assert r"\udcff.png" in found.read_text(encoding="utf-8")


@pytest.fixture
def no_work(monkeypatch):
    """Fail where weights are loaded before the error that is expected."""

    def refuse(*args, **kwargs):
        raise AssertionError("the weights were loaded first")

    monkeypatch.setattr(transforms, "load_denoiser", refuse)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        *(("found.txt", "must end in one of"), ("found", "must end in one of"), ("out/a-clean.png", "must end in")),
        *(("in/found.html", "outside of IN"), ("in/deep/found.csv", "outside of IN"), ("link/f.csv", "outside of IN")),
        *(("in.html", "got the folder"), ("file/found.html", "Not a directory"), ("out/c.csv", "a result's file or")),
        ("out/a-clean.png/found.html", "a result's file or"),
    ],
)
def test_a_bad_place_is_refused_before_any_work(run, tree, tmp_path, place, reason):
    (tmp_path / "file").touch()
    (tmp_path / "in.html").mkdir()
    (tmp_path / "link").symlink_to("in")
    (tree / "c.csv").mkdir()
    os.rename(tree / "c-square.png", tree / "c.csv/c-square.png")
    status, printed, err = run("purify", tree, tmp_path / "out", "--report", tmp_path / place, "--overwrite")
    assert (status, printed, err.count("\n")) == (2, "", 1) and reason in err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_work")
def test_a_picture_is_not_replaced_by_its_report(run, tree, tmp_path):
    source = tree / "a-clean.png"
    os.rename(source, tree / "picture.html")
    status, _, err = run("purify", tree / "picture.html", tmp_path / "out", "--report", tree / "picture.html")
    assert status == 2 and "outside of IN" in err


def test_beside_a_single_picture_there_is_room(run, tree, tmp_path, tiny):
    status, _, _ = run("purify", tree / "a-clean.png", tmp_path / "out", "--weights", tiny, "--report", tree / "f.csv")
    assert status == 0 and len(rows_of(tree / "f.csv")) == 1


@pytest.mark.usefixtures("no_work")
def test_a_folder_that_cannot_be_written_is_known_before(run, tree, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    real = shared.tempfile.TemporaryFile

    def refuse(dir):
        if Path(dir).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))
        return real(dir=dir)

    monkeypatch.setattr(shared.tempfile, "TemporaryFile", refuse)  # root may write anywhere
    status, _, err = run("purify", tree, tmp_path / "out", "--report", tmp_path / "locked/found.html")
    assert status == 2 and "locked: Permission denied" in err and not (tmp_path / "out").exists()


def test_a_report_that_exists_is_kept(run, tree, tmp_path, tiny):
    (tree / "b-no-picture.png").unlink()
    found = tmp_path / "found.html"
    command = ("purify", tree, tmp_path / "out", "--weights", tiny, "--report", found)
    assert run(*command)[0] == 0
    first = found.read_text()
    status, printed, _ = run(*command)
    assert status == 0 and "skipped 2 that exist already (--overwrite makes them anew); results in " in printed
    assert printed.endswith(f"report of before kept {found}\n") and found.read_text() == first

    (tmp_path / "out/a-clean.png").unlink()
    status, printed, err = run(*command)
    assert (status, printed) == (2, "") and "--overwrite replaces it" in err and found.read_text() == first
    assert not (tmp_path / "out/a-clean.png").exists()

    found.write_text("of before")
    assert run(*command, "--overwrite")[0] == 0
    assert len(Page(found.read_text()).rows) == 3


def test_what_was_skipped_is_counted(run, tree, tmp_path, tiny):
    (tree / "b-no-picture.png").unlink()
    command = ("purify", tree, tmp_path / "out", "--weights", tiny, "--preset", "ddim", "--report")
    assert run(*command, tmp_path / "1.html")[0] == 0
    (tmp_path / "out/a-clean.png").unlink()
    assert run(*command, tmp_path / "2.html")[0] == 0
    page = Page((tmp_path / "2.html").read_text())
    assert [row[0] for row in page.rows[1:]] == [str(tree / "a-clean.png")]
    assert "1 purified, 1 skipped" in page.text
    assert run(*command, tmp_path / "3.html")[0] == 0
    page = Page((tmp_path / "3.html").read_text())
    assert len(page.rows) == 1 and "0 purified, 2 skipped" in page.text
    assert run(*command, tmp_path / "3.csv")[0] == 0
    assert (tmp_path / "3.csv").read_text().strip() == ",".join(COLUMNS)


def test_a_report_that_cannot_be_written_in_the_end_says_so(run, tree, tmp_path, tiny, monkeypatch):
    real = Path.write_bytes

    def full(self, data):
        if "found" in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    status, _, err = run("purify", tree, tmp_path / "out", "--weights", tiny, "--report", tmp_path / "found.html")
    assert status == 2 and f"the pictures are done, but not the report {tmp_path / 'found.html'}: No space" in err
    assert (tmp_path / "out/a-clean.png").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_the_page_is_one_file_with_a_table_that_can_be_read_out():
    row = Row(Path("a.png"), Path("b.png"), 0.01, True, 0.2, (1, 2, 3, 4), 5, 6.0, 0.7, "lines")
    text = report.render_html([row, Row(Path("c.png"), failure="why & <how>")], about=["5 < 6"], skipped=3)
    page = Page(text)
    assert {head["scope"] for head in page.all("th")} == {"col", "row"}
    assert len(page.all("caption")) == 1 and "5 < 6" in page.text
    assert page.rows[2] == ["c.png", "failed: why & <how>"]
    assert page.rows[1][5:] == ["1.00 %", "yes", "20.00 %", "1, 2, 3, 4", "5", "lines", "6.0", "0.70"]
    assert len(page.rows[1]) == len(page.rows[0])
    assert {"name": "color-scheme", "content": "light dark"} in page.all("meta")
    assert not {"script", "link", "iframe", "object", "a"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?:|//|url\(|@import", text)


def test_formulas_in_names_stay_names():
    names = ("=cmd.png", "+1.png", "-2.png", "@x.png", "ok.png", "with,comma\n and line.png")
    text = report.render_csv([Row(Path(name), failure="no") for name in names])
    found = [row["source"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert found == ["./=cmd.png", "./+1.png", "./-2.png", "./@x.png", *names[4:]]
    assert [Path(name) for name in found] == [Path(name) for name in names]


def test_nothing_in_a_row_can_leave_its_cell():
    """Every text that a file name or an error can reach, between tags and in attributes."""
    bad = """"'><b onload=x>&amp;"""
    rows = [Row(Path(bad), Path(bad + "2"), 0.01, True, 0.2, (1, 2, 3, 4), 5, 6.0, 0.7, pictures=(PNG,) * 3)]
    page = Page(report.render_html([*rows, Row(Path(bad + "3"), failure=bad + "4")], about=[bad + "5"]))
    assert page.rows[1][0] == bad and page.rows[1][4] == bad + "2"
    assert page.rows[2] == [bad + "3", f"failed: {bad}4"] and bad + "5" in page.text
    assert [image["alt"].removeprefix(bad) for image in page.all("img")] == [
        *(": original", ": mask over it", ": result")
    ]
    assert not page.all("b") and all(image["src"] for image in page.all("img"))
