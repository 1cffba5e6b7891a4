"""`parivox enhance` with the real backends and a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from parity_tests.tolerances import bound
from parivox.audio import probe, read_audio
from parivox.audio_formats import MP3_RATES
from parivox.backend import BACKENDS, installed
from parivox.cli import main
from tests.tiny_model import SECONDS, recording, tiny_run

RATES = (8000, 16_000, 22_050, 44_100, 48_000, 96_000)
AGREEMENT = 5e-4
"""Of the peak, for files below 44,100 Hz: their upper bins hold nothing but rounding, and the model hears its phase.

Measured: the backends differ by up to 1.3e-4, each is as far from its own float64 result, and in float64 they agree
to 1e-12.
"""

HERE = [name for name in BACKENDS if installed(name)]

each_backend = pytest.mark.parametrize("backend", HERE)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Every format at every rate, mono and stereo in turn; for WAV both, as float and as 16 bits."""
    folder = tmp_path_factory.mktemp("inputs")
    for k, rate in enumerate(RATES):
        for channels, subtype in ((1 + k % 2, "PCM_16"), (1, "FLOAT"), (2, "FLOAT")):
            recording(folder / f"{rate}-{channels}-{subtype}.wav", rate, channels, subtype)
        recording(folder / f"{rate}.flac", rate, 2 - k % 2, "PCM_24" if rate == 96_000 else None)
        recording(folder / "sub" / f"{rate}.OGG", rate, 1 + k % 2)
        if rate in MP3_RATES:
            recording(folder / f"{rate}.mp3", rate, 2 - k % 2)
    return folder


@pytest.fixture(scope="module")
def cleaned(run, inputs, tmp_path_factory) -> dict[str, Path]:
    """Backend -> folder of what it made of the inputs, in one call."""
    folders = {}
    for backend in HERE:
        folders[backend] = tmp_path_factory.mktemp(backend) / "out"
        assert enhance(inputs, folders[backend], run, "--backend", backend) == 0
    return folders


def enhance(source: Path, target: Path, run: Path, *more: str) -> int:
    return main(["enhance", str(source), str(target), "--denoise-only", "--run", str(run), *more])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@each_backend
def test_every_format_keeps_its_rate_channels_length_and_coding(cleaned, inputs, backend):
    assert names(cleaned[backend]) == names(inputs)
    for name in names(inputs):
        assert probe(cleaned[backend] / name) == probe(inputs / name), name


@each_backend
def test_the_model_has_changed_every_channel(cleaned, inputs, backend):
    for name in names(inputs):
        before, after = (read_audio(folder / name)[0] for folder in (inputs, cleaned[backend]))
        change = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
        assert (change > 0.2).all() and (np.abs(after).max(axis=1) > 0.01).all(), name


@pytest.mark.skipif(len(HERE) < 2, reason="compares two backends")
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
def test_both_backends_give_the_same_sound(cleaned, rate, channels):
    jax, torch = (read_audio(cleaned[name] / f"{rate}-{channels}-FLOAT.wav")[0] for name in BACKENDS)
    assert np.abs(jax - torch).max() <= AGREEMENT * np.abs(torch).max()
    if rate >= 44_100:
        assert np.linalg.norm(jax - torch) / np.linalg.norm(torch) <= bound("outputs", "float32")


@each_backend
def test_a_single_file_with_another_rate_and_format(run, tmp_path, backend, capsys):
    source = recording(tmp_path / "in.wav", 48_000, 2)
    status = enhance(source, tmp_path / "o", run, "--backend", backend, "--rate", "16000", "--format", "flac")
    assert status == 0
    info = probe(tmp_path / "o" / "in.flac")
    assert (info.rate, info.channels, info.frames) == (16_000, 2, round(SECONDS * 16_000))
    out, err = capsys.readouterr()
    assert err == ""
    assert f"{backend} on cpu" in out and "x real time" in out and "left 0:00:00" in out
    assert (
        "1 file cleaned" in out.splitlines()[-1] and str(tmp_path / "o" / "in.flac") in out.splitlines()[-1]
    )


def test_one_checkpoint_file_stands_for_a_run(run, tmp_path):
    source = recording(tmp_path / "in.wav", subtype="FLOAT")
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert enhance(source, tmp_path / "a.wav", run) == enhance(source, tmp_path / "b.wav", checkpoint) == 0
    assert np.array_equal(read_audio(tmp_path / "a.wav")[0], read_audio(tmp_path / "b.wav")[0])


def test_chunk_options_reach_the_cleaning(run, tmp_path, capsys):
    source = recording(tmp_path / "in.wav", subtype="FLOAT")
    more = ("--chunk-seconds", "0.2", "--overlap-seconds", "0.05", "--backend", HERE[-1])
    assert enhance(source, tmp_path / "a.wav", run, *more) == 0
    assert enhance(source, tmp_path / "b.wav", run, "--backend", HERE[-1]) == 0
    chunked, whole = (read_audio(tmp_path / name)[0] for name in ("a.wav", "b.wav"))
    assert chunked.shape == whole.shape and not np.array_equal(chunked, whole)
    capsys.readouterr()
    assert enhance(source, tmp_path / "c.wav", run, "--overlap-seconds", "20") == 1
    assert "overlap" in one_line(capsys)


@each_backend
def test_bad_files_are_one_line_each_and_the_others_are_done(run, tmp_path, backend, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    good = [recording(folder / "a.wav"), recording(folder / "z.flac")]
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("These are words, not sound.\n" * 40)
    wav = np.zeros(13_230, np.float32)
    wav[7] = np.nan
    sf.write(folder / "nan.wav", wav, 44_100, subtype="FLOAT")
    whole = recording(tmp_path / "whole.flac", 44_100, 2).read_bytes()
    (folder / "truncated.flac").write_bytes(whole[: len(whole) // 2])
    recording(folder / "taken.wav")
    (out / "taken.wav").mkdir(parents=True)

    assert enhance(folder, out, run, "--backend", backend) == 1
    lines = capsys.readouterr().err.splitlines()
    bad = ("empty.wav", "nan.wav", "taken.wav", "text.wav", "truncated.flac")
    for name in bad:
        (line,) = [line for line in lines if name in line]
        assert line.startswith("parivox: ") and len(line) > len(f"parivox: {folder / name}") + 20
    assert len(lines) == len(bad)
    assert names(out) == sorted(path.name for path in good)


def one_line(capsys) -> str:
    """The only line on the standard error."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("parivox: ")
    return line


@pytest.mark.parametrize("kind", ["absent", "no checkpoint", "text", "torn"])
def test_an_unknown_run_is_one_line(run, tmp_path, kind, capsys):
    source, model = recording(tmp_path / "in.wav"), tmp_path / "model"
    if kind == "no checkpoint":
        model.mkdir()
    elif kind == "text":
        model.write_text("not a model")
    elif kind == "torn":
        (checkpoint,) = (run / "checkpoints").iterdir()
        model.write_bytes(checkpoint.read_bytes()[:-1000])
    assert enhance(source, tmp_path / "out.wav", model) == 1
    assert str(model) in one_line(capsys)
    assert not (tmp_path / "out.wav").exists()


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(run, tmp_path, capsys):
    copy = tiny_run(tmp_path / "run")
    newest = copy / "checkpoints" / "step-00000009.safetensors"
    newest.write_bytes(next((copy / "checkpoints").iterdir()).read_bytes()[:-1000])
    assert enhance(recording(tmp_path / "in.wav"), tmp_path / "out.wav", copy) == 0
    assert str(newest) in one_line(capsys)


def test_an_output_that_cannot_be_written_is_one_line(run, tmp_path, capsys):
    source = recording(tmp_path / "in.wav")
    (tmp_path / "file").write_text("in the way")
    assert enhance(source, tmp_path / "file" / "out.wav", run) == 1
    assert str(tmp_path / "file") in one_line(capsys)
    assert enhance(source, tmp_path / "out.xyz", run) == 1
    assert "out.xyz" in one_line(capsys)


def test_a_missing_input_is_one_line(run, tmp_path, capsys):
    assert enhance(tmp_path / "nothing.wav", tmp_path / "out.wav", run) == 1
    assert str(tmp_path / "nothing.wav") in one_line(capsys)


def test_without_denoise_only_it_says_what_to_do(run, tmp_path, capsys):
    source = recording(tmp_path / "in.wav")
    assert main(["enhance", str(source), str(tmp_path / "out.wav"), "--run", str(run)]) == 1
    assert "--denoise-only" in one_line(capsys)
    assert not (tmp_path / "out.wav").exists()


def test_a_rate_that_no_file_can_have_is_one_line(run, tmp_path, capsys):
    source = recording(tmp_path / "in.wav")
    assert enhance(source, tmp_path / "out.wav", run, "--rate", "0") == 1
    assert "0 Hz" in one_line(capsys)
