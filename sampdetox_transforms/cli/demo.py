"""``sampdetox demo``: triggers planted and taken out, from what the package holds."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.shared import check_writable, choose_device, listen, say


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="PICTURE", help="The picture that is drawn.")] = Path(
        "sampdetox-demo.png"
    ),
    seed: flags.Seed = 0,
    device: flags.Device = None,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Plant triggers in photographs, take them out, draw what was found; offline."""
    listen(verbose, quiet)
    check_writable(out.parent)
    from sampdetox_transforms.lab.demo.demo import run_demo
    from sampdetox_transforms.lab.drawing.plots import check_format

    check_format(out)

    def progress(step: str) -> None:
        if not quiet:
            print(step, file=sys.stderr)

    say(run_demo(out, seed=seed, device=choose_device(device), progress=progress))
    say(f"picture: {out}", quiet=quiet)
    return 0
