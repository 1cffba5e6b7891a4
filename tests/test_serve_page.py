"""The page of `parivox serve`, asked by a program and not by a browser."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parivox
from parivox.audio import probe, read_audio, write_audio
from parivox.backend import installed
from tests.serve_process import Served, served
from tests.tiny_model import enhancer_run, recording

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="Gradio is not installed"),
    pytest.mark.skipif(not installed("torch"), reason="torch starts quickly, and is not installed"),
    # Of Gradio's client and what it imports; the server is another process.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECONDS = 2.0
LOGIN = ("me", "a secret")
KNOBS: dict[str, Any] = {
    "nfe": 2,
    "solver": "euler",
    "lambd": 0.5,
    "tau": 0.25,
    "seed": 3,
}
CALL: tuple[Any, ...] = (*KNOBS.values(), False, 0, "")


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Collect here what Gradio's client leaves open, where its warnings are let pass."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def enhancer(tmp_path_factory) -> Path:
    return enhancer_run(tmp_path_factory.mktemp("model") / "a-voice-model")


@pytest.fixture(scope="module")
def server(tmp_path_factory, enhancer) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "password").write_text(":".join(LOGIN))
    protected = ("--host", "0.0.0.0", "--auth-file", "password")
    with served(folder, enhancer, "--max-seconds", str(SECONDS), *protected) as found:
        yield found


@pytest.fixture(scope="module")
def client(server) -> Any:
    from gradio_client import Client

    return Client(server.url, auth=LOGIN, verbose=False, analytics_enabled=False)


def cleaned(client: Any, path: Path | dict[str, Any], task: str, *values: Any) -> list[Path]:
    """Files that the page gives for a recording: denoised, and enhanced where that was asked for."""
    from gradio_client import handle_file

    given = path if isinstance(path, dict) else handle_file(str(path))
    job = client.submit(given, task, *(values or CALL), api_name="/clean")
    job.result(timeout=120)
    values_of = (
        value.get("value") if isinstance(value, dict) else value for out in job.outputs() for value in out
    )
    return [Path(value) for value in values_of if value and not value.startswith("<")]


def failure(client: Any, path: Path | dict[str, Any]) -> str:
    with pytest.raises(Exception) as caught:
        cleaned(client, path, "denoise")
    return str(caught.value)


def test_a_program_gets_what_the_cleaner_gives(client, enhancer, tmp_path):
    path = recording(tmp_path / "a voice.wav", 48_000, 2, "FLOAT")
    files = cleaned(client, path, "enhance")
    wav, rate = read_audio(path)
    cleaner = parivox.load(enhancer, backend="torch", device="cpu")
    wanted = [cleaner.denoise(wav, rate), cleaner.enhance(wav, rate, **KNOBS)]
    assert [file.name for file in files] == ["a voice-denoised.wav", "a voice-enhanced.wav"]
    for file, want in zip(files, wanted, strict=True):
        assert probe(file) == probe(path)
        np.testing.assert_allclose(read_audio(file)[0], want, atol=1e-6)


def test_mono_mix_and_format_are_those_of_the_command(client, tmp_path):
    path = recording(tmp_path / "voice.wav", 44_100, 2)
    (file,) = cleaned(client, path, "denoise", *KNOBS.values(), True, 1, "flac")
    wav, mean = read_audio(file)[0], read_audio(path)[0].mean(axis=0, keepdims=True)
    assert (file.suffix, probe(file).format, len(wav)) == (".flac", "FLAC", 1)
    np.testing.assert_allclose(wav, mean, atol=2**-15)  # all of the original is kept


def test_what_is_refused_is_said_in_words(client, server, tmp_path):
    long = tmp_path / "long.wav"
    write_audio(long, np.zeros((1, round(2.5 * 8000)), np.float32), 8000)
    assert "long.wav: lasts 2.5 s, and this page takes up to 2 s" in failure(client, long)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, and then nothing that helps")
    message = failure(client, broken)
    assert "broken.wav: cannot be decoded" in message and str(server.temporary) not in message
    elsewhere = {"path": "http://example.org/a.wav", "meta": {"_type": "gradio.FileData"}}
    assert "addresses are not fetched" in failure(client, elsewhere)
    assert not any("Traceback" in line for line in server.lines)


def test_the_server_sends_nothing_from_elsewhere_and_fetches_nothing(server):
    import httpx

    visitor = httpx.Client()
    visitor.post(f"{server.url}/login", data=dict(zip(("username", "password"), LOGIN, strict=True)))
    page = visitor.get(server.url)
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("file=http://example.org/a", "file=https://example.org/a", "proxy=http://example.org/a"):
        assert visitor.get(f"{server.url}/gradio_api/{path}").status_code == 403
    for path in ("/etc/passwd", str(Path(parivox.__file__))):
        assert visitor.get(f"{server.url}/gradio_api/file={path}").status_code in (403, 404)
    about = visitor.get(f"{server.url}/config").json()
    assert not about.get("analytics_enabled") and not about.get("run_history")
    texts = [str(part["props"].get("value")) for part in about["components"]]
    assert any("a-voice-model (step 0)" in text for text in texts)
    assert not any(str(server.temporary.parent.parent) in text for text in texts)


def test_a_password_is_asked_for(server):
    import httpx

    assert httpx.get(f"{server.url}/config").status_code == 401
    assert httpx.post(f"{server.url}/gradio_api/upload", files={"files": b"x"}).status_code == 401
    wrong = {"username": "me", "password": "no"}
    assert httpx.post(f"{server.url}/login", data=wrong).status_code == 400
    assert "secret" not in "".join(server.lines)


def test_sigterm_ends_the_server_and_leaves_nothing(server, client, tmp_path):
    cleaned(client, recording(tmp_path / "in.ogg", 44_100), "denoise")
    assert server.files(), "the upload and the result lie on the server while the session lasts"
    assert server.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert os.listdir(server.temporary) == []
    assert not any("Traceback" in line for line in server.lines)
