"""The app as a web server: a page, and one address that takes a picture and answers with what became of it.

The page brings its own script and style, and its rules forbid the browser to ask anyone else for anything.
"""

import base64
import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sampdetox_transforms._common import one_line
from sampdetox_transforms.cli.app.answer import clean
from sampdetox_transforms.lab.demo.photographs import FOLDER, NAMES, demo_triggers

if TYPE_CHECKING:
    from sampdetox_transforms.transforms.transform import SampDetox

LOG = logging.getLogger(__name__)

HERE = Path(__file__).parent
FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".jpg": "image/jpeg"}
LOOPBACK = ("127.0.0.1", "localhost", "::1")

MAX_BYTES = 64_000_000  # of an uploaded file

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(detox: "SampDetox", *, host: str = LOOPBACK[0], max_pixels: int = 16_000_000) -> Starlette:
    """The app for a detox; on loopback it answers to loopback's names only, so that no other page can reach it."""
    busy = threading.Lock()  # one picture at a time has all cores

    def work(content: bytes, trigger: str, seed: int) -> dict[str, Any]:
        with busy:
            answer = clean(content, detox, trigger=trigger, seed=seed, max_pixels=max_pixels)
        parts = asdict(answer)
        return {name: picture(part) if isinstance(part, bytes) else part for name, part in parts.items()}

    async def purify(request: Request) -> Response:
        if request.headers.get("content-type") != "application/octet-stream":  # what a form of another page cannot send
            return refused("A picture must come as application/octet-stream.", 415)
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > MAX_BYTES:
                return refused(f"Files must have {MAX_BYTES // 1_000_000} MB or less. Make the picture smaller.", 413)
        try:
            seed = int(request.query_params.get("seed", "0"))
            trigger = request.query_params.get("trigger", "none")
            return JSONResponse(await run_in_threadpool(work, bytes(content), trigger, seed), headers=HEADERS)
        except (ValueError, TypeError, OSError) as error:
            return refused(one_line(error), 400)
        except RuntimeError as error:  # memory, mostly
            LOG.warning("a picture failed: %s", error)
            return refused(f"This picture failed: {one_line(error)}", 500)

    async def choices(request: Request) -> Response:
        return JSONResponse({"triggers": list(demo_triggers()), "samples": list(NAMES)}, headers=HEADERS)

    async def sample(request: Request) -> Response:
        name = request.path_params["name"]
        return file(FOLDER / f"{name}.jpg") if name in NAMES else refused("There is no such picture.", 404)

    def page(name: str) -> Any:
        return lambda request: file(HERE / name)

    routes = [Route(address, page(name)) for address, name in FILES.items()]
    routes += [Route("/choices", choices), Route("/sample/{name}", sample), Route("/purify", purify, methods=["POST"])]
    names: Sequence[str] = LOOPBACK if host in LOOPBACK else ("*",)
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(names))])


def refused(reason: str, status: int) -> Response:
    """An error that the page shows."""
    return JSONResponse({"error": reason}, status_code=status, headers=HEADERS)


def file(path: Path) -> Response:
    """A file of the package."""
    return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers=HEADERS)


def picture(png: bytes) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
