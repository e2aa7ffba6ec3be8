"""What the commands share: what is said and how, and checks before any work."""

import json
import logging
from pathlib import Path

import pytest

from sampdetox_transforms import SampDetox
from sampdetox_transforms.cli import shared


def test_levels_of_logging(capsys):
    library = logging.getLogger("sampdetox_transforms.somewhere")
    expected = {(0, True): "e", (0, False): "we", (1, False): "iwe", (2, False): "diwe", (7, False): "diwe"}
    for (verbose, quiet), said in expected.items():
        with shared.log_to_stderr():
            shared.listen(verbose, quiet)
            for level, text in ((10, "d"), (20, "i"), (30, "w"), (40, "e")):
                library.log(level, "%s", text)
        captured = capsys.readouterr()
        assert captured.err == "".join(f"sampdetox: {text}\n" for text in said) and captured.out == ""
    with pytest.raises(ValueError, match="-v and --quiet must not be given together"):
        shared.listen(1, True)


def test_texts_cannot_steer_the_terminal(capsys):
    assert shared.printable("a\x1b[0m\r\n\udcffé日") == "a\\x1b[0m\\r\\n\\udcffé日"
    shared.say("two\nlines\x07")
    shared.say("nothing", quiet=True)
    shared.say_facts({"a": "x\ny", "long": 3})
    assert capsys.readouterr().out == "two\nlines\\x07\na     x\\ny\nlong  3\n"


def test_json_is_json(capsys):
    shared.say_json({"path": Path("a"), "nan": float("nan"), "deep": [(float("inf"), 1.5)], "bad": "\udcff"})
    text = capsys.readouterr().out
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == {"path": "a", "nan": None, "deep": [[None, 1.5]], "bad": "\udcff"}


def test_settings_name_a_map_where_there_is_one(tiny):
    assert shared.settings_of(SampDetox(str(tiny), preset="ddim"))["settings"] == (
        "t1=20, t2=120, ddim, stride 20, map ssim, linear levels"
    )
    assert shared.settings_of(SampDetox(str(tiny)))["settings"] == (
        "t1=12 (2 above 48 pixels, 40 in doubt), t2=120, ddim, stride 60, search and fill, linear levels"
    )


def test_paths_are_checked_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    shared.check_json(None)
    shared.check_json(tmp_path / "new/deep/x.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "the check left something behind"
    with pytest.raises(OSError, match=r"results must go where files can be written, got .*Not a directory. Give"):
        shared.check_json(tmp_path / "file/x.json")
    with pytest.raises(ValueError, match=r"--out must end in .json, got .*x.txt. Do this."):
        shared.check_json(tmp_path / "x.txt", "Do this.")
    shared.check_at_least(1, n=1)
    with pytest.raises(ValueError, match=r"--n-slow must be 1 or more, got 0"):
        shared.check_at_least(1, n=1, n_slow=0)


def test_a_bar_is_begun_anew_for_each_thing():
    class Bar:
        n, log = 0, []

        def reset(self, total):
            self.log.append(("reset", total))

        def set_description(self, text):
            self.log.append(text)

        def update(self, more):
            self.log.append(self.n)

    bar = Bar()
    progress = shared.keyed_progress(bar)
    for what, done in (("a", 1), ("a", 2), ("b", 1)):
        progress(what, done, 2)
    assert bar.log == [("reset", 2), "a", 1, 2, ("reset", 2), "b", 1]
