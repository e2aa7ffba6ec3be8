"""What a page says of a measurement: n, seed, commit, machine, command, and what has changed since.

    python docs/measured.py            # write these lines into README.md and docs/
    python docs/measured.py --check    # only say which pages have other ones

A line stands between ``<!-- measured NAME -->`` and ``<!-- end -->``; NAME is a file of docs/results.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
BLOCK = re.compile(r"(<!-- measured (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

# What a result speaks of. A name that is not here speaks of the default at 32 pixels.
FOLDER = "sampdetox_transforms/networks/weights"
DENOISER = (f"{FOLDER}/bundled/diffusion_pytorch_model.safetensors",)
SMALL = (*DENOISER, f"{FOLDER}/restorer/restorer.safetensors")
LARGE = (f"{FOLDER}/restorer/photographs.safetensors",)
DEFAULT, FIELD = "sampdetox_transforms/method/restore.py", "^    {names}: [A-Za-z0-9 |]+ = "
# Settings that change small images alone, and not what is taken out of them to be compared with what others lose; and
# the results that they do not date, beside those of large images.
OF_SMALL, COMPARED = ("t1_doubt", "colour_gain"), ("shared-relabel", "shared-trigger-kinds")
OF_LARGE = ("t1_large",)  # settings that change large images alone
OF_DENOISER = {"ablation", "bundled", "bundled-ddpm", "bundled-train", "levels", "levels-t1", "samplers", "strides"}
WEIGHTS = {f"gtsrb-{name}": DENOISER for name in OF_DENOISER | {"transformations", "robustness"}}
WEIGHTS |= dict.fromkeys(("speed", "speed-float32", "denoising-psnr", "profile-ddim"), DENOISER)
WEIGHTS |= {"gtsrb-lownoise": (), "photographs-algorithm1": DENOISER}
WEIGHTS |= dict.fromkeys(
    ("fills", "shared-trigger-photographs", "speed-photographs", "textures", "tiny-imagenet"), LARGE
)
WEIGHTS |= {"shared-trigger-kinds": (*SMALL, *LARGE)}

# Measured by scripts whose place experiments have taken: what repeats them today.
CALLS = {
    "denoising-psnr": "--experiment denoising",
    "gtsrb-bundled": "--experiment settings --n 500",
    "gtsrb-bundled-ddpm": "--experiment settings --n 500 --set n_ddpm=50",
    "gtsrb-bundled-train": "--experiment settings --n 300 --set split=train",
    "gtsrb-lownoise": "--experiment settings --n 200 --weights models/denoiser-lownoise-32",
    "public-classifiers": "--experiment restore --n 500",
    "relabel": "badnets trojannn --experiment relabel",
    "restore-ablation": "--experiment restore-ablation --n 40 --set patch_victim=patches.safetensors",
    "restore-cifar10-attacks": "badnets sig trojannn input-aware blended low-frequency wanet stega bpp "
    "--experiment restore --n 509 --set images=cifar10",
}

# What repeats other measurements today, where that has moved.
PROGRAMS = {
    "loader-speed": "python -m sampdetox_transforms.lab.speed.loaders --n 128",
    "memory": 'python -m sampdetox_transforms.lab.speed.memory --data "$SAMPDETOX_DATA/gtsrb32/test"',
}


def line(name: str) -> str:
    """The line of one result."""
    about = facts(name)
    parts = [about["n"], about["seed"], about["hardware"], f"commit {', '.join(about['commits']) or 'unknown'}"]
    words = f"{', '.join(part for part in parts if part)}: `{about['command']}`."
    links = ", ".join(
        f"[{kind}]({{docs}}results/{name}.{kind})" for kind in ("md", "json") if path(name, kind).exists()
    )
    old = earlier(name)
    return f"({words} Full table: {links}.{f' **Measured with earlier {old}.**' if old else ''})"


def facts(name: str) -> dict[str, Any]:
    """n, seed, hardware, commits and command of a result: from its JSON file, and the last line of its table."""
    document = json.loads(path(name).read_text()) if path(name).exists() else {}
    under = path(name, "md").read_text().strip().splitlines()[-1] if path(name, "md").exists() else ""
    settings = {**document, **document.get("settings", {}), **document.get("about", {})}
    used = {row["environment"] for row in document.get("rows", ()) if "environment" in row}
    made = [environment for i, environment in enumerate(document.get("environments", ())) if i in used or not used]
    made = made or [document.get("environment", {})]
    commits = [environment["commit"] for environment in made if environment.get("commit")]
    last = re.search(r"\(((?:[0-9a-f]{7}\+?(?:, )?)+)\)", under)
    commits = commits or (last[1].split(", ") if last else [])
    today = f"sampdetox evaluate {CALLS[name]}" if name in CALLS else PROGRAMS.get(name)
    ran = today or settings.get("command") or _first(r"`([^`]+)`", under)
    hardware = made[-1].get("hardware") or settings.get("hardware") or _first(r"(AMD [^;]*threads)", under)
    return {
        "n": f"n = {settings['n']}" if "n" in settings else "",
        "seed": f"seed {settings['seed']}" if "seed" in settings else "",
        "hardware": _in_cores(hardware),
        "commits": _newest(commits),
        "command": ran,
    }


def earlier(name: str) -> str:
    """What has changed since: "weights", "settings", both, or nothing; nothing also where git does not know."""
    commits = facts(name)["commits"]
    weights = WEIGHTS.get(name, LARGE if name.startswith("photographs") else SMALL)
    if not commits or not has_history():
        return ""
    since = {"weights": [_introduced(file) for file in weights if (ROOT / file).exists()]}
    without = OF_SMALL if weights == LARGE or name.startswith(COMPARED) else ()
    without += () if set(LARGE) <= set(weights) else OF_LARGE
    since["settings"] = [] if weights in ((), DENOISER) else [_settled(without)]
    old = [what for what, when in since.items() if not all(any(_holds(m, c) for m in commits) for c in when)]
    return " and ".join(old)


def path(name: str, suffix: str = "json") -> Path:
    return RESULTS / f"{name}.{suffix}"


def written(page: Path) -> str:
    """The page's text with every line as it should be."""
    docs = "docs/" if page.parent == ROOT else "../" * len(page.relative_to(ROOT / "docs").parts[1:])
    return BLOCK.sub(lambda m: f"{m[1]}\n{line(m[2]).format(docs=docs)}\n\n{m[3]}", page.read_text())


def pages() -> Iterator[Path]:
    """README and the pages of the site, tables that are only downloads aside."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))
    yield from sorted((ROOT / "docs" / "notes").glob("*.md"))


@cache
def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(["git", *command], capture_output=True, text=True, cwd=ROOT, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def has_history() -> bool:
    """Whether git knows all commits: neither an unpacked archive nor a shallow copy."""
    return _git("rev-parse", "--is-shallow-repository") == "false"


def _introduced(file: str) -> str:
    """The commit that this content came with, wherever the file lay then; "" for what is not committed."""
    found = _git("log", "--format=%H", f"--find-object={_git('hash-object', file)}")
    return found.splitlines()[-1] if found else ""


def _settled(without: tuple[str, ...] = ()) -> str:
    """The commit that last changed a setting of the default, some left out."""
    names = re.findall(FIELD.format(names="([a-z0-9_]+)"), (ROOT / DEFAULT).read_text(), re.MULTILINE)
    chosen = FIELD.format(names=f"({'|'.join(name for name in names if name not in without)})")
    return _git("log", "-1", "--format=%H", f"-G{chosen}", "--", DEFAULT) or ""


def _holds(measured: str, commit: str) -> bool:
    """Whether the tree that was measured had this commit; a changed tree ("+") may have had the next one."""
    base = measured.rstrip("+")
    if commit and _git("merge-base", "--is-ancestor", commit, base) is not None:
        return True
    before = _git("rev-parse", f"{commit}^" if commit else "HEAD")
    return measured.endswith("+") and (before or "").startswith(base)


def _newest(commits: list[str]) -> list[str]:
    """At most three, the last in history first."""
    dates = {commit: int(_git("log", "-1", "--format=%ct", commit.rstrip("+")) or 0) for commit in commits}
    return sorted(dict.fromkeys(commits), key=lambda commit: -dates[commit])[:3]


def _in_cores(hardware: str) -> str:
    """ "AMD EPYC, 2 threads" in words."""
    name, _, rest = hardware.partition(", ")
    threads = _first(r"^(\d+) threads", rest)
    count = {"1": "one core", "2": "two cores"}.get(threads, f"{threads} cores")
    return f"{count} of an {name}" if threads else name


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


if __name__ == "__main__":
    if not has_history():
        sys.exit("the history of the weights is needed, which this copy does not have" if len(sys.argv) < 2 else 0)
    stale = [page for page in pages() if written(page) != page.read_text()]
    if "--check" in sys.argv:
        sys.exit(f"run python docs/measured.py: {[page.name for page in stale]}" if stale else 0)
    for page in stale:
        page.write_text(written(page))
