"""Audio files: what is written is read back, and every bad file is one clear AudioError."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from parivox.audio import (
    AudioInfo,
    peak_normalize,
    probe,
    read_audio,
    resample,
    write_audio,
)
from parivox.audio_formats import AUDIO_SUFFIXES, MP3_RATES, find_audio, kept_subtype, output_format
from parivox.errors import AudioError

RATES = (8000, 16_000, 22_050, 44_100, 48_000, 96_000)
CODINGS = [(s, r) for s in AUDIO_SUFFIXES for r in RATES if s != ".mp3" or r in MP3_RATES]


def tone(channels: int, length: int, rate: int) -> np.ndarray:
    """A different steady tone in each channel, with a rising envelope, peak below 0.5; (c, t) float32."""
    t = np.arange(length) / rate
    rows = [np.sin(2 * np.pi * 200 * (c + 1) * t) for c in range(channels)]
    return (np.stack(rows) * np.linspace(0.2, 0.45, length)).astype(np.float32)


def one_line(error: pytest.ExceptionInfo[AudioError], path: Path) -> str:
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    return text


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("suffix", "rate"), CODINGS)
def test_write_then_read_keeps_rate_channels_length_and_order(tmp_path, suffix, rate, channels):
    path = tmp_path / f"x{suffix}"
    length = rate // 2 + 17
    wav = tone(channels, length, rate)
    write_audio(path, wav, rate)
    back, back_rate = read_audio(path)
    info = probe(path)
    assert (back_rate, back.shape, back.dtype) == (rate, wav.shape, np.float32)
    assert (info.rate, info.channels, info.frames) == (rate, channels, length)
    lossy = suffix in (".ogg", ".mp3")
    # A lossy coder is at least 10 dB below the tone; half a step of 16 bits otherwise. A swap of the
    # channels or an encoder delay of a few samples would be far above either.
    error = np.sqrt(np.mean((back - wav) ** 2))
    assert error < (0.3 * np.sqrt(np.mean(wav**2)) if lossy else 2**-16)


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
@pytest.mark.parametrize("length", [1, 2, 999, 1152, 70_001])
def test_any_length_is_kept(tmp_path, suffix, length):
    write_audio(tmp_path / f"x{suffix}", tone(1, length, 44_100), 44_100)
    assert probe(tmp_path / f"x{suffix}").frames == length
    assert read_audio(tmp_path / f"x{suffix}")[0].shape == (1, length)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_what_was_read_is_written_back_bit_for_bit(tmp_path, subtype):
    first, second = tmp_path / "a.wav", tmp_path / "b.wav"
    edges = np.array([[-1.0, 1.0, 0.0, 0.5, -0.5, 1e-9]], np.float32)
    wav = np.concatenate([edges, tone(1, 3000, 44_100)], axis=1)
    write_audio(first, wav, 44_100, subtype=subtype)
    once, _ = read_audio(first)
    step = {"PCM_U8": 2**-7, "PCM_16": 2**-15, "PCM_24": 2**-23, "PCM_32": 2**-24}.get(subtype, 0)
    assert np.abs(once - wav).max() <= step  # 1.0 itself is one step too high for an integer
    write_audio(second, once, 44_100, subtype=probe(first).subtype)
    assert probe(second).subtype == subtype
    np.testing.assert_array_equal(read_audio(second)[0], once)
    np.testing.assert_array_equal(sf.read(first, dtype="int32")[0], sf.read(second, dtype="int32")[0])


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_a_part_equals_that_part_of_the_whole(tmp_path, suffix):
    # An Ogg file of this length shows libsndfile's misplaced seeks into the last page.
    path, length = tmp_path / f"x{suffix}", 100_001
    rng = np.random.default_rng(5)
    wav = tone(1, length, 44_100) + 0.05 * rng.standard_normal((1, length)).astype(np.float32)
    write_audio(path, wav, 44_100)
    whole, _ = read_audio(path)
    for start, frames in [(0, 10), (1, 4000), (50_001, 3000), (96_500, 3000), (99_000, 100), (length - 1, 5)]:
        part, _ = read_audio(path, start, frames)
        np.testing.assert_allclose(part, whole[:, start : start + frames], rtol=0, atol=1e-6)
    np.testing.assert_allclose(read_audio(path, 98_000)[0], whole[:, 98_000:], rtol=0, atol=1e-6)
    with pytest.raises(AudioError, match="has no sample"):
        read_audio(path, length)


def test_long_vorbis_is_written_in_blocks_and_its_end_is_found(tmp_path):
    length = 2**20 + 300_000
    write_audio(tmp_path / "x.ogg", np.tile(tone(1, 1000, 8000), 1400)[:, :length], 8000)
    whole, _ = read_audio(tmp_path / "x.ogg")
    assert whole.shape == (1, length)
    np.testing.assert_array_equal(read_audio(tmp_path / "x.ogg", length - 100)[0], whole[:, -100:])


def truncated(path: Path, suffix: str, share: float = 0.6) -> Path:
    whole = path.with_name(f"whole{suffix}")
    rng = np.random.default_rng(1)
    write_audio(whole, 0.1 * rng.standard_normal((1, 60_000)).astype(np.float32), 44_100)
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    return path


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
@pytest.mark.parametrize("share", [0.6, 0.02])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = truncated(tmp_path / f"bad{suffix}", suffix, share)
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert "truncated" in one_line(error, path)


def test_a_wav_from_a_pipe_has_no_length_and_is_read(tmp_path):
    path = tmp_path / "pipe.wav"
    write_audio(path, tone(1, 5000, 16_000), 16_000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert read_audio(path)[0].shape == (1, 5000)


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "is empty"), (b"Dear diary, today it rained.\n" * 200, "cannot be decoded")],
)
def test_an_empty_file_and_a_renamed_text_are_refused(tmp_path, suffix, content, expected):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    for read in (probe, read_audio):
        with pytest.raises(AudioError) as error:
            read(path)
        assert expected in one_line(error, path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused_both_ways(tmp_path, value):
    path = tmp_path / "nan.wav"
    wav = tone(2, 100, 44_100)
    wav[1, 50] = value
    sf.write(path, wav.T, 44_100, subtype="FLOAT")
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert "NaN" in one_line(error, path)
    assert read_audio(path, 60)[0].shape == (2, 40)
    with pytest.raises(AudioError, match="NaN"):
        write_audio(tmp_path / "out.wav", wav, 44_100)
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize("rate", [1_000_000, 2**31 - 1])
def test_an_absurd_rate_is_refused(tmp_path, rate):
    path = tmp_path / "rate.wav"
    write_audio(path, tone(1, 100, 44_100), 44_100)
    data = bytearray(path.read_bytes())
    at = data.index(b"fmt ") + 12
    data[at : at + 4] = rate.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(AudioError) as error:
        probe(path)
    assert "sample rate" in one_line(error, path)


def test_no_samples_no_file_and_a_folder_are_refused(tmp_path):
    empty = tmp_path / "none.wav"
    sf.write(empty, np.zeros((0, 1)), 44_100)
    for path, expected in [
        (empty, "no samples"),
        (tmp_path / "gone.wav", "no such file"),
        (tmp_path, "folder"),
    ]:
        with pytest.raises(AudioError) as error:
            read_audio(path)
        assert expected in one_line(error, path)


def test_nothing_is_printed_for_bad_files(tmp_path):
    truncated(tmp_path / "torn.mp3", ".mp3")
    (tmp_path / "text.mp3").write_text("not audio\n" * 500)
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(20_000))
    code = (
        "import sys; from parivox.audio import read_audio; from parivox.errors import AudioError\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_audio(path)\n"
        "    except AudioError: continue\n"
        "    sys.exit('was read: ' + path)\n"
    )
    names = [str(tmp_path / name) for name in ("torn.mp3", "text.mp3", "noise.mp3")]
    result = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "rate", "channels", "expected"),
    [
        ("x.mp3", 96_000, 1, "MP3 has no sample rate 96000"),
        ("x.mp3", 44_100, 3, "at most 2 channels"),
        ("x.flac", 44_100, 9, "at most 8 channels"),
        ("x.flac", 700_000, 1, "cannot hold 700000 Hz"),
        ("x.ogg", 384_000, 1, "cannot hold 384000 Hz"),
        ("x.wav", 0, 1, "cannot hold 0 Hz"),
        ("x.aac", 44_100, 1, "cannot write 'aac'"),
        ("x", 44_100, 1, "cannot write ''"),
    ],
)
def test_what_a_container_cannot_hold_is_refused(tmp_path, name, rate, channels, expected):
    with pytest.raises(AudioError) as error:
        write_audio(tmp_path / name, np.zeros((channels, 100), np.float32), rate)
    assert expected in one_line(error, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_beyond_full_scale_is_refused_except_for_float(tmp_path, suffix):
    loud = np.full((1, 100), 1.5, np.float32)
    with pytest.raises(AudioError, match="beyond full scale"):
        write_audio(tmp_path / f"x{suffix}", loud, 44_100)
    write_audio(tmp_path / "f.wav", loud, 44_100, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "f.wav")[0], loud)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.wav"
    write_audio(path, tone(1, 1000, 44_100), 44_100)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(AudioError) as error:
        write_audio(path, tone(1, 500, 44_100), 44_100)
    assert "No space left" in one_line(error, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_takes_no_more_is_an_audio_error(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "x.wav"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(AudioError) as error:
            write_audio(path, tone(1, 200_000, 44_100), 44_100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in one_line(error, path)
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file_is_an_audio_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "x.wav"
    with pytest.raises(AudioError) as error:
        write_audio(path, tone(1, 100, 44_100), 44_100)
    assert "cannot be written" in one_line(error, path)


@pytest.mark.parametrize(
    ("format", "subtype", "expected"),
    [
        ("WAV", "PCM_24", "PCM_24"),
        ("WAV", "FLOAT", "FLOAT"),
        ("WAV", "VORBIS", "PCM_16"),
        ("FLAC", "PCM_24", "PCM_24"),
        ("FLAC", "FLOAT", "PCM_24"),
        ("FLAC", "PCM_32", "PCM_24"),
        ("FLAC", "ULAW", "PCM_16"),
        ("OGG", "PCM_24", "VORBIS"),
        ("MP3", "FLOAT", "MPEG_LAYER_III"),
    ],
)
def test_sample_coding_is_kept_where_it_makes_sense(format, subtype, expected):
    assert kept_subtype(format, subtype) == expected


def test_format_names():
    assert [output_format("a.WAV"), output_format("a.wav", ".flac"), output_format("a", "Ogg")] == [
        "WAV",
        "FLAC",
        "OGG",
    ]


@pytest.mark.parametrize("rate_in", RATES)
@pytest.mark.parametrize("rate_out", [8000, 44_100, 96_000])
@pytest.mark.parametrize("length", [1, 7, 10_001])
def test_resample_length(rate_in, rate_out, length):
    out = resample(np.full((2, 3, length), 0.5, np.float32), rate_in, rate_out)
    assert out.shape == (2, 3, round(length * rate_out / rate_in))
    assert out.dtype == np.float32


@pytest.mark.parametrize(("rate_in", "rate_out"), [(16_000, 44_100), (96_000, 44_100), (44_100, 48_000)])
def test_resample_keeps_a_tone_in_place(rate_in, rate_out):
    def sine(rate: int) -> np.ndarray:
        return np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)[None]

    out, inside = resample(sine(rate_in), rate_in, rate_out), slice(rate_out // 10, -rate_out // 10)
    assert np.abs(out - sine(rate_out))[:, inside].max() < 1e-4  # a delay of a sample would be 0.1


def test_resample_to_the_same_rate_changes_nothing_and_bad_rates_are_named():
    wav = tone(1, 100, 44_100)
    np.testing.assert_array_equal(resample(wav, 44_100, 44_100), wav)
    for rates in [(0, 44_100), (44_100, -1), (44_100, 10**6)]:
        with pytest.raises(AudioError, match="out of range"):
            resample(wav, *rates)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_peak_normalize_takes_each_row_by_itself(dtype):
    wav = np.array([[0.5, -0.25], [0.0, 0.0], [1e-3, 2e-3]], dtype)
    out = peak_normalize(wav)
    assert out.dtype == dtype
    expected = wav.astype(np.float64) / (np.array([[0.5], [0.0], [2e-3]]) + 1e-7)
    np.testing.assert_allclose(out, expected, rtol=3e-7)


def test_find_audio_is_sorted_recursive_and_skips_the_hidden(tmp_path):
    names = [
        "b.WAV",
        "a/z.flac",
        "a/y.Mp3",
        "c.ogg",
        ".hid.wav",
        ".git/x.wav",
        "notes.txt",
        "d.wav/inner.wav",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_audio(tmp_path)]
    assert found == ["a/y.Mp3", "a/z.flac", "b.WAV", "c.ogg", "d.wav/inner.wav"]
    with pytest.raises(AudioError, match="not a folder"):
        find_audio(tmp_path / "gone")


def test_info_is_what_was_written(tmp_path):
    write_audio(tmp_path / "x.wav", tone(3, 321, 22_050), 22_050, subtype="PCM_24")
    assert probe(tmp_path / "x.wav") == AudioInfo(22_050, 3, 321, "WAV", "PCM_24")
