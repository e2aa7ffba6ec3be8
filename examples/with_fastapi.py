"""A service that stands before a classifier that somebody else runs: it purifies each picture and passes it on.

UPSTREAM=https://classifier.example/predict uvicorn --app-dir examples with_fastapi:app
curl --data-binary @photo.jpg http://127.0.0.1:8000/classify
"""

import io
import json
import os
import urllib.request
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image

from sampdetox_transforms import SampDetox

MAX_BYTES, MAX_PIXELS = 20_000_000, 20_000_000


def ask_upstream(png: bytes) -> Any:
    """What the remote classifier says of a picture: change this to what yours wants."""
    request = urllib.request.Request(os.environ["UPSTREAM"], png, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def make_app(detox: SampDetox, ask: Callable[[bytes], Any] = ask_upstream) -> FastAPI:
    """POST a picture to /classify: {"answer": what upstream says of the clean one, "p_value": ..., "found": ...}."""
    app = FastAPI(title="purified classifier")

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > MAX_BYTES:
                raise HTTPException(413, f"a picture must have {MAX_BYTES} bytes or fewer. Send a smaller one.")
        return await run_in_threadpool(answer, bytes(content))

    def answer(content: bytes) -> dict[str, Any]:
        details = detox.explain(read(content))
        file = io.BytesIO()
        details.image.save(file, "PNG")  # without loss
        p_value = float(details.found.p_value)
        rate = detox.calibration.false_alarm_rate
        return {"answer": ask(file.getvalue()), "p_value": p_value, "found": p_value < rate}

    return app


def read(content: bytes) -> Image.Image:
    """A picture in RGB; its size is checked before it is decoded."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise HTTPException(413, f"a picture must have {MAX_PIXELS} pixels or fewer. Send a smaller one.")
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise HTTPException(400, "the body must be a PNG, JPEG or WebP file that can be read.") from error


def __getattr__(name: str) -> FastAPI:
    if name == "app":  # what uvicorn asks for; a test that imports this file loads no networks
        return make_app(SampDetox("bundled"))
    raise AttributeError(name)
