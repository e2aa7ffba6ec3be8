"""The app's server: what it answers, what it refuses, and that it asks nobody for anything."""

import base64
import io
import re
import types

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
try:
    from starlette.testclient import TestClient
except (ImportError, RuntimeError):  # it needs httpx, of some name
    pytest.skip("starlette's test client needs httpx", allow_module_level=True)

from sampdetox_transforms import SampDetox
from sampdetox_transforms.cli.app import server
from sampdetox_transforms.cli.app.server import HERE, make_app
from sampdetox_transforms.lab.demo.photographs import NAMES, demo_triggers

RAW = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def client():
    return TestClient(make_app(SampDetox("bundled", seed=0)), base_url="http://127.0.0.1:7860")


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_picture_comes_back(client):
    reply = client.post("/purify?trigger=none&seed=3", content=picture(), headers=RAW)
    answer = reply.json()
    assert reply.status_code == 200 and answer["numbers"]["calls"] > 0
    png = base64.b64decode(answer["after"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(png)).size == (32, 32)


@pytest.mark.parametrize(
    ("address", "content", "headers", "status", "reason"),
    [
        ("/purify", b"no picture", RAW, 400, "cannot be read"),
        ("/purify?trigger=no+such", picture(), RAW, 400, "trigger"),
        ("/purify?seed=x", picture(), RAW, 400, "x"),
        ("/purify", picture(), {"Content-Type": "text/plain"}, 415, "application/octet-stream"),
    ],
)
def test_what_is_wrong_is_said(client, address, content, headers, status, reason):
    reply = client.post(address, content=content, headers=headers)
    assert reply.status_code == status and reason in reply.json()["error"]


def test_a_file_that_is_too_large_is_refused(client, monkeypatch):
    monkeypatch.setattr(server, "MAX_BYTES", 100)
    assert client.post("/purify", content=bytes(101), headers=RAW).status_code == 413


def test_other_names_than_those_of_loopback_are_refused(client):
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 400
    open_to_all = TestClient(make_app(types.SimpleNamespace(), host="0.0.0.0"), base_url="http://machine.example")
    assert open_to_all.get("/").status_code == 200


def test_the_page_asks_its_own_server_only(client):
    for name in ("/", "/page.js", "/page.css"):
        reply = client.get(name)
        assert reply.status_code == 200 and not re.search(r"(https?:)?//[a-z]", reply.text)
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert {path.name for path in HERE.glob("page.*")} == {"page.html", "page.js", "page.css"}


def test_triggers_and_samples_are_listed_and_nothing_else_is_served(client):
    assert client.get("/choices").json() == {"triggers": list(demo_triggers()), "samples": list(NAMES)}
    assert client.get(f"/sample/{NAMES[0]}").content.startswith(b"\xff\xd8")
    for name in ("SOURCES.txt", "..%2f..%2fdemo.py", "hubble"):
        assert client.get(f"/sample/{name}").status_code == 404
