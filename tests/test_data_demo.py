from __future__ import annotations

import numpy as np
import pytest

from parivox.audio import probe, read_audio
from parivox.audio_formats import find_audio
from parivox.data import make_demo_data, validation_batches
from parivox.data.demo import NOISES, ROOMS
from parivox.data.voice import pulses, speak
from parivox.errors import DataError
from parivox.hparams import DenoiserHParams
from tests.data_folder import RATE


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("made") / "demo")


def test_contents(demo):
    speech = [probe(path) for path in find_audio(demo / "fg")]
    assert len(speech) == 20 and all(2 <= info.frames / info.rate <= 4 for info in speech)
    assert {info.format for info in speech} == {"FLAC", "OGG", "WAV"}
    assert {info.rate for info in speech} == {RATE, 48_000}
    assert [path.stem for path in find_audio(demo / "bg")] == sorted(NOISES)
    assert sorted(path.stem for path in (demo / "rir").glob("*.npy")) == sorted(ROOMS)
    assert sum(path.stat().st_size for path in demo.rglob("*")) < 6e6


def test_second_call_writes_nothing_and_completes_what_is_missing(demo, tmp_path):
    times = {path: path.stat().st_mtime_ns for path in demo.rglob("*") if path.is_file()}
    lost = demo / "fg" / "speaker0" / "clip1.flac"
    before = read_audio(lost)[0]
    lost.unlink()
    assert make_demo_data(demo) == demo
    assert np.array_equal(read_audio(lost)[0], before), "a file is a function of its name"
    del times[lost]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_clips_differ_and_speakers_have_voices(demo):
    clips = [read_audio(path)[0][0] for path in find_audio(demo / "fg")]
    assert len({clip[:8000].tobytes() for clip in clips}) == len(clips)
    for clip in clips:
        frames = clip[: len(clip) // 882 * 882].reshape(-1, 882)
        loudness = 20 * np.log10(np.sqrt(np.square(frames).mean(axis=1)) + 1e-6)
        assert np.mean(loudness > -30) > 0.3, "syllables"
        assert np.mean(loudness < -55) > 0.03, "pauses"


def test_pulses_keep_their_pitch():
    wav = pulses(np.full(RATE, 123.4), RATE)
    assert wav.sum() == pytest.approx(123, abs=1)
    spectrum = np.abs(np.fft.rfft(wav * np.hanning(RATE), 4 * RATE))
    peak = spectrum[400:600].argmax() + 400
    assert peak / 4 == pytest.approx(123.4, abs=0.3)


def test_voice_depends_on_its_generator_alone():
    from parivox.data.voice import Speaker

    one, two, other = (
        speak(Speaker(120.0, 1.0, 0.01), 1.5, RATE, np.random.default_rng(k)) for k in (1, 1, 2)
    )
    assert one.shape == (round(1.5 * RATE),) and np.abs(one).max() == pytest.approx(0.7)
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_demo_data_validates(demo):
    hp = DenoiserHParams(fg_dir=demo / "fg", bg_dir=demo / "bg", rir_dir=demo / "rir")
    (batch,) = validation_batches(hp, seed=0, batch_size=16)
    assert batch.arrays["noisy"].shape == (10, RATE) and not batch.skipped


def test_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        make_demo_data(tmp_path / "file" / "demo")
