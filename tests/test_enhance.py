"""Cleaning of arrays, files and folders with models that need no backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from parivox.audio import probe, read_audio, write_audio
from parivox.audio_formats import AUDIO_SUFFIXES, MP3_RATES
from parivox.enhance import MIN_SAMPLES, PADDING, clean
from parivox.enhance_files import FileOptions, Summary, enhance_path
from parivox.errors import AudioError, ConfigError

RATES = (8000, 16_000, 22_050, 44_100, 48_000, 96_000)
CODINGS = [(s, r) for s in AUDIO_SUFFIXES for r in RATES if s != ".mp3" or r in MP3_RATES]


def identity(wav: np.ndarray) -> np.ndarray:
    return wav


def tone(channels: int, length: int, rate: int) -> np.ndarray:
    """A different tone in each channel, which tells the channels and any delay apart; (c, t) float32."""
    t = np.arange(length) / rate
    rows = [0.4 / (c + 1) * np.sin(2 * np.pi * 150 * (c + 1) * t) for c in range(channels)]
    fade = np.minimum(1, np.minimum(t, t[::-1]) / 0.02)
    return (np.stack(rows) * fade).astype(np.float32)


class Recorder:
    """An identity model that keeps the batches it was given."""

    def __init__(self, gain: float = 1.0) -> None:
        self.gain, self.seen = gain, []

    def __call__(self, wav: np.ndarray) -> np.ndarray:
        self.seen.append(wav.copy())
        return self.gain * wav


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("channels", "length"), [(1, 1), (3, 2), (2, 839), (3, 12_345)])
def test_length_channels_and_sound_are_kept_at_every_rate(rate, channels, length):
    wav = tone(channels, length, rate)
    out = clean(wav, rate, identity, chunk_seconds=0.1, overlap_seconds=0.02)
    assert (out.shape, out.dtype) == (wav.shape, np.float32)
    # Resampling there and back is all that may differ; at 44,100 Hz only a rounding.
    assert np.abs(out - wav).max() < (1e-7 if rate == 44_100 else 2e-3)


@pytest.mark.parametrize(
    ("rate", "rate_out"), [(8000, 48_000), (96_000, 8000), (44_100, 16_000), (22_050, 44_100)]
)
@pytest.mark.parametrize("length", [1, 5001])
def test_another_output_rate(rate, rate_out, length):
    out = clean(tone(2, length, rate), rate, identity, rate_out=rate_out)
    assert out.shape == (2, max(1, round(length * rate_out / rate)))
    if length > 1:
        expected = tone(2, out.shape[1], rate_out)
        assert np.abs(out - expected).max() < 0.01


def test_the_model_sees_peak_one_rows_with_441_zeros():
    model = Recorder()
    wav = np.concatenate([tone(1, 60_000, 44_100), 0.01 * tone(1, 60_000, 44_100)])
    out = clean(wav, 44_100, model, chunk_seconds=1.0, overlap_seconds=0.1)
    assert [batch.shape for batch in model.seen] == [(2, 44_100 + PADDING), (2, 60_000 - 39_690 + PADDING)]
    for batch in model.seen:
        assert batch.dtype == np.float32
        np.testing.assert_allclose(np.abs(batch).max(axis=1), 1, rtol=1e-6)
        assert not batch[:, -PADDING:].any()
    np.testing.assert_allclose(out, wav, rtol=3e-7)


def test_a_gain_of_the_model_reaches_every_sample_once():
    wav = tone(2, 150_000, 44_100)
    out = clean(wav, 44_100, Recorder(0.5), chunk_seconds=1.0, overlap_seconds=0.25)
    np.testing.assert_allclose(out, 0.5 * wav, rtol=3e-7, atol=1e-12)


@pytest.mark.parametrize("length", [1, 399, 400, 401])
def test_short_input_is_padded_to_what_the_model_needs(length):
    model = Recorder()
    assert clean(tone(1, length, 44_100) + 0.1, 44_100, model).shape == (1, length)
    assert [batch.shape[1] for batch in model.seen] == [max(length + PADDING, MIN_SAMPLES)]


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_silence_stays_silence(rate):
    def never(wav: np.ndarray) -> np.ndarray:
        raise AssertionError("silence needs no model")

    assert not clean(np.zeros((2, 5000), np.float32), rate, never).any()
    wav = tone(2, 5000, rate)
    wav[1] = 0
    out = clean(wav, rate, lambda x: x + 0.01)
    assert np.isfinite(out).all()
    assert out[0].any() and not out[1].any()


def test_progress_counts_chunks():
    shares = []
    clean(
        tone(1, 44_100, 44_100),
        44_100,
        identity,
        chunk_seconds=0.4,
        overlap_seconds=0.1,
        progress=shares.append,
    )
    np.testing.assert_allclose(shares, [1 / 3, 2 / 3, 1])


def test_wrong_models_and_sizes_are_named():
    wav = tone(1, 5000, 44_100)
    with pytest.raises(AudioError, match="model returned NaN"):
        clean(wav, 44_100, lambda x: x * np.nan)
    with pytest.raises(ValueError, match="returned shape"):
        clean(wav, 44_100, lambda x: x[:, 1:])
    with pytest.raises(ConfigError, match="overlap"):
        clean(wav, 44_100, identity, chunk_seconds=1.0, overlap_seconds=0.6)
    with pytest.raises(AudioError, match="out of range"):
        clean(wav, 44_100, identity, rate_out=0)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("suffix", "rate"), CODINGS)
def test_a_file_keeps_rate_channels_length_and_coding(tmp_path, suffix, rate, channels):
    source, target = tmp_path / f"in{suffix}", tmp_path / "out" / f"x{suffix}"
    write_audio(source, tone(channels, rate // 3 + 7, rate), rate)
    summary = enhance_path(source, target, identity)
    assert summary == Summary([target], [])
    assert probe(target) == probe(source)
    before, after = read_audio(source)[0], read_audio(target)[0]
    # A second pass through a lossy coder costs more than a resampler; a swap or delay far more than both.
    bound = 0.3 if suffix in (".ogg", ".mp3") else 0.02
    assert np.linalg.norm(after - before) < bound * np.linalg.norm(before)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_an_identity_model_gives_the_same_samples_back(tmp_path, subtype):
    source, target = tmp_path / "a.wav", tmp_path / "b.wav"
    write_audio(source, tone(2, 100_000, 44_100), 44_100, subtype=subtype)
    enhance_path(source, target, identity, FileOptions(chunk_seconds=1.0, overlap_seconds=0.1))
    assert probe(source) == probe(target)
    atol = 1e-7 if subtype == "FLOAT" else 0
    np.testing.assert_allclose(read_audio(target)[0], read_audio(source)[0], rtol=0, atol=atol)


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_the_suffix_of_the_output_decides_and_the_rate_can_be_chosen(tmp_path, suffix):
    source = tmp_path / "a.wav"
    write_audio(source, tone(2, 22_051, 22_050), 22_050, subtype="PCM_24")
    target = tmp_path / f"b{suffix}"
    assert enhance_path(source, target, identity, FileOptions(rate=48_000)).done == [target]
    info = probe(target)
    assert (info.rate, info.channels, info.frames) == (48_000, 2, round(22_051 * 48_000 / 22_050))
    expected = {".wav": "PCM_24", ".flac": "PCM_24", ".ogg": "VORBIS", ".mp3": "MPEG_LAYER_III"}
    assert info.subtype == expected[suffix]


def test_a_file_into_a_folder_keeps_its_name(tmp_path):
    source, folder = tmp_path / "a.wav", tmp_path / "out"
    write_audio(source, tone(1, 1000, 16_000), 16_000)
    assert enhance_path(source, folder, identity).done == [folder / "a.wav"]  # made: no suffix
    assert enhance_path(source, folder, identity, FileOptions(format="flac")).done == [
        folder / "a.flac"
    ]  # exists
    with pytest.raises(AudioError, match="disagree"):
        enhance_path(source, tmp_path / "x.ogg", identity, FileOptions(format="flac"))
    with pytest.raises(AudioError, match="cannot write 'aac'"):
        enhance_path(source, tmp_path / "x.aac", identity)


def test_an_output_that_would_clip_is_scaled_down_as_a_whole(tmp_path):
    source, target, lines = tmp_path / "a.wav", tmp_path / "b.wav", []
    wav = 2 * tone(2, 20_000, 44_100)
    write_audio(source, wav, 44_100)
    enhance_path(source, target, Recorder(2.0), message=lines.append)
    out = read_audio(target)[0]
    np.testing.assert_allclose(out, wav / np.abs(wav).max(), rtol=0, atol=1e-4)
    assert len(lines) == 1 and str(target) in lines[0] and "scaled down by 4.0" in lines[0]


def test_a_float_file_keeps_peaks_beyond_one(tmp_path):
    source, target, lines = tmp_path / "a.wav", tmp_path / "b.wav", []
    write_audio(source, 3 * tone(1, 5000, 44_100), 44_100, subtype="FLOAT")
    enhance_path(source, target, identity, message=lines.append)
    np.testing.assert_allclose(read_audio(target)[0], read_audio(source)[0], rtol=3e-7)
    assert lines == []


def bad_files(folder: Path) -> dict[Path, str]:
    """Files that cannot be cleaned, with a word of the reason each must be given."""
    write_audio(folder / "b" / "torn.flac", np.random.default_rng(0).uniform(-0.1, 0.1, (1, 50_000)), 44_100)
    torn = (folder / "b" / "torn.flac").read_bytes()
    (folder / "b" / "torn.flac").write_bytes(torn[: len(torn) // 2])
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("a text, renamed\n" * 300)
    (folder / "text.mp3").write_text("a text, renamed\n" * 300)
    samples = np.zeros(1000, np.float32)
    samples[500] = np.nan
    sf.write(folder / "nan.wav", samples, 44_100, subtype="FLOAT")
    return {
        folder / "b" / "torn.flac": "truncated",
        folder / "empty.wav": "empty",
        folder / "text.wav": "decoded",
        folder / "text.mp3": "decoded",
        folder / "nan.wav": "NaN",
    }


def test_a_folder_is_mirrored_and_its_bad_files_do_not_stop_the_others(tmp_path):
    source, target, lines, reports = tmp_path / "in", tmp_path / "out", [], []
    good = ["a.wav", "b/c.FLAC", "b/d/e.ogg", "b/d/f.mp3", "z.wav"]
    for name in good:
        write_audio(source / name, tone(1, 16_000, 16_000), 16_000)
    bad = bad_files(source)
    summary = enhance_path(
        source,
        target,
        identity,
        message=lines.append,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert summary.done == [target / name for name in good]
    assert {path: reason for path, reason in summary.failed if bad[path] in reason}.keys() == bad.keys()
    assert sorted(lines) == sorted(reason for _, reason in summary.failed)
    for path, reason in summary.failed:
        assert str(path) in reason and "\n" not in reason
    written = [path.relative_to(target).as_posix() for path in sorted(target.rglob("*")) if path.is_file()]
    assert written == good
    done, totals = zip(*reports, strict=True)
    assert list(done) == sorted(done) and len(set(totals)) == 1
    np.testing.assert_allclose(done[-1], totals[0])


def test_a_model_that_fails_on_one_file_names_it(tmp_path):
    for name, length in (("a.wav", 2000), ("b.wav", 3000)):
        write_audio(tmp_path / "in" / name, tone(1, length, 44_100), 44_100)

    def first_is_nan(wav: np.ndarray) -> np.ndarray:
        return wav * (np.nan if wav.shape[1] == 2000 + PADDING else 1)

    summary = enhance_path(tmp_path / "in", tmp_path / "out", first_is_nan)
    assert summary.done == [tmp_path / "out" / "b.wav"]
    assert len(summary.failed) == 1 and str(tmp_path / "in" / "a.wav") in summary.failed[0][1]
    assert not (tmp_path / "out" / "a.wav").exists()


def test_a_rate_that_the_format_cannot_hold_fails_before_computing(tmp_path):
    write_audio(tmp_path / "in" / "a.wav", tone(1, 2000, 96_000), 96_000)
    model = Recorder()
    summary = enhance_path(tmp_path / "in", tmp_path / "out", model, FileOptions(format="mp3"))
    assert summary.done == [] and model.seen == []
    assert "MP3 has no sample rate 96000" in summary.failed[0][1]
    assert (
        enhance_path(tmp_path / "in", tmp_path / "out", model, FileOptions(format="mp3", rate=48_000)).failed
        == []
    )


@pytest.fixture
def tree(tmp_path):
    """A folder `in` with two files that share a stem, and a file `file.txt`."""
    for name in ("a.wav", "a.flac"):
        write_audio(tmp_path / "in" / name, tone(1, 1000, 44_100), 44_100)
    (tmp_path / "file.txt").write_text("in the way")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "target", "format", "expected"),
    [
        ("gone", "out", None, "no such file"),
        ("gone.wav", "out.wav", None, "no such file"),
        ("in", "file.txt", None, "is a file"),
        ("in", "in", None, "inside the input"),
        ("in", "in/out", None, "inside the input"),
        ("in/a.wav", "in/a.wav", None, "itself an input"),
        ("in/a.wav", "in", None, "itself an input"),
        ("in", "out", "wav", "would both become"),
        ("in", "out", "aac", "cannot write 'aac'"),
        ("in", "file.txt/out", None, "cannot be made"),
        ("in/a.wav", "file.txt/a.wav", None, "cannot be made"),
    ],
)
def test_a_job_that_cannot_be_done_is_one_clear_line(tree, source, target, format, expected):
    before = sorted(tree.rglob("*"))
    model = Recorder()
    with pytest.raises(AudioError) as error:
        enhance_path(tree / source, tree / target, model, FileOptions(format=format))
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert model.seen == [] and sorted(tree.rglob("*")) == before


def test_both_names_of_a_clash_are_given(tree):
    with pytest.raises(AudioError) as error:
        enhance_path(tree / "in", tree / "out", identity, FileOptions(format="ogg"))
    assert str(tree / "in" / "a.wav") in str(error.value) and str(tree / "in" / "a.flac") in str(error.value)


def test_an_output_that_is_another_input_is_refused(tmp_path):
    for name in ("in/x.wav", "in/in/x.wav"):
        write_audio(tmp_path / name, tone(1, 1000, 44_100), 44_100)
    with pytest.raises(AudioError, match="itself an input"):
        enhance_path(tmp_path / "in", tmp_path, identity)  # in/in/x.wav would go to in/x.wav
    (tmp_path / "other").symlink_to(tmp_path / "in", target_is_directory=True)
    with pytest.raises(AudioError, match="inside the input"):
        enhance_path(tmp_path / "in", tmp_path / "other", identity)


def test_a_folder_without_audio_and_one_that_is_read_only(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    with pytest.raises(AudioError, match="holds no audio"):
        enhance_path(tmp_path / "in", tmp_path / "out", identity)
    write_audio(tmp_path / "in" / "a.wav", tone(1, 1000, 44_100), 44_100)
    monkeypatch.setattr("parivox.enhance_plan.os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(AudioError, match="is not writable"):
        enhance_path(tmp_path / "in", tmp_path / "out", identity)


def test_a_name_in_the_way_below_the_output_folder_fails_that_file_alone(tmp_path):
    for name in ("a/x.wav", "b.wav"):
        write_audio(tmp_path / "in" / name, tone(1, 1000, 44_100), 44_100)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("a file where a folder must go")
    summary = enhance_path(tmp_path / "in", tmp_path / "out", identity)
    assert summary.done == [tmp_path / "out" / "b.wav"]
    assert [path for path, _ in summary.failed] == [tmp_path / "in" / "a" / "x.wav"]
    assert "cannot be written" in summary.failed[0][1]
