"""What can be asked for when files are cleaned, and that blocks give what the whole gives."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from parivox.audio import probe, read_audio, resample, write_audio
from parivox.enhance import clean
from parivox.enhance_files import FileOptions, Summary, enhance_path
from parivox.errors import AudioError, ConfigError, printable
from tests.test_enhance import identity, tone


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        write_audio(tmp_path / "in" / name, tone(2, 30_000, 44_100), 44_100)
    return tmp_path / "in"


def test_what_is_there_already_is_passed_over(tmp_path):
    source, target = folder_of(tmp_path, "a.wav", "b.wav"), tmp_path / "out"
    write_audio(target / "a.wav", tone(1, 100, 44_100), 44_100)
    before = (target / "a.wav").read_bytes()
    summary = enhance_path(source, target, identity, FileOptions(skip_existing=True))
    assert summary == Summary([target / "b.wav"], [], [target / "a.wav"])
    assert (target / "a.wav").read_bytes() == before
    assert enhance_path(source, target, identity).done == [target / "a.wav", target / "b.wav"]


def test_the_first_failure_can_end_it(tmp_path):
    source, target = folder_of(tmp_path, "a.wav", "c.wav"), tmp_path / "out"
    (source / "b.wav").write_text("a text, renamed")
    summary = enhance_path(source, target, identity, FileOptions(keep_going=False))
    assert summary.done == [] and summary.left == [source / "a.wav", source / "c.wav"]
    (source / "b.wav").unlink()
    seen = []

    def second_is_nan(wav: np.ndarray) -> np.ndarray:
        seen.append(wav)
        return wav * (np.nan if len(seen) == 3 else 1)  # the second file has the third row

    folder_of(tmp_path, "d.wav")
    summary = enhance_path(source, target, second_is_nan, FileOptions(keep_going=False))
    assert summary.done == [target / "a.wav"] and summary.left == [source / "d.wav"]
    assert [path for path, _ in summary.failed] == [source / "c.wav"]


@pytest.mark.parametrize(("rate", "rate_out"), [(44_100, None), (16_000, None), (48_000, 22_050)])
def test_some_of_the_original_can_be_kept(tmp_path, rate, rate_out):
    source, target = tmp_path / "a.wav", tmp_path / "b.wav"
    wav = tone(2, 3 * rate + 11, rate)
    write_audio(source, wav, rate, subtype="FLOAT")
    options = FileOptions(rate=rate_out, mix=0.25, chunk_seconds=1.0, overlap_seconds=0.25)
    enhance_path(source, target, np.zeros_like, options)
    wanted = 0.25 * resample(wav, rate, rate_out or rate)
    found, _ = read_audio(target)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_channels_can_be_made_one(tmp_path):
    source, target = tmp_path / "a.wav", tmp_path / "b.wav"
    wav = np.stack([tone(1, 50_000, 44_100)[0], -0.5 * tone(1, 50_000, 44_100)[0]])
    write_audio(source, wav, 44_100, subtype="FLOAT")
    enhance_path(source, target, identity, FileOptions(mono=True, chunk_seconds=0.5, overlap_seconds=0.1))
    assert probe(target).channels == 1
    np.testing.assert_allclose(read_audio(target)[0], wav.mean(0, keepdims=True), rtol=0, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 96_000])
def test_a_file_in_blocks_is_what_the_whole_is(tmp_path, rate):
    source, target = tmp_path / "a.wav", tmp_path / "b.wav"
    write_audio(source, tone(2, 7 * rate + 13, rate), rate, subtype="FLOAT")
    enhance_path(source, target, halving, FileOptions(chunk_seconds=1.0, overlap_seconds=0.2))
    whole = clean(read_audio(source)[0], rate, halving, chunk_seconds=1.0, overlap_seconds=0.2)
    np.testing.assert_array_equal(read_audio(target)[0], whole)


def halving(wav: np.ndarray) -> np.ndarray:
    return wav / 2


def test_a_mix_beyond_1_is_refused():
    with pytest.raises(ConfigError, match=r"--mix is 1\.5"):
        FileOptions(mix=1.5)


def test_what_waits_on_the_disk_is_not_left_there(tmp_path):
    source, target = folder_of(tmp_path, "a.wav"), tmp_path / "out"
    seen = []

    def looks(wav: np.ndarray) -> np.ndarray:
        seen.append(sorted(path.name for path in target.iterdir()))
        return wav

    enhance_path(source, target, looks, FileOptions(chunk_seconds=0.2, overlap_seconds=0.05))
    assert len(seen) > 2 and not any(seen)
    assert [path.name for path in target.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("other", ["a.aiff", "a.opus"])
def test_two_inputs_that_would_become_one_output_are_both_named(tmp_path, other):
    # What can only be read becomes WAV, and one is there.
    source = folder_of(tmp_path, "a.wav")
    (source / other).write_bytes((source / "a.wav").read_bytes())
    with pytest.raises(AudioError) as error:
        enhance_path(source, tmp_path / "out", identity)
    assert str(source / "a.wav") in str(error.value) and str(source / other) in str(error.value)
    assert not (tmp_path / "out").exists()


AWKWARD = ("a\nb", "\x1b[31mred", "tab\there", "\u2028", "%s {x}", "-", "\u00e9")
NO_TEXT = ("\udcff",) if sys.platform == "linux" else ()  # macOS takes no such name


@pytest.mark.parametrize("name", AWKWARD + NO_TEXT)
def test_whatever_a_name_holds_the_file_is_cleaned_and_messages_are_one_line(tmp_path, name):
    lines = []
    good, bad = folder_of(tmp_path, f"{name}.wav"), tmp_path / "in" / f"{name}.flac"
    bad.write_text("no sound")
    summary = enhance_path(good, tmp_path / "out", identity, message=lines.append)
    assert summary.done == [tmp_path / "out" / f"{name}.wav"] and summary.done[0].exists()
    ((path, reason),) = summary.failed
    assert (path, [reason]) == (bad, lines) and reason.count(printable(bad)) == 1
    assert all(char.isprintable() or char == " " for char in reason) and len(reason.splitlines()) == 1
    reason.encode()  # bytes that are no text have become text
