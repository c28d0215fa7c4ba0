"""latte web in a browser: the demo model, from the first look to a video, and what goes wrong.

Needs Gradio, Playwright and Chromium: pip install "latte-mindspore[web]" playwright; apt install chromium. With
LATTE_SCREENSHOTS=FOLDER the screenshots of the documentation are written there.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from support.golden_values import ROOT

from latte.io.video import read_video

gradio = pytest.importorskip("gradio")
sync = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
PATIENCE = 600_000  # ms; the first sampling compiles, and machines may be busy


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a page of the demo model, in an empty folder."""
    folder = tmp_path_factory.mktemp("web")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "latte", "web", "--port", str(port), "--device_target", "CPU"]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
                    break
                except OSError:
                    assert process.poll() is None, (folder / "log.txt").read_text()
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}", folder
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def page(server):
    """The page in Chromium; afterwards nothing was asked of any other machine."""
    asked = []
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1200, "height": 900})
        opened.set_default_timeout(PATIENCE)
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(server[0])
        opened.wait_for_selector("#start")
        yield opened
        browser.close()
    assert not [url for url in asked if not url.startswith((server[0], "data:", "blob:"))]


def status(page, pattern):
    """Wait until the status of the page matches, and return it."""
    page.wait_for_function(
        "pattern => new RegExp(pattern).test(document.querySelector('#status textarea').value)", arg=pattern
    )
    return page.input_value("#status textarea")


def fill(page, name, value):
    page.fill(f"#{name} input[type=number]", str(value))
    page.press(f"#{name} input[type=number]", "Tab")


def shoot(page, name):
    if folder := os.environ.get("LATTE_SCREENSHOTS"):
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_the_form_shows_what_the_demo_model_takes(page):
    assert status(page, "ready") and "depth 6" in page.inner_text("#described")
    assert page.is_visible("#label") and page.is_visible("#seed") and not page.is_visible("#prompts")
    shoot(page, "web")


def test_a_video_is_made_with_previews_and_a_command_that_makes_it_again(page, server):
    fill(page, "label", 2)
    fill(page, "seed", 7)
    page.click("#start")
    assert re.fullmatch(r"step \d+ of 20", status(page, r"^step ([2-9]|1\d) of 20$"))
    page.wait_for_selector("#preview img")
    shoot(page, "web-running")
    assert "s per network call" in status(page, "peak memory")
    page.wait_for_selector("#video video")
    page.wait_for_timeout(1000)
    shoot(page, "web-result")
    command = page.input_value("#command textarea")
    assert re.search(r"^latte sample --checkpoint \S+.* --class_labels 2 .*--seed 7", command)
    (made,) = (server[1] / "outputs" / "web").glob("*/video-*.mp4")
    assert (made.parent / "command.txt").read_text() == command
    with page.expect_download() as download:
        page.click("#file a")
    assert Path(download.value.path()).read_bytes() == made.read_bytes()
    page.wait_for_selector("#history button")


def test_the_command_makes_the_same_video(page, server):
    """Needs what the test before has made."""
    (made,) = (server[1] / "outputs" / "web").glob("*/video-*.mp4")
    words = shlex.split((made.parent / "command.txt").read_text())
    command = [sys.executable, "-m", *words, "--output_path", "again"]
    subprocess.run(command, cwd=server[1], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert np.array_equal(read_video(server[1] / "again" / made.name), read_video(made))


def test_a_sampling_is_cancelled(page, server):
    fill(page, "steps", 250)
    page.click("#start")
    status(page, "^step")
    page.click("#cancel")
    assert status(page, "cancelled")
    assert len(list((server[1] / "outputs" / "web").glob("*/video-*.mp4"))) == 1
    fill(page, "steps", 20)


def test_a_mistake_is_one_sentence(page):
    fill(page, "pixels", 60)
    page.click("#start")
    assert status(page, "^error") == "error: command line: image_size is 60, but must be a multiple of 8"
    shoot(page, "web-error")
    fill(page, "pixels", 64)


def test_it_listens_at_this_machine_only(server):
    port = int(server[0].rpartition(":")[2])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)} - {"127.0.0.1", "::1"}
    for address in others:
        if not address.startswith("127."):
            with pytest.raises(ConnectionError), socket.create_connection((address, port), timeout=5):
                pass
