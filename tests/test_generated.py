"""Generated files of many formats, rates, channels and lengths through a model that changes nothing."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from parivox.audio import probe, read_audio
from parivox.audio_formats import AUDIO_SUFFIXES, MP3_RATES, media_installed
from parivox.enhance_files import enhance_path
from tests.sound_files import RATES, lag, speechlike, write_sound

ALL_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000)
SUFFIXES = (
    *(".wav", ".wav", ".flac", ".ogg", ".mp3", ".aiff"),
    *((".m4a", ".mov", ".mkv", ".webm", ".mp4", ".caf") if media_installed() else ()),
)
SUBTYPES = {
    ".wav": ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"),
    ".flac": ("PCM_16", "PCM_24"),
    ".aiff": ("PCM_16", "PCM_24"),
}


@dataclass(frozen=True)
class Kind:
    """One file to make: `silent` is a channel without sound, or None."""

    suffix: str
    subtype: str | None
    rate: int
    channels: int
    length: int
    silent: int | None


def drawn(rng: np.random.Generator, longest: float) -> Kind:
    """A kind of file, of 0.01 s to `longest` seconds; short ones are as likely as long ones."""
    suffix = SUFFIXES[int(rng.integers(len(SUFFIXES)))]
    rates = MP3_RATES if suffix == ".mp3" else RATES.get(suffix, ALL_RATES)
    rate = int(rng.choice(rates))
    channels = int(rng.integers(1, 3 if suffix == ".mp3" else 7))
    # FFmpeg's encoder does not note the end of an Opus file that is one packet long.
    shortest = 0.02 if suffix == ".webm" else 0.01
    length = max(1, int(rate * np.exp(rng.uniform(np.log(shortest), np.log(longest)))))
    silent = int(rng.integers(channels)) if rng.random() < 0.25 else None
    subtypes = SUBTYPES.get(suffix)
    return Kind(suffix, str(rng.choice(subtypes)) if subtypes else None, rate, channels, length, silent)


def check(folder: Path, kind: Kind, rng: np.random.Generator) -> None:
    """Make the file, clean it, and compare."""
    wav = speechlike(rng, kind.channels, kind.length, kind.rate)
    if kind.silent is not None:
        wav[kind.silent] = 0
    source, lines = folder / "in" / f"x{kind.suffix}", []
    source.parent.mkdir(parents=True)
    write_sound(source, wav, kind.rate, kind.subtype)
    suffix = kind.suffix if kind.suffix in AUDIO_SUFFIXES else ".wav"
    summary = enhance_path(source, folder / "out", lambda rows: rows, message=lines.append)
    assert summary.done == [folder / "out" / f"x{suffix}"] and not lines, (summary.failed, lines)
    before, rate = read_audio(source)
    after, rate_after = read_audio(summary.done[0])
    assert (rate, before.shape) == (kind.rate, wav.shape)
    assert (rate_after, after.shape, probe(summary.done[0]).frames) == (rate, wav.shape, kind.length)
    assert np.abs(after).max() <= 1
    if kind.suffix == ".wav" and kind.subtype in ("FLOAT", "DOUBLE") and kind.rate == 44_100:
        np.testing.assert_allclose(after, before, rtol=3e-7, atol=1e-9)  # through a peak of 1 and back
    if kind.silent is not None and kind.suffix in SUBTYPES:
        assert not after[kind.silent].any()
    if kind.length < 0.1 * kind.rate:
        return  # so little of a low tone has no sharp peak
    for row, (one, other) in enumerate(zip(before, after, strict=True)):
        if row != kind.silent:
            assert lag(one, other) == 0


def check_many(folder: Path, count: int, longest: float) -> None:
    """Check that many kinds; each failure names the seed that drew it."""
    seed = secrets.randbits(32)
    wrong = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        kind = drawn(rng, longest)
        try:
            check(folder / str(number), kind, rng)
        except AssertionError as error:
            wrong.append(f"seed {seed}, number {number}, {kind}: {error}")
        shutil.rmtree(folder / str(number))
    assert not wrong, "\n".join(wrong)


def test_25_generated_files_keep_their_shape_and_place(tmp_path):
    check_many(tmp_path, 25, 6)


@pytest.mark.slow
def test_200_generated_files_keep_their_shape_and_place(tmp_path):
    check_many(tmp_path, 200, 40)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_a_float_wav_at_the_models_rate_keeps_every_bit(tmp_path, subtype):
    # With a peak of 1 nothing is scaled, so nothing may be rounded.
    wav = speechlike(np.random.default_rng(secrets.randbits(32)), 2, 50_000, 44_100)
    wav[:, 20_000] = 1
    write_sound(tmp_path / "a.wav", wav, 44_100, subtype)
    enhance_path(tmp_path / "a.wav", tmp_path / "b.wav", lambda rows: rows)
    np.testing.assert_array_equal(read_audio(tmp_path / "b.wav")[0], wav)


@pytest.mark.parametrize("suffix", list(dict.fromkeys(SUFFIXES)))
def test_a_silent_file_stays_silent(tmp_path, suffix):
    rate = 48_000
    write_sound(tmp_path / f"x{suffix}", np.zeros((2, rate), np.float32), rate)
    (done,) = enhance_path(tmp_path / f"x{suffix}", tmp_path / "out", lambda rows: rows).done
    assert not read_audio(done)[0].any()
