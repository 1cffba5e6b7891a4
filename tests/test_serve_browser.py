"""The page of `parivox serve` in a real browser: Debian's chromium, driven by Playwright.

`PARIVOX_SCREENSHOTS=folder` keeps the pictures.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

import parivox
from parivox.audio import probe, read_audio, write_audio
from parivox.backend import installed
from tests.serve_process import Served, served
from tests.tiny_model import enhancer_run, recording, tiny_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium; apt-get install chromium"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("gradio", "playwright")),
        reason="Gradio or Playwright is not installed",
    ),
    pytest.mark.skipif(not installed("torch"), reason="torch starts quickly, and is not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True}
WAIT = 120_000
"""Milliseconds."""


@pytest.fixture(scope="module")
def enhancer(tmp_path_factory) -> Path:
    return enhancer_run(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture(scope="module")
def server(tmp_path_factory, enhancer) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("server"), enhancer, "--max-seconds", "5") as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, in a container, chromium starts without its sandbox alone.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what it asked for and complained of."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page, self.asked, self.errors = self.context.new_page(), list[str](), list[str]()
        self.page.set_default_timeout(WAIT)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#clean")

    def upload(self, path: Path) -> None:
        self.page.set_input_files("#recording input[type=file]", str(path))

    def status(self, words: str) -> None:
        self.page.wait_for_selector(f"#status :text('{words}')")

    def download(self, name: str, folder: Path) -> Path:
        with self.page.expect_download() as found:
            self.page.click(f"#download-{name}")
        path = folder / found.value.suggested_filename
        found.value.save_as(path)
        return path

    def picture(self, name: str, folder: Path) -> np.ndarray:
        """A screenshot of the whole page."""
        path = Path(os.environ.get("PARIVOX_SCREENSHOTS") or folder) / f"{name}.png"
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=path, full_page=True)
        return imread(path)[..., :3]


@pytest.fixture
def visit(chromium, server) -> Iterator[Any]:
    visits = []

    def begin(url: str = server.url, **options: Any) -> Visit:
        visits.append(Visit(chromium, url, **options))
        return visits[-1]

    yield begin
    for one in visits:
        one.context.close()


def test_a_recording_is_enhanced_shown_played_and_downloaded(visit, server, enhancer, tmp_path):
    path = recording(tmp_path / "a voice.wav", 44_100, 2, "FLOAT")
    one = visit()
    one.upload(path)
    one.status("Ready to clean")
    one.page.click("#options button")
    one.page.fill("#options input[aria-label*='Seed'], #options label:has-text('Seed') input", "3")
    one.page.keyboard.press("Tab")
    one.page.click("#clean")
    one.status("Done")
    for name in ("before", "denoised", "enhanced"):
        player = one.page.locator(f"#{name} audio")
        loaded = (
            "player => player.readyState >= 1 || new Promise(go => player.onloadedmetadata = () => go(true))"
        )
        assert player.evaluate(loaded) and abs(player.evaluate("player => player.duration") - 0.3) < 0.05
        assert (
            one.page.locator(f"#{name} img").evaluate("image => image.complete && image.naturalWidth") == 1200
        )
        assert "LUFS" in one.page.inner_text(f"#{name}")
    files = [one.download(name, tmp_path) for name in ("denoised", "enhanced")]
    wav, rate = read_audio(path)
    cleaner = parivox.load(enhancer, backend="torch", device="cpu")
    wanted = [cleaner.denoise(wav, rate), cleaner.enhance(wav, rate, seed=3)]
    for file, want in zip(files, wanted, strict=True):
        assert file.name == f"a voice-{'enhanced' if file is files[1] else 'denoised'}.wav"
        assert probe(file) == probe(path)
        np.testing.assert_allclose(read_audio(file)[0], want, atol=1e-6)
    assert one.picture("enhanced", tmp_path).std() > 0.1
    assert all(url.startswith((server.url, "data:", "blob:")) for url in one.asked), one.asked
    assert not one.errors
    assert server.files()
    one.context.close()
    assert server.wait_for_files() == [], "nothing is kept after the session"


def test_what_is_too_long_is_refused_in_words(visit, server, tmp_path):
    path = tmp_path / "speech.wav"
    write_audio(path, np.zeros((1, 6 * 8000), np.float32), 8000)
    one = visit()
    one.upload(path)
    words = "speech.wav: lasts 6 s, and this page takes up to 5 s"
    one.status(words)
    one.page.click("#clean")
    one.page.wait_for_selector(f".toast-wrap :text('{words}')")
    one.picture("refused", tmp_path)
    one.context.close()
    assert server.wait_for_files() == []


def test_a_denoiser_has_no_controls_of_an_enhancer_and_fits_a_phone(visit, chromium, tmp_path):
    with served(tmp_path, tiny_run(tmp_path / "run")) as server:
        one = visit(server.url, **PHONE)
        one.upload(recording(tmp_path / "in.flac", 48_000))
        one.status("Ready to clean")
        one.page.click("#options button")
        one.page.wait_for_selector("text=Mix")
        assert not one.page.is_visible("#task")
        assert not one.page.is_visible("text=Solver") and not one.page.is_visible("text=Seed")
        one.page.click("#clean")
        one.status("Done")
        assert one.page.is_visible("#denoised") and not one.page.is_visible("#enhanced")
        assert one.page.evaluate("document.documentElement.scrollWidth") == PHONE["viewport"]["width"]
        dark = one.picture("phone", tmp_path)
        assert np.median(dark) < 0.3, "dark where the visitor's system is"
        # Ended while the page is open: the files go at once.
        assert server.end(signal.SIGINT) == 130
        assert list(server.temporary.iterdir()) == []
        assert not any("Traceback" in line for line in server.lines)
