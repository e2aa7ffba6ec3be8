"""The options that several commands share, each as an ``Annotated`` type, and the command class that reads them.

Nothing here loads torch, so that help and shell completion are quick.
"""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

NAMES = {"help_option_names": ["-h", "--help"]}  # context settings of every command


class Dtype(StrEnum):
    """What networks compute in; auto is the fastest."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


PRESETS = ("restore", "ddim", "paper", "paper-linear", "authors-code")  # tested to be those of the library


class Command(TyperCommand):
    """A command whose repeatable options take several values at once: ``--set a=1 b=2`` is ``--set a=1 --set b=2``.

    ``--ray`` needs no value: ``--ray`` alone is ``--ray=here``.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        if any("--ray" in param.opts for param in self.params):
            args = with_value(args, "--ray", HERE, ADDRESS)
        return super().parse_args(ctx, spread(args, several))


HERE = "here"  # --ray without an address

ADDRESS = re.compile(r"here|auto|local|ray://\S+|[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+")


def with_value(args: Sequence[str], flag: str, default: str, allowed: re.Pattern[str]) -> list[str]:
    """Give ``flag`` the value ``default`` where what follows it does not look like one of its own."""
    result: list[str] = []
    for i, arg in enumerate(args):
        if arg == "--":
            return [*result, *args[i:]]
        result.append(arg)
        if arg == flag and not (i + 1 < len(args) and allowed.fullmatch(args[i + 1])):
            result.append(default)
    return result


def spread(args: Sequence[str], several: Iterable[str]) -> list[str]:
    """Repeat each flag of ``several`` before every value that follows it, up to the next flag."""
    flags, result = set(several), []
    flag, given = "", False
    for i, arg in enumerate(args):
        if arg == "--":
            return [*result, *args[i:]]
        if arg.startswith("-") and len(arg) > 1:
            flag, given = (arg, False) if arg in flags else ("", False)
            result.append(arg)
        else:
            result += [flag, arg] if flag and given else [arg]
            given = True
    return result


def number(text: str) -> float:
    """A whole number as int, others as float."""
    value = float(text)
    return int(value) if value.is_integer() else value


def numbers(text: str, flag: str) -> tuple[int, ...]:
    """64,64,128 -> (64, 64, 128); ValueError names the flag."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{flag} must be whole numbers with commas between, got {text!r}. Write 8,64, say.") from error


def complete_preset(incomplete: str) -> list[str]:
    """What ``--preset`` may be, for shells."""
    return [name for name in PRESETS if name.startswith(incomplete)]


# The method

Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="WEIGHTS",
        show_default="the library's, downloaded once; 'bundled' needs no network",
        help="Denoiser: a name ('sampdetox weights list'), a folder, or user/repo[@revision] on the Hub.",
    ),
]

BundledWeights = Annotated[
    str,
    typer.Option(
        "--weights", metavar="WEIGHTS", help="Denoiser: a name, a folder, or user/repo[@revision] on the Hub."
    ),
]

Restorer = Annotated[
    Path | None,
    typer.Option(
        "--restorer",
        metavar="FOLDER",
        show_default="those in the package",
        help="Networks that search for triggers, and their thresholds.",
    ),
]

Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        show_default="those stored with the search networks",
        help="Thresholds of the search, as 'sampdetox calibrate' writes them.",
    ),
]

Trigger = Annotated[
    Path | None,
    typer.Option(
        "--trigger",
        metavar="FILE",
        show_default="none",
        help="A trigger that 'sampdetox recover' wrote, taken out first of each picture that carries it. All pictures "
        "must have its size.",
    ),
]

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        show_default="restore",
        autocompletion=complete_preset,
        help="restore, ddim, paper, paper-linear or authors-code; the options below change it.",
    ),
]

T1 = Annotated[
    float | None,
    typer.Option(
        "--t1",
        parser=number,
        metavar="LEVEL",
        show_default="the preset's; restore 12, authors-code 120, others 20",
        help="Noise level of the global stage, 0 or more, at most what the weights know.",
    ),
]

T2 = Annotated[
    float | None,
    typer.Option(
        "--t2",
        parser=number,
        metavar="LEVEL",
        show_default="the preset's, 120",
        help="Highest noise level of the local stage, as --t1.",
    ),
]

Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler", metavar="NAME", show_default="the preset's; restore and ddim: ddim, others: ddpm",
        help="ddim or ddpm.",
    ),
]  # fmt: skip

Stride = Annotated[
    float | None,
    typer.Option(
        "--stride",
        parser=number,
        metavar="LEVELS",
        show_default="the preset's; restore 60, ddim 20, others 1",
        help="Levels between two network calls, above 0; 1 for the paper's ddpm.",
    ),
]

FreshSeed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        show_default="fresh noise each time",
        help="Any whole number: a picture's result is then the same at any time, in any batch.",
    ),
]

Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Any whole number.")]

DtypeFlag = Annotated[
    Dtype,
    typer.Option(
        "--dtype", help="What the networks compute in; auto is bfloat16 where the processor or card has it, "
        "else float32."
    ),
]  # fmt: skip

Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", show_default="cuda where there is one, else cpu", help="cpu, cuda, cuda:1, ..."
    ),
]

Bf16 = Annotated[
    bool | None,
    typer.Option(
        "--bf16/--no-bf16",
        show_default="where the processor or card has it",
        help="Compute in bfloat16.",
    ),
]

# Pictures

MaxPixels = Annotated[
    int,
    typer.Option(
        "--max-pixels",
        metavar="N",
        help="Pictures of more pixels, width times height, are refused before they are decoded.",
    ),
]

# What is printed

Verbose = Annotated[
    int,
    typer.Option(
        "-v", "--verbose", count=True, show_default="warnings only", help="Say what is done; twice for all details."
    ),
]

Quiet = Annotated[
    bool,
    typer.Option("--quiet", show_default="no", help="No progress, no remarks: errors, and what was asked for."),
]

Json = Annotated[bool, typer.Option("--json", show_default="text", help="Print the result as one JSON object.")]

Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        show_default="one process",
        help="Share the pictures between the processors or cards of this machine, or of the cluster at HOST:PORT.",
    ),
]
