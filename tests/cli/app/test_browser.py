# ruff: noqa: E402
"""The app in a real browser without a window: the system's Chromium, driven by Playwright."""

import shutil
import socket
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
sync_api = pytest.importorskip("playwright.sync_api")

from sampdetox_transforms import SampDetox
from sampdetox_transforms.cli.app.server import make_app
from sampdetox_transforms.lab.demo.photographs import FOLDER

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 60_000  # milliseconds for an answer: the machine may be busy

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(make_app(SampDetox("bundled", seed=0)), host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started and time.monotonic() < end:
        time.sleep(0.05)
    assert server.started
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page, whose every request must go to its own server, and whose script must not fail."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Content Security" in message.text else None)
    page.goto(address)
    page.wait_for_selector("#samples img")
    yield page
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(address).netloc} and not problems
    page.close()


def choose(page, path, trigger="none"):
    page.select_option("#trigger", trigger)
    page.set_input_files("#file", path)
    page.wait_for_selector("#result:not([hidden])", timeout=WAIT)


def test_upload_see_the_mask_and_download(page, tmp_path):
    choose(page, FOLDER / "chelsea.jpg", "white square")
    assert "was found" in page.inner_text("#verdict")
    facts = page.inner_text("#facts")
    assert all(name in facts for name in ("Suspicion", "Found", "Level", "Network calls"))
    assert page.is_visible("#mask") and page.is_checked("#show")
    page.uncheck("#show")
    assert not page.is_visible("#mask")
    page.fill("#slider", "80")
    assert "80%" in page.get_attribute("#compare", "style")
    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(tmp_path / "result.png")
    assert waiting.value.suggested_filename == "chelsea-clean.png"
    result = np.asarray(Image.open(tmp_path / "result.png"))
    assert result.shape == (256, 256, 3)


def test_a_sample_without_a_trigger_passes_lightly(page):
    page.click("#samples button")
    page.wait_for_selector("#result:not([hidden])", timeout=WAIT)
    assert page.inner_text("#verdict").startswith("Nothing was found") and not page.is_visible("#mask")


def test_a_broken_file_gives_the_message_and_the_page_goes_on(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    page.set_input_files("#file", tmp_path / "broken.png")
    page.wait_for_selector("#error:not([hidden])", timeout=WAIT)
    assert "cannot be read" in page.inner_text("#error") and not page.is_visible("#result")
    choose(page, FOLDER / "brick.jpg")
    assert not page.is_visible("#error")
