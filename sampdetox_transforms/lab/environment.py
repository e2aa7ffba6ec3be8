"""What a measured number depends on besides its settings: processor or card, threads, versions, commit."""

import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torchvision

from sampdetox_transforms import __version__


def hardware(device: str | torch.device = "cpu") -> str:
    """The card's or the processor's name, the latter with the number of threads in use."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def commit() -> str:
    """The short hash of the checkout that this package runs from, with "+" where files are changed; else ""."""

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", *command], capture_output=True, text=True, cwd=Path(__file__).resolve().parent, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if git("ls-files", "--error-unmatch", Path(__file__).name) == "":
            return ""  # another repository, in which an installed copy lies
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except OSError:  # no git here
        return ""


def describe(device: str | torch.device = "cpu") -> dict[str, str]:
    """Hardware, versions and commit, as stored with results."""
    return {
        "hardware": hardware(device),
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "sampdetox-transforms": __version__,
        "commit": commit(),
    }


def all_in_words(descriptions: Sequence[Mapping[str, str]]) -> str:
    """Several of what ``describe`` returned, each once; those that differ by their commits only together."""
    commits: dict[str, list[str]] = {}
    for description in descriptions:
        known = commits.setdefault(in_words({**description, "commit": ""}), [])
        if description["commit"] and description["commit"] not in known:
            known.append(description["commit"])
    return "; ".join(f"{words} ({', '.join(found)})" if found else words for words, found in commits.items())


def in_words(description: Mapping[str, str]) -> str:
    """What ``describe`` returned, for the line under a table."""
    version = f"sampdetox-transforms {description['sampdetox-transforms']}"
    made = f" ({description['commit']})" if description["commit"] else ""
    return f"{description['hardware']}, torch {description['torch']}, {version}{made}"
