"""``sampdetox app``: pictures in a browser, before and after."""

from importlib.util import find_spec
from typing import Annotated, Any

import typer

from sampdetox_transforms.cli import flags
from sampdetox_transforms.cli.shared import check_at_least, listen, make_detox, say

NEEDED = ("starlette", "uvicorn")

NOTES = """\
Needs the extra 'app': pip install '.[app]' in the folder of the source, or 'sampdetox-transforms[app]'. The page is for
this machine alone unless --host names another address, and asks nothing of the internet. A picture is forgotten once it
is answered. With --trigger, pictures of another size than the trigger's are refused. Ctrl-C ends it.
"""


def app(
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="A free port, 1 to 65535.")] = 7860,
    weights: flags.BundledWeights = "bundled",
    restorer: flags.Restorer = None,
    calibration: flags.Calibration = None,
    trigger: flags.Trigger = None,
    preset: flags.Preset = None,
    seed: flags.Seed = 0,
    device: flags.Device = None,
    max_pixels: flags.MaxPixels = 16_000_000,
    verbose: flags.Verbose = 0,
    quiet: flags.Quiet = False,
) -> int:
    """Purify pictures in a browser: drop one, see before and after."""
    listen(verbose, quiet)
    check_at_least(1, max_pixels=max_pixels, port=port)
    if port > 65535:
        raise ValueError(f"--port must be 65535 or less, got {port}. 7860 is the default.")
    if not all(find_spec(name) for name in NEEDED):
        raise RuntimeError(
            "the app needs starlette and uvicorn, got none. Install them: pip install '.[app]' in the folder of this "
            "package's source, or pip install 'sampdetox-transforms[app]'."
        )
    check_free(host, port)
    import uvicorn

    from sampdetox_transforms.cli.app.server import make_app

    settings: dict[str, Any] = {
        **{"weights": weights, "restorer": restorer, "calibration": calibration, "trigger": trigger},
        **{"preset": preset, "seed": seed, "device": device},
    }
    detox = make_detox(**settings)
    say(f"open http://{f'[{host}]' if ':' in host else host}:{port} in a browser; Ctrl-C ends it", quiet=quiet)
    uvicorn.run(make_app(detox, host=host, max_pixels=max_pixels), host=host, port=port, log_level="warning")
    return 0


def check_free(host: str, port: int) -> None:
    """Raise OSError now where nothing can listen there."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                f"--host and --port must be free, got {host}:{port}: {reason}. Give another --port."
            ) from error
