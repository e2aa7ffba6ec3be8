"""The command ``sampdetox``: all commands under one name, and how errors end.

Exit status: 0, or 1 where some pictures failed and all others were done, 2 for an error, 130 when interrupted.
Errors are one line on stderr. The commands load heavy modules when they run, so that help is quick.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from safetensors import SafetensorError

from sampdetox_transforms._common import one_line
from sampdetox_transforms.cli import benchmark, calibrate, demo, flags, inspect, recover, train, victim, weights
from sampdetox_transforms.cli.app import command as browser
from sampdetox_transforms.cli.evaluate import command as evaluate
from sampdetox_transforms.cli.purify import command as purify
from sampdetox_transforms.cli.shared import log_to_stderr, printable

USAGE: type[Exception] = typer.BadParameter.__mro__[2]  # ClickException: Typer holds a click of its own, or imports one

EXPECTED = (ValueError, TypeError, OSError, RuntimeError, SafetensorError)  # the last one: a full disk, no OSError

COMMANDS: tuple[tuple[Callable[..., int], str | None], ...] = (
    (demo.demo, None),
    (purify.purify, purify.NOTES),
    (inspect.inspect, None),
    (browser.app, browser.NOTES),
    (recover.recover, recover.NOTES),
    (calibrate.calibrate, calibrate.NOTES),
    (train.train, train.NOTES),
    (victim.victim, victim.NOTES),
    (evaluate.evaluate, evaluate.NOTES),
    (benchmark.benchmark, benchmark.NOTES),
)

app = typer.Typer(name="sampdetox", rich_markup_mode=None, context_settings=flags.NAMES)

for function, notes in COMMANDS:
    app.command(cls=flags.Command, context_settings=flags.NAMES, epilog=notes)(function)

app.add_typer(weights.app, name="weights")


def show_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        from sampdetox_transforms import __version__

        print(f"sampdetox {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, show_default=False, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Take backdoor triggers out of images before a classifier sees them (SampDetox, NeurIPS 2024)."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on ``argv`` (None: the program's own arguments) and return the exit status."""
    command = typer.main.get_command(app)
    try:
        with log_to_stderr():
            args = None if argv is None else list(argv)
            status = command.main(args=args, prog_name="sampdetox", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except USAGE as error:
        context = getattr(error, "ctx", None)
        where = "sampdetox" if context is None else context.command_path
        reason = getattr(error, "format_message", error.__str__)()
        return fail(f"{reason.rstrip('.')}{'' if reason.endswith('?') else '.'} Try '{where} --help'.")
    except EXPECTED as error:
        return fail(one_line(error))
    if status == 130:
        print("sampdetox: interrupted; what is finished is kept", file=sys.stderr)
    return status


def fail(reason: str) -> int:
    """Say why in one line, and return the exit status."""
    print(f"sampdetox: error: {printable(' '.join(reason.split()))}", file=sys.stderr)
    return 2
