"""`parivox enhance - -`: sound from the standard input and to the standard output, and what goes wrong there."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from parivox import cli, pipes
from parivox.audio import AudioInfo, probe, read_audio, write_audio
from parivox.audio_formats import media_installed
from parivox.backend import BACKENDS, installed
from tests.sound_files import speechlike, write_media
from tests.tiny_model import recording, tiny_run

ROOT = Path(__file__).parent.parent
DENOISE = ("--denoise-only", "--run", "unused")


@pytest.fixture
def spool(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files, which must be empty in the end."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def words(*arguments: object, module: str = "tests.pipe_process") -> list[str]:
    return [sys.executable, "-m", module, "enhance", *map(str, arguments)]


def piped(sound: bytes, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        words(*arguments, *DENOISE), input=sound, capture_output=True, check=False, timeout=120, cwd=ROOT
    )


def one_line(error: bytes) -> str:
    """The only line of Parivox's."""
    (line,) = [line for line in error.decode().splitlines() if line.startswith("parivox: ")]
    assert "Traceback" not in error.decode()
    return line


def sound(folder: Path, seconds: float = 0.5) -> tuple[np.ndarray, Path]:
    """Samples (2, t) of 16 bits at 44.1 kHz and a WAV with them."""
    wav = speechlike(np.random.default_rng(1), 2, int(seconds * 44_100), 44_100)
    write_audio(folder / "in.wav", wav, 44_100)
    return read_audio(folder / "in.wav")[0], folder / "in.wav"


def test_from_end_to_end_only_sound_comes_out(tmp_path, spool):
    wav, path = sound(tmp_path)
    done = piped(path.read_bytes(), "-", "-")
    assert done.returncode == 0, done.stderr
    out, rate = sf.read(io.BytesIO(done.stdout), dtype="float32", always_2d=True)
    assert rate == 44_100 and out.shape == wav.T.shape
    assert np.abs(out.T - wav).max() < 2**-14
    printed = done.stderr.decode()
    for text in (
        "a library speaks",
        "past Python",
        "cleaning with nothing",
        "1 file cleaned: standard output;",
    ):
        assert text in printed
    assert str(spool) not in printed and "/proc" not in printed
    assert list(spool.iterdir()) == []


def test_each_end_alone_and_another_format(tmp_path, spool):
    wav, path = sound(tmp_path)
    done = piped(b"", path, "-", "--format", "mp3")
    assert done.returncode == 0, done.stderr
    (tmp_path / "out.mp3").write_bytes(done.stdout)
    assert probe(tmp_path / "out.mp3") == AudioInfo(44_100, 2, wav.shape[1], "MP3", "MPEG_LAYER_III")
    done = piped(done.stdout, "-", tmp_path / "back.wav", "--mix", "0.5")
    assert done.returncode == 0 and b"back.wav" in done.stdout and b"speaks" in done.stdout, done.stderr
    assert probe(tmp_path / "back.wav").frames == wav.shape[1]
    assert list(spool.iterdir()) == []


@pytest.mark.skipif(not media_installed(), reason="needs the extra media (av)")
def test_an_mp4_can_be_piped_though_its_index_is_at_its_end(tmp_path, spool):
    wav = speechlike(np.random.default_rng(2), 1, 30_001, 48_000)
    write_media(tmp_path / "x.m4a", wav, 48_000, "aac")
    done = piped((tmp_path / "x.m4a").read_bytes(), "-", "-")
    assert done.returncode == 0, done.stderr
    assert sf.info(io.BytesIO(done.stdout)).frames == 30_001
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "is empty"), (b"words, no sound\n" * 50, "cannot be decoded"), (b"RIFF\x24\0\0\0WAVEfmt ", "")],
)
def test_what_is_no_sound_is_one_line(tmp_path, spool, monkeypatch, capsys, data, said):
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    # It is found before a model is looked for, so the run that is not there is not complained of.
    assert cli.main(["enhance", "-", str(tmp_path / "out.wav"), *DENOISE]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("parivox: standard input: ") and said in line and "/proc" not in line
    assert list(spool.iterdir()) == [] and not (tmp_path / "out.wav").exists()


def test_nothing_at_all_comes_out_of_nothing(spool):
    done = piped(b"", "-", "-")
    assert (done.returncode, done.stdout) == (1, b"") and "is empty" in one_line(done.stderr)
    assert list(spool.iterdir()) == []


def test_a_reader_that_has_gone_is_one_line(tmp_path, spool):
    _, path = sound(tmp_path, 5.0)  # more than a pipe holds
    with path.open("rb") as file:
        process = subprocess.Popen(
            words("-", "-", *DENOISE), stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout and process.stderr
        process.stdout.close()
        error = process.stderr.read()
        process.stderr.close()
        assert process.wait(60) == 1
    assert "standard output: was closed before all of the sound was written" in one_line(error)
    assert list(spool.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_one_line(tmp_path, spool):
    _, path = sound(tmp_path)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            words(path, "-", *DENOISE), stdout=full, stderr=subprocess.PIPE, check=False, timeout=60, cwd=ROOT
        )
    assert done.returncode == 1 and "standard output: cannot be written" in one_line(done.stderr)
    assert list(spool.iterdir()) == []


def test_an_input_that_is_closed_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["enhance", "-", str(tmp_path / "out.wav"), *DENOISE]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "standard input: is closed" in line


def test_an_output_that_is_closed_is_one_line(tmp_path, spool):
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *words(sound(tmp_path)[1], "-", *DENOISE)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 1 and "standard output: is closed" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("-", "folder", "has no name of its own"),
        ("-", "new", "has no name of its own"),
        ("folder", "-", "name an output folder"),
        ("gone.wav", "-", "no such file"),
    ],
)
def test_ends_that_do_not_go_together_are_one_line(tmp_path, monkeypatch, capsys, source, target, said):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["enhance", source, target, *DENOISE]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs files that open again without a name")
def test_a_killed_process_leaves_nothing_of_its_input(tmp_path, spool):
    process = subprocess.Popen(words("-", tmp_path / "out.wav", *DENOISE), stdin=subprocess.PIPE, cwd=ROOT)
    assert process.stdin
    process.stdin.write(sound(tmp_path, 5.0)[1].read_bytes())
    process.stdin.flush()
    links = Path(f"/proc/{process.pid}/fd")
    ends = time.monotonic() + 60
    while not any(str(spool) in os.readlink(link) for link in links.iterdir()):
        assert time.monotonic() < ends, "the input was never kept"
        time.sleep(0.05)
    process.kill()
    process.stdin.close()
    process.wait()
    assert list(spool.iterdir()) == [] and not (tmp_path / "out.wav").exists()


def test_without_nameless_files_the_input_has_a_name_and_is_removed(tmp_path, spool, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    monkeypatch.setattr(pipes, "_FD_FOLDER", tmp_path / "absent")
    wav, path = sound(tmp_path)
    with path.open("rb") as file, io.TextIOWrapper(file) as text:
        monkeypatch.setattr(sys, "stdin", text)
        with pipes.standard_ends(pipes.DASH, tmp_path / "out.wav", None) as ends:
            assert ends.source.parent == spool
            np.testing.assert_array_equal(read_audio(ends.source)[0], wav)
            assert ends.named(f"{ends.source}: bad") == "standard input: bad"
    assert list(spool.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", [name for name in BACKENDS if installed(name)])
def test_a_real_model_gives_the_same_through_pipes(tmp_path, spool, backend):
    run, source = tiny_run(tmp_path / "run"), recording(tmp_path / "in.wav", 22_050, 2)
    options = ("--denoise-only", "--run", run, "--backend", backend)
    subprocess.run(words(source, tmp_path / "out.wav", *options, module="parivox"), check=True, cwd=ROOT)
    with source.open("rb") as file:
        done = subprocess.run(
            words("-", "-", *options, module="parivox"), stdin=file, capture_output=True, check=True, cwd=ROOT
        )
    assert done.stdout == (tmp_path / "out.wav").read_bytes()
    assert list(spool.iterdir()) == []
