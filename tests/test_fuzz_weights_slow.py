"""500 broken folders of weights: each loads and gives images, or is refused in our words. Run with -m slow -s."""

import json
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_fuzz_slow import REFUSED, RULE_VALUE_REMEDY

from sampdetox_transforms import SampDetox
from sampdetox_transforms.networks.restorer_files import RESTORER_FOLDER
from sampdetox_transforms.networks.restorers import load_restorers

DENOISERS, RESTORERS = 400, 100  # folders of each kind
SECONDS, MEGABYTES = 20, 1500  # that one folder may take, beside the interpreter

Change = Callable[[random.Random, Path], str]


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


# What stands in place of a value, as JSON text.
WRONG = (
    *("null", "true", "-1", "0", "1", "3", "1e308", "-0.5", "1e12", "8192", "1000000", "1" + "0" * 400, "NaN"),
    *('""', '"x"', '"silu"', "[]", "{}", "[null]", '["DownBlock2D"]', "[8, -8]", "[8192, 8192]", "Infinity"),
    *(deep(30), deep(100_000), json.dumps([8] * 10_000), json.dumps("x" * 100_000)),
)


def change_value(rng: random.Random, path: Path) -> str:
    """One value of a JSON file, or of a list in it."""
    content = json.loads(path.read_text())
    key, wrong = rng.choice(sorted(content)), rng.choice(WRONG)
    mark = '"the value that is changed"'
    if isinstance(content[key], list) and content[key] and rng.random() < 0.5:
        content[key][rng.randrange(len(content[key]))] = json.loads(mark)
    else:
        content[key] = json.loads(mark)
    path.write_text(json.dumps(content).replace(mark, wrong))
    return "a value"


def change_keys(rng: random.Random, path: Path) -> str:
    """A key is gone, or there is one too many."""
    content = json.loads(path.read_text())
    if rng.random() < 0.6:
        del content[rng.choice(sorted(content))]
    else:
        content[rng.choice(("__class__", "num_class_embeds ", "sampdetox", "dropout"))] = json.loads(
            rng.choice(WRONG[:8])
        )
    path.write_text(json.dumps(content))
    return "a key"


def change_text(rng: random.Random, path: Path) -> str:
    """No JSON, or none of this kind."""
    text = path.read_bytes()
    others = (b"", b"\xff\xfe\x00", b"null", b"[1, 2]", b'"text"', b"{", text[: len(text) // 2], b" " * 2_000_000)
    path.write_bytes(rng.choice((*others, deep(200_000).encode(), b"\xef\xbb\xbf" + text, text + b"x", text * 2)))
    return "the text"


def change_bytes(rng: random.Random, path: Path) -> str:
    """Weights that are cut, longer, or have other bytes, in the header or anywhere."""
    content = bytearray(path.read_bytes())
    kind = rng.randrange(6)
    if kind == 0:
        content = content[: rng.randrange(len(content))]
    elif kind == 1:
        content += bytes(rng.randrange(1, 1000))
    elif kind == 2:
        content[:8] = rng.choice((0, 1, 2**20, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little")
    else:
        size = int.from_bytes(content[:8], "little")
        for _ in range(rng.choice((1, 1, 5, 50))):
            content[rng.randrange(8, 8 + size if kind < 5 else len(content))] = rng.randrange(256)
    path.write_bytes(content)
    return "bytes of the weights"


def change_tensors(rng: random.Random, path: Path) -> str:
    """Weights that are not finite, of another shape or dtype, missing, or of another name."""
    state = load_file(path)
    name = rng.choice(sorted(state))
    value, kind = state.pop(name).clone(), rng.randrange(8)
    if kind < 3:
        value.view(-1)[rng.randrange(value.numel())] = (float("nan"), float("inf"), float("-inf"))[kind]
        state[name] = value
    elif kind == 3:
        state[name] = torch.cat([value, value])
    elif kind == 4:
        state[name] = value.to(rng.choice((torch.int8, torch.bool, torch.int64, torch.float64, torch.bfloat16)))
    elif kind == 5:
        state[name + rng.choice((".", "x", "\n", "é"))] = value
    elif kind == 6:
        state[name] = torch.zeros(0) if rng.random() < 0.5 else value * rng.choice((1e30, 0.0))
    path.unlink()
    save_file(state, path)
    return "a tensor"


def change_file(rng: random.Random, path: Path) -> str:
    """A file is gone, a folder, a link to nowhere or to itself, or another one of the folder."""
    other = rng.choice(sorted(path.parent.iterdir()))
    content = other.read_bytes()
    path.unlink()
    kind = rng.randrange(5)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to("/nowhere/at/all")
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        path.write_bytes(content)
    return "a file"


CHANGES: dict[str, tuple[Change, ...]] = {
    ".json": (change_value, change_value, change_value, change_keys, change_text, change_file),
    ".safetensors": (change_bytes, change_tensors, change_file),
}


def broken(rng: random.Random, folder: Path) -> str:
    """Change the folder once, now and then twice; says what was changed."""
    told = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]
        path = rng.choice(paths)
        try:
            told.append(f"{path.name}: {rng.choice(CHANGES[path.suffix])(rng, path)}")
        except Exception:  # what the first change left cannot be read, and changed again
            told.append(f"{path.name}: nothing more")
    return "; ".join(told)


def use_denoiser(folder: Path) -> str:
    result = SampDetox(folder, preset="ddim", seed=0)(torch.full((3, 8, 8), 0.5))
    return "an image" if bool(result.isfinite().all()) else "NOT FINITE"


def use_restorer(folder: Path) -> str:
    networks, calibrations = load_restorers(folder)
    answer = networks.small(torch.zeros(1, 3, 32, 32))
    p_value = calibrations.small.p_values(torch.zeros(1), answer.dense)
    return "an answer" if bool(p_value.isfinite().all()) else "NOT FINITE"


def outcome(use: Callable[[Path], str], folder: Path) -> tuple[str, Any]:
    """What came of it, and what is wrong with that, if anything."""
    begin = time.monotonic()
    try:
        told, wrong = use(folder), None
        wrong = told if told == "NOT FINITE" else None
    except REFUSED as error:
        told = f"refused: {type(error).__name__}"
        wrong = None if RULE_VALUE_REMEDY.search(str(error)) else str(error)[:300]
        if len(str(error)) > 3000:
            wrong = f"an error of {len(str(error))} characters"
    except Exception as error:  # anything else is what this test looks for
        told = wrong = f"WRONG: {type(error).__name__}: {str(error)[:300]}"
    seconds = time.monotonic() - begin
    return told, f"{seconds:.0f} seconds" if seconds > SECONDS else wrong


@pytest.fixture
def denoiser_folder(tiny) -> Path:
    return tiny


@pytest.fixture
def restorer_folder(tmp_path) -> Path:
    """The small networks of the package, in a folder of their own."""
    folder = tmp_path / "whole"
    folder.mkdir()
    for name in ("restorer.safetensors", "calibration.json"):
        shutil.copy(RESTORER_FOLDER / name, folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "count", "use"), [("denoiser", DENOISERS, use_denoiser), ("restorer", RESTORERS, use_restorer)]
)
def test_broken_folders(request, tmp_path, kind, count, use):
    whole, outcomes, wrong = request.getfixturevalue(f"{kind}_folder"), Counter(), []
    assert use(whole).startswith("an ")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        rng, folder = random.Random(number), tmp_path / "folder"
        shutil.copytree(whole, folder)
        changed = broken(rng, folder)
        told, fault = outcome(use, folder)
        outcomes[told] += 1
        if fault:
            wrong.append((number, changed, fault))
        shutil.rmtree(folder)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print("", f"{count} broken folders of a {kind}, {more} MB more", sep="\n")
    print(*(f"{count:6}  {name}" for name, count in sorted(outcomes.items())), sep="\n")
    assert not wrong, f"{len(wrong)} folders, the first: " + "\n".join(map(str, wrong[:20]))
    assert more < MEGABYTES
    refused = sum(count for name, count in outcomes.items() if name.startswith("refused"))
    assert refused > count / 2, "too few folders were refused to say anything"
