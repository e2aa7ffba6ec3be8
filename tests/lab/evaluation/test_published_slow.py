"""Every published table, made anew on 100 images: each share's interval meets the published one. Run with -m slow.

Tables of victims need these in folders of their names, in the folder that SAMPDETOX_VICTIMS names; those of other
images than GTSRB's in a folder there that is named like the test images, such as cifar10-all. A table that its page
calls measured with earlier weights is left out.
"""

import json
import os
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sampdetox_transforms.cli.main import main
from sampdetox_transforms.lab.evaluation.experiments import EXPERIMENTS
from sampdetox_transforms.lab.evaluation.run import STUDIES
from sampdetox_transforms.lab.metrics import wilson

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "docs" / "results"
N = 100
VICTIMS = ("victim", "victims", "photographs")  # options that name victims' folders
FILES = ("patch_victim", "work")  # options that name what is not in the repository

# Files from before experiments had names: the experiment that makes the same rows.
OLDER: dict[str, dict[str, Any]] = {
    "public-classifiers": {"experiment": "restore"},
    "restore-cifar10": {"experiment": "restore", "options": {"images": "cifar10"}},
    "restore-patches": {"experiment": "restore"},
    "gtsrb-bundled": {"experiment": "settings"},
    "gtsrb-bundled-train": {"experiment": "settings", "options": {"split": "train"}},
}


def published() -> dict[str, dict[str, Any]]:
    """By name the documents whose experiment is known, with settings as they are stored now."""
    found = {}
    for path in sorted(RESULTS.glob("*.json")):
        document = json.loads(path.read_text())
        defaults = {"n": document.get("n", 500), "seed": document.get("seed", 0), **OLDER.get(path.stem, {})}
        settings = {**defaults, **document.get("settings", {})}
        if settings.get("experiment") in (*STUDIES, *EXPERIMENTS):
            rows = [with_intervals(row, settings["n"]) for row in document["rows"]]
            found[path.stem] = {"settings": settings, "rows": rows}
    return found


def with_intervals(row: dict[str, Any], n: int) -> dict[str, Any]:
    """A row whose shares are plain numbers, as older files have them, with the intervals of their counts."""
    counts = {"CA": row.get("n_clean", n)} | dict.fromkeys(("PA", "ASR"), row.get("n_triggered", row.get("n")))
    result = dict(row)
    for name, value in row.items():
        if isinstance(value, dict) and not {"low", "high"} & value.keys():
            result[name] = with_intervals(value, n)
        elif name in counts and isinstance(value, float) and counts[name]:
            result[name] = vars(wilson(round(value * counts[name]), counts[name]))
    return result


PUBLISHED = published()

KEYS = (
    "setting",
    "victim",
    "trigger",
    "kind",
    "backdoor",
    "defense",
    "map",
    "quarter",
    "method",
    "clean draws",
    "flood",
)


def key_of(row: dict[str, Any]) -> tuple:
    return tuple(str(row.get(name)) for name in KEYS)


def intervals(row: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], tuple[float, float]]]:
    """All shares of a row with an interval, wherever they stand in it."""
    if {"low", "high", "value"} <= row.keys():
        yield path, (row["low"], row["high"])
        return
    for name, part in row.items():
        for i, own in enumerate(part if isinstance(part, list) else [part]):
            if isinstance(own, dict):
                yield from intervals(own, (*path, name, str(i)))


def apart(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], int]:
    """The shares whose intervals do not meet, and how many were compared."""
    before, wrong, compared = {key_of(row): row for row in old["rows"]}, [], 0
    for row in new["rows"]:
        known = dict(intervals(before.get(key_of(row), {})))
        for path, (low, high) in intervals(row):
            if path in known:
                compared += 1
                if low > known[path][1] or high < known[path][0]:
                    wrong.append(f"{key_of(row)} {path}: [{low:.3f}, {high:.3f}], published {known[path]}")
    return wrong, compared


def arguments(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What ``sampdetox evaluate`` is asked for 100 of the images, and for no settings that the table has not."""
    name = settings["experiment"]
    flags = ["--experiment", name, "--n", str(min(N, settings["n"])), "--seed", str(settings["seed"]), "--json"]
    if name in STUDIES:
        options = settings.get("options", {})
        given = {**options, **{key: folders_of(options[key]) for key in VICTIMS if options.get(key)}}
        missing = [option for option in FILES if given.get(option)]
        if missing:
            pytest.skip(f"needs files for {', '.join(missing)}")
        allowed, own = STUDIES[name].allowed, dict.fromkeys(row["setting"] for row in rows if row.get("setting"))
        measured = [setting for setting in own if not allowed or setting in allowed]
        flags += ["--defense", *measured] if measured else []
        shown = {key: ",".join(value) if isinstance(value, list) else value for key, value in given.items()}
        return [*flags, *(["--set", *(f"{key}={value}" for key, value in shown.items())] if shown else [])]
    words = shlex.split(settings["command"])[2:]
    images = settings["data"].split("/")[0]
    names = words[: words.index("--data")]
    victims = folders_of(names if images == "gtsrb32" else [f"{images}/{name}" for name in names])
    given = re.search(r"--defense ((?:[^-]\S* ?)+)", settings["command"])
    data = Path(os.environ["SAMPDETOX_DATA"]) / settings["data"]
    defenses = ["--defense", *shlex.split(given[1])] if given else []
    every_level = ["--full-range", str(ROOT / "weights" / "full-range")] if "--full-range" in words else []
    return [*victims, "--data", str(data), *flags, *defenses, *every_level]


def folders_of(names: str | list[str]) -> Any:
    """A victim's folder, or those of several, in the one that SAMPDETOX_VICTIMS names."""
    folder = os.environ.get("SAMPDETOX_VICTIMS")
    if not folder:
        pytest.skip("SAMPDETOX_VICTIMS is not set: it names the folder of victims")
    several = [names] if isinstance(names, str) else names
    absent = [name for name in several if not (Path(folder) / name).is_dir()]
    if absent:
        pytest.skip(f"SAMPDETOX_VICTIMS has no {', '.join(absent)}")
    found = [str(Path(folder) / name) for name in several]
    return found[0] if isinstance(names, str) else found


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_table_is_what_the_package_computes(name, capsys, request):
    old = PUBLISHED[name]
    if old["settings"]["experiment"] != "drawn-signs":
        request.getfixturevalue("data")
    earlier = runpy.run_path(str(ROOT / "docs" / "measured.py"))["earlier"](name)
    if earlier:
        pytest.skip(f"measured with earlier {earlier}, as its page says")
    asked = arguments(old["settings"], old["rows"])
    capsys.readouterr()
    assert main(["evaluate", *asked, "--quiet"]) == 0
    wrong, compared = apart(old, json.loads(capsys.readouterr().out))
    assert compared, "nothing to compare"
    assert not wrong, "\n".join(wrong)


def test_intervals_that_do_not_meet_are_found():
    row = {"setting": "restore", "CA": {"value": 0.9, "low": 0.8, "high": 0.95}, "square": {"ASR": {"n": 3}}}
    same = {**row, "CA": {"value": 0.85, "low": 0.75, "high": 0.82}}
    other = {**row, "CA": {"value": 0.6, "low": 0.5, "high": 0.7}}
    assert apart({"rows": [row]}, {"rows": [same]}) == ([], 1)
    assert len(apart({"rows": [row]}, {"rows": [other]})[0]) == 1


def test_intervals_are_found_in_lists():
    row = {"victim": "a", "rows": [{"PA": {"value": p, "low": p - 0.1, "high": p + 0.1}} for p in (0.5, 0.8)]}
    other = {"victim": "a", "rows": [row["rows"][0], row["rows"][0]]}
    assert apart({"rows": [row]}, {"rows": [row]}) == ([], 2)
    assert len(apart({"rows": [row]}, {"rows": [other]})[0]) == 1


def test_older_files_get_the_intervals_of_their_counts():
    row = with_intervals({"CA": 0.9, "PA": 0.5, "n": 20, "square": {"ASR": 1.0, "n_triggered": 10}, "ms": 0.5}, 50)
    assert row["CA"] == vars(wilson(45, 50)) and row["PA"] == vars(wilson(10, 20)) and row["ms"] == 0.5
    assert row["square"]["ASR"] == vars(wilson(10, 10))


def test_tables_of_this_package_are_known():
    assert {"drawn-signs", "gtsrb-comparison", "public-classifiers"} <= PUBLISHED.keys()
