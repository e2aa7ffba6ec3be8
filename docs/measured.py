"""What a page says of a measurement: n, seed, commit, machine, command, and whether the weights have changed since.

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
OF_DENOISER = {"ablation", "bundled", "bundled-ddpm", "bundled-train", "levels", "samplers", "strides"}
WEIGHTS = {f"gtsrb-{name}": DENOISER for name in OF_DENOISER | {"transformations", "robustness"}}
WEIGHTS |= dict.fromkeys(("speed", "speed-float32", "denoising-psnr", "demo-signs", "profile-ddim"), DENOISER)
WEIGHTS |= {"gtsrb-lownoise": ()}

# Measured by scripts whose place experiments have taken: what repeats them today.
CALLS = {
    "adaptive-patch": 'run_experiment("adaptive-patch", n=300)',
    "denoising-psnr": 'run_experiment("denoising")',
    "gtsrb-bundled": 'run_experiment("settings", n=500)',
    "gtsrb-bundled-ddpm": 'run_experiment("settings", n=500, n_ddpm=50)',
    "gtsrb-bundled-train": 'run_experiment("settings", n=300, split="train")',
    "gtsrb-lownoise": 'run_experiment("settings", n=200, weights="models/denoiser-lownoise-32")',
    "public-classifiers": 'run_experiment("restore", n=500)',
    "relabel": 'run_experiment("relabel", victims=("badnets", "trojannn"))',
    "restore-ablation": 'run_experiment("restore-ablation", n=40, patch_victim="patches.safetensors")',
    "restore-ablation-attacks": 'run_experiment("restore-ablation", n=100, victims=(...))',
    "restore-cifar10": 'run_experiment("restore", n=509, images="cifar10", patch_victim="patches.safetensors")',
    "restore-cifar10-attacks": 'run_experiment("restore", n=509, images="cifar10", victims=(...))',
    "restore-patches": 'run_experiment("restore", n=500, patch_victim="patches.safetensors")',
}


def line(name: str) -> str:
    """The line of one result."""
    about = facts(name)
    parts = [about["n"], about["seed"], about["hardware"], f"commit {', '.join(about['commits']) or 'unknown'}"]
    words = f"{', '.join(part for part in parts if part)}: `{about['command']}`."
    links = ", ".join(
        f"[{kind}]({{docs}}results/{name}.{kind})" for kind in ("md", "json") if path(name, kind).exists()
    )
    return f"({words} Full table: {links}.{'' if is_fresh(name) else ' **Measured with earlier weights.**'})"


def facts(name: str) -> dict[str, Any]:
    """n, seed, hardware, commits and command of a result: from its JSON file, and the last line of its table."""
    document = json.loads(path(name).read_text()) if path(name).exists() else {}
    under = path(name, "md").read_text().strip().splitlines()[-1] if path(name, "md").exists() else ""
    settings = {**document, **document.get("settings", {}), **document.get("about", {})}
    made = document.get("environments") or [document.get("environment", {})]
    commits = [environment["commit"] for environment in made if environment.get("commit")]
    last = re.search(r"\(((?:[0-9a-f]{7}\+?(?:, )?)+)\)", under)
    commits = commits or (last[1].split(", ") if last else [])
    ran = CALLS.get(name) or settings.get("command") or _first(r"`([^`]+)`", under)
    hardware = made[-1].get("hardware") or settings.get("hardware") or _first(r"(AMD [^;]*threads)", under)
    return {
        "n": f"n = {settings['n']}" if "n" in settings else "",
        "seed": f"seed {settings['seed']}" if "seed" in settings else "",
        "hardware": _in_cores(hardware),
        "commits": _newest(commits),
        "command": ran,
    }


def is_fresh(name: str) -> bool:
    """Whether a result was measured with the weights that are here; also where git does not know."""
    commits = facts(name)["commits"]
    weights = WEIGHTS.get(name, LARGE if name.startswith("photographs") else SMALL)
    introduced = [_introduced(file) for file in weights if (ROOT / file).exists()]
    known = [commit for commit in introduced if commit]
    return all(any(_holds(measured, commit) for measured in commits) for commit in known) if commits else True


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


def _introduced(file: str) -> str | None:
    """The commit that this content came with, wherever the file lay then."""
    blob = _git("hash-object", file)
    found = _git("log", "--format=%H", f"--find-object={blob}") if blob else None
    return found.splitlines()[-1] if found else None


def _holds(measured: str, commit: str) -> bool:
    """Whether the tree that was measured had this commit; a changed tree ("+") may have had the next one."""
    base = measured.rstrip("+")
    if _git("rev-parse", "--quiet", "--verify", f"{base}^{{commit}}") is None:
        return True  # a copy without history
    if _git("merge-base", "--is-ancestor", commit, base) is not None:
        return True
    return measured.endswith("+") and (_git("rev-parse", f"{commit}^") or "").startswith(base)


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
    stale = [page for page in pages() if written(page) != page.read_text()]
    if "--check" in sys.argv:
        sys.exit(f"run python docs/measured.py: {[page.name for page in stale]}" if stale else 0)
    for page in stale:
        page.write_text(written(page))
