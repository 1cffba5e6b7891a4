"""The parts of `parivox serve` that know nothing of Gradio."""

from __future__ import annotations

import math
import os
import socket
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from parivox.audio import write_audio
from parivox.cli import main
from parivox.errors import AudioError, ConfigError
from parivox.serve.access import AUTH_VARIABLE, address_of, bind, credentials, is_loopback
from parivox.serve.jobs import UNEXPECTED, knobs, sentence
from parivox.serve.levels import Levels, loudness, measure
from parivox.serve.limits import Limits, check_recording, duration
from parivox.serve.server import LOCK, PREFIX, workspace
from parivox.serve.sessions import IDLE_SECONDS, STRAY_SECONDS, Sessions, StoppedError
from parivox.serve.view import look_at, row_html

RATE = 48_000


def sine(seconds: float, gain: float = 1.0, hertz: float = 997.0, rate: int = RATE) -> np.ndarray:
    return (gain * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)[
        None
    ]


# --- who may open the page


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.example.org", False),
    ],
)
def test_only_loopback_needs_no_password(host, local, monkeypatch):
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)
    assert is_loopback(host) == local
    if local:
        assert credentials(None, None, host) is None
    else:
        with pytest.raises(ConfigError, match=f"{host} opens the page to other machines.*--auth"):
            credentials(None, None, host)
    assert credentials("me:a:b", None, host) == ("me", "a:b")


def test_a_password_may_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    path.write_text("me:pass word\nnot this\n")
    assert credentials(None, path, "0.0.0.0") == ("me", "pass word")
    monkeypatch.setenv(AUTH_VARIABLE, "you:there")
    assert credentials(None, None, "0.0.0.0") == ("you", "there")
    assert credentials(None, None, "127.0.0.1") == ("you", "there")
    assert credentials(None, path, "0.0.0.0") == ("me", "pass word")


@pytest.mark.parametrize("text", ["me", "me:", ":secret-word", "", "  :secret-word"])
def test_a_malformed_password_is_refused_and_not_repeated(text, tmp_path):
    with pytest.raises(ConfigError, match="USER:PASSWORD") as caught:
        credentials(text, None, "127.0.0.1")
    assert "secret-word" not in str(caught.value)
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(ConfigError, match="USER:PASSWORD"):
        credentials(None, path, "127.0.0.1")


def test_a_file_without_a_password_and_two_sources_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: cannot be read"):
        credentials(None, tmp_path / "nowhere", "127.0.0.1")
    with pytest.raises(ConfigError, match="exclude each other"):
        credentials("me:you", tmp_path / "nowhere", "127.0.0.1")


def test_a_taken_port_is_one_line_before_anything_is_loaded(tmp_path, capsys):
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert address_of(taken) == f"http://127.0.0.1:{port}"
        status = main(["serve", "--run", str(tmp_path / "no model"), "--port", str(port)])
    error = capsys.readouterr().err
    assert status == 1 and error.count("\n") == 1
    assert f"port {port} on 127.0.0.1 is taken; name another with --port" in error


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [("127.0.0.1", 70_000, "--port is 70000"), ("203.0.113.7", 0, "no address of this machine")],
)
def test_what_cannot_be_listened_on_is_named(host, port, words):
    with pytest.raises(ConfigError, match=words):
        bind(host, port)


def test_an_open_host_without_a_password_is_one_line(capsys, monkeypatch):
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--auth-file" in error


def test_every_address_is_shown_as_one_for_a_browser():
    with socket.socket() as every:
        every.bind(("0.0.0.0", 0))
        assert address_of(every) == f"http://127.0.0.1:{every.getsockname()[1]}"


# --- limits


@pytest.mark.parametrize(
    "values", [(0.0, 1.0, 1), (1.0, math.nan, 1), (math.inf, 1.0, 1), (1.0, -1.0, 1), (1.0, 1.0, 0)]
)
def test_limits_are_positive(values):
    with pytest.raises(ConfigError, match="--max-"):
        Limits(*values)


def test_what_is_too_long_too_large_or_no_audio_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "a voice.wav"
    write_audio(path, sine(2.0), RATE)
    check_recording(path, Limits(seconds=2.0, megabytes=path.stat().st_size / 1e6))
    with pytest.raises(AudioError, match=r"^a voice.wav: lasts 2 s, and this page takes up to 1\.5 s; "):
        check_recording(path, Limits(seconds=1.5))
    with pytest.raises(AudioError, match=r"^a voice.wav: has 0\.2 MB, and this page takes up to 0\.1 MB; "):
        check_recording(path, Limits(megabytes=0.1))
    path.write_bytes(b"RIFF of nothing")
    with pytest.raises(AudioError) as caught:
        check_recording(path, Limits())
    assert str(caught.value).startswith("a voice.wav: ") and str(tmp_path) not in str(caught.value)


def test_durations_are_words():
    words = [duration(seconds) for seconds in (0.3, 8.25, 59.97, 60, 125, 3600)]
    assert words == ["0.3 s", "8.25 s", "1 min", "1 min", "2:05 min", "60 min"]


def test_knobs_are_what_a_page_can_send():
    assert knobs(8.0, "euler", 1, 0, None).sampling.seed == 0
    assert knobs(8.0, "euler", 1, 0, 3.0).sampling.nfe == 8
    with pytest.raises(ConfigError, match="--nfe is 300"):
        knobs(300, "euler")


def test_an_error_that_is_a_defect_is_a_plain_sentence_and_a_traceback_in_the_log(caplog):
    try:
        raise RuntimeError("a secret of the server")
    except RuntimeError as error:
        assert sentence(error) == UNEXPECTED
    assert "Traceback" in caplog.text and "a secret of the server" in caplog.text
    caplog.clear()
    assert sentence(ConfigError("--nfe is 300; use 1 to 128")) == "nfe is 300; use 1 to 128"
    assert caplog.text == ""


# --- levels


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000, 96_000])
def test_a_full_scale_sine_has_the_loudness_of_the_standard(rate):
    assert loudness(sine(3.0, rate=rate), rate) == pytest.approx(-3.01, abs=0.05)


def test_loudness_adds_channels_and_follows_the_gain():
    mono = sine(3.0, 0.1)
    assert loudness(mono, RATE) == pytest.approx(-23.01, abs=0.02)
    assert loudness(np.concatenate([mono, mono]), RATE) == pytest.approx(-20.0, abs=0.02)


def test_pauses_do_not_count():
    voice = sine(3.0, 0.1)
    quiet = np.concatenate([voice, sine(9.0, 0.001)], axis=1)  # 40 dB below: under the relative gate
    assert loudness(quiet, RATE) == pytest.approx(-23.01, abs=0.35)  # blocks at the edge hold some of both
    ungated = -0.691 + 10 * math.log10(np.mean(np.square(quiet)))
    assert loudness(quiet, RATE) > ungated + 5


def test_the_shelf_lifts_and_the_high_pass_cuts():
    low, middle, high = (loudness(sine(3.0, 0.1, hertz), RATE) for hertz in (30.0, 997.0, 10_000.0))
    assert middle - low > 8 and 2.5 < high - middle < 4.1


def test_a_long_recording_is_filtered_in_parts_without_a_seam():
    rng = np.random.default_rng()
    wav = 0.1 * rng.standard_normal((1, 25 * 8000), np.float32)
    assert loudness(wav, 8000) == pytest.approx(loudness(np.tile(wav, 3), 8000), abs=0.05)


def test_silence_and_too_little_have_no_level():
    assert measure(np.zeros((1, RATE), np.float32), RATE) == Levels(None, None, None)
    short = measure(sine(0.3, 0.5), RATE)
    assert short.loudness is None
    assert short.peak == pytest.approx(-6.02, abs=0.01) and short.rms == pytest.approx(-9.03, abs=0.05)


# --- the rows of the page


def test_a_row_says_what_it_shows_and_escapes_names(tmp_path):
    path = tmp_path / 'a "voice" & <b>.wav'
    write_audio(path, np.concatenate([sine(1.0, 0.5), sine(1.0, 0.25)]), RATE)
    before = look_at(path)
    html = row_html("Before", before, before, ["x < y"])
    assert "1 s · 48 kHz · stereo" in html and "x &lt; y" in html and "<b>" not in html
    assert "%22voice%22" in html and html.count("data:image/png") == 1
    assert "dB</small>" not in html
    write_audio(tmp_path / "after.wav", sine(1.0, 0.05), RATE)
    after = row_html("Denoised", look_at(tmp_path / "after.wav"), before)
    assert "\N{MINUS SIGN}20.0 dB</small>" in after and "mono" in after


def test_a_silent_sound_of_one_sample_is_a_row(tmp_path):
    write_audio(tmp_path / "a.wav", np.zeros((1, 1), np.float32), 8000)
    sound = look_at(tmp_path / "a.wav")
    assert "too short or silent" in row_html("Before", sound, sound)


# --- sessions


def upload(root: Path, folder: str = "hash") -> Path:
    path = root / folder / "voice.wav"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"sound")
    return path


def test_a_file_goes_with_the_last_session_that_has_it(tmp_path):
    sessions, path = Sessions(tmp_path), upload(tmp_path)
    for name in ("one", "two"):
        sessions.keep(name, path)
    sessions.end("one")
    assert path.exists()
    sessions.keep("two", upload(tmp_path, "other"))
    assert not path.parent.exists()
    sessions.end("two")
    assert list(tmp_path.iterdir()) == []
    sessions.end("two")


def test_an_upload_that_is_taken_away_is_removed(tmp_path):
    sessions, path = Sessions(tmp_path), upload(tmp_path)
    sessions.keep("one", path)
    sessions.clear("one")
    assert not path.exists()
    with pytest.raises(AudioError, match="no longer on the server"):
        sessions.keep("one", path)


def test_files_elsewhere_are_not_taken(tmp_path):
    (tmp_path / "root").mkdir()
    outside = upload(tmp_path)
    with pytest.raises(AudioError, match="send it again"):
        Sessions(tmp_path / "root").keep("one", tmp_path / "root" / ".." / "hash" / outside.name)
    assert outside.exists()


def test_a_job_that_outlives_its_session_stops_and_leaves_nothing(tmp_path):
    sessions = Sessions(tmp_path)
    with pytest.raises(StoppedError), sessions.job("one") as job:
        job.check()
        sessions.end("one")
        job.folder.mkdir()  # what writes makes its folder anew
        (job.folder / "late").write_text("")
        job.check()
    assert list(tmp_path.iterdir()) == []


def test_results_stay_until_the_next_job_and_when_it_is_stopped(tmp_path):
    sessions = Sessions(tmp_path)
    with pytest.raises(StoppedError), sessions.job("one") as first:
        (first.folder / "result").write_text("")
        assert sessions.stop("one")
        first.check()
    assert (first.folder / "result").exists() and not sessions.stop("one")
    with sessions.job("one") as second:
        assert not first.folder.exists()
    assert second.folder.exists() and not sessions.stop("nobody")


def test_sweeping_removes_what_is_idle_and_what_nobody_has(tmp_path):
    now = [1e9]
    sessions = Sessions(tmp_path, clock=lambda: now[0])
    held, stray, fresh = (upload(tmp_path, name) for name in ("held", "stray", "fresh"))
    sessions.keep("one", held)
    for path, age in ((held, 2), (stray, 2), (fresh, 0.5)):
        os.utime(path, (now[0] - age * STRAY_SECONDS,) * 2)
    with sessions.job("one") as job:
        (job.folder / "result").write_text("")
        os.utime(job.folder / "result", (0, 0))
        sessions.sweep()
        assert [path.exists() for path in (held, stray, fresh)] == [True, False, True]
        now[0] += IDLE_SECONDS + 1
        sessions.sweep()
        assert held.exists(), "a session whose job runs is not idle"
    now[0] += IDLE_SECONDS + 1
    sessions.sweep()
    assert not held.exists() and not job.folder.exists()


def test_closing_removes_all_even_what_a_job_writes_afterwards(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    sessions, begun, go_on = Sessions(root), threading.Event(), threading.Event()

    def work() -> None:
        with sessions.job("one") as job:
            begun.set()
            go_on.wait(10)
            job.folder.mkdir(parents=True)
            (job.folder / "late").write_text("")

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    sessions.close()
    assert not root.exists()
    go_on.set()
    thread.join()
    assert not root.exists()


# --- the folder of the server


def test_the_folder_goes_and_so_do_those_of_killed_servers(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    killed = tmp_path / f"{PREFIX}killed"
    killed.mkdir()
    (killed / LOCK).touch()
    (killed / "voice.wav").touch()
    (tmp_path / f"{PREFIX}of-somebody-else").mkdir()
    with pytest.raises(SystemExit), workspace() as one, workspace() as two:
        assert not killed.exists() and one != two and one.exists()
        assert os.environ["GRADIO_TEMP_DIR"] == tempfile.gettempdir() == str(two)
        (two / "voice.wav").touch()
        raise SystemExit(143)
    assert [path.name for path in tmp_path.iterdir()] == [f"{PREFIX}of-somebody-else"]
    assert "GRADIO_TEMP_DIR" not in os.environ and tempfile.gettempdir() == str(tmp_path)
