"""Every metric gives what its own package gives, or an evaluation that shares no code with ours."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.fft import dct

from parivox import scores
from parivox.audio import read_audio, resample
from parivox.audio_formats import find_audio
from parivox.errors import BackendError, ConfigError
from parivox.metrics import LSD_FRAME, LSD_HOP, mel_cepstral_distortion
from parivox.scores import METRICS, Channel, UndefinedError, choose, pieces
from tests.voices import RATE, noisy, voice

TABLE = {metric.name: metric for metric in METRICS}
HALF = np.float32(0.5)


def measured(name: str, channel: Channel) -> tuple[float, ...]:
    if not TABLE[name].installed:
        pytest.skip(f"{name} is not installed; {TABLE[name].remedy}")
    return TABLE[name].measure(channel)


def compared(name: str, estimate: np.ndarray, reference: np.ndarray, rate: int = RATE) -> float:
    (value,) = measured(name, Channel(estimate, rate, reference, rate))
    return value


def reason(name: str, channel: Channel) -> str:
    with pytest.raises(UndefinedError) as caught:
        measured(name, channel)
    return str(caught.value)


def lsd_by_librosa(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Log-spectral distance from librosa's spectra."""
    import librosa

    def power(wav: np.ndarray) -> np.ndarray:
        wide = wav.astype(np.float64)
        return np.abs(librosa.stft(wide, n_fft=LSD_FRAME, hop_length=LSD_HOP, center=False)) ** 2

    one, other = power(estimate), power(reference)
    floor = 1e-8 * other.max()
    levels = [librosa.power_to_db(x, ref=1.0, amin=floor, top_db=None) for x in (one, other)]
    return float(np.sqrt(((levels[0] - levels[1]) ** 2).mean(axis=0)).mean())


def mcd_by_librosa(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Mel-cepstral distortion from librosa's spectra and filters and SciPy's cosine transform."""
    import librosa

    def bands(wav: np.ndarray) -> np.ndarray:
        wide = np.pad(wav.astype(np.float64), 56)  # librosa puts a short window into the middle of its frame
        spectrum = librosa.stft(wide, n_fft=512, win_length=400, hop_length=160, center=False)
        return librosa.filters.mel(sr=16_000, n_fft=512, n_mels=40, dtype=np.float64) @ np.abs(spectrum) ** 2

    one, other = bands(estimate), bands(reference)
    levels = [librosa.power_to_db(x, ref=np.max, top_db=80) for x in (one, other)]
    difference = dct(levels[0] - levels[1], axis=0)[1:14] / 80 * np.log(10) / 10
    speech = librosa.power_to_db(other.sum(axis=0), ref=np.max, top_db=80) > -40
    return float((10 / np.log(10) * np.sqrt(2 * (difference**2).sum(axis=0)))[speech].mean())


def si_sdr_by_projection(estimate: np.ndarray, reference: np.ndarray) -> float:
    """SI-SDR from the angle between the two sounds."""
    one, other = (x.astype(np.float64) - x.astype(np.float64).mean() for x in (estimate, reference))
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    return float(10 * np.log10(cosine**2 / (1 - cosine**2)))


def pesq_by_package(estimate: np.ndarray, reference: np.ndarray) -> float:
    from pesq import pesq

    return float(pesq(16_000, reference, estimate, "wb"))


def dnsmos_by_package(estimate: np.ndarray) -> list[float]:
    from speechmos import dnsmos

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = dnsmos.run(np.clip(estimate, -1, 1), 16_000)
    return [float(found[f"{name}_mos"]) for name in ("ovrl", "sig", "bak", "p808")]


def test_si_sdr_lsd_and_mcd_agree_with_other_evaluations():
    librosa = pytest.importorskip("librosa")
    assert librosa
    clean = voice()
    dirty = noisy(clean)
    assert compared("si_sdr", dirty, clean) == pytest.approx(si_sdr_by_projection(dirty, clean))
    assert compared("lsd", dirty, clean) == pytest.approx(lsd_by_librosa(dirty, clean), rel=1e-5)
    at_16k = [resample(wav, RATE, 16_000) for wav in (dirty, clean)]
    assert compared("mcd", dirty, clean) == pytest.approx(mcd_by_librosa(*at_16k), rel=1e-5)


def test_pesq_is_that_of_its_package():
    clean = voice()
    dirty = noisy(clean)
    at_16k = [resample(wav, RATE, 16_000) for wav in (dirty, clean)]
    found = compared("pesq", dirty, clean)
    assert found == pesq_by_package(*at_16k) and 1 < found < 2
    assert compared("pesq", clean, clean) == pytest.approx(4.64, abs=0.01)


def test_stoi_is_that_of_its_package():
    clean = voice()
    dirty = noisy(clean, 0.1)
    found = compared("stoi", dirty, clean)
    from pystoi import stoi

    assert found == stoi(clean, dirty, RATE) and 0.3 < found < 0.95
    assert compared("stoi", clean, clean) == pytest.approx(1)


def test_dnsmos_is_that_of_its_package():
    wav = noisy(voice(9.2, 16_000), 0.01)
    found = measured("dnsmos", Channel(wav, 16_000))
    assert list(found) == dnsmos_by_package(wav)
    assert all(1 <= value <= 5 for value in found)
    loud = measured("dnsmos", Channel(3 * wav, 16_000))  # beyond full scale, as a filter may leave a sound
    assert list(loud) == dnsmos_by_package(3 * wav)


def test_rates_may_differ_and_the_reference_decides():
    low = voice(rate=16_000)
    high = resample(low, 16_000, 48_000)
    channel = Channel(high, 48_000, low, 16_000)
    assert channel.rate == 16_000
    assert measured("si_sdr", channel)[0] > 40
    assert measured("lsd", channel)[0] < 1.5
    dirty = noisy(high, 0.05)
    one, other = (
        Channel(dirty, 48_000, low, 16_000),
        Channel(resample(dirty, 48_000, 16_000), 16_000, low, 16_000),
    )
    for name in ("si_sdr", "lsd", "mcd"):
        assert measured(name, one) == measured(name, other)


def test_spectral_distance_is_taken_at_the_rate_of_the_models():
    clean = voice(rate=48_000)
    dirty = noisy(clean)
    at_44k = [resample(wav, 48_000, RATE) for wav in (dirty, clean)]
    assert compared("lsd", dirty, clean, 48_000) == compared("lsd", *at_44k)


def test_level_matters_to_the_spectral_distance_alone():
    clean = voice()
    assert compared("si_sdr", HALF * clean, clean) == 100
    assert compared("mcd", HALF * clean, clean) == pytest.approx(0, abs=1e-6)
    assert 1 < compared("lsd", HALF * clean, clean) <= 20 * np.log10(2) + 1e-9


@pytest.mark.parametrize("ripples", [1, 3])
def test_a_smooth_filter_has_the_distortion_of_its_ripples(ripples):
    """Gains of 5 cos(pi d place) dB over the mel scale are 5 / sqrt(2) dB in the root mean square."""
    librosa = pytest.importorskip("librosa")
    wav = np.random.default_rng(0).standard_normal((2, 32_000))
    mels = librosa.hz_to_mel(np.fft.rfftfreq(32_000, 1 / 16_000))
    place = (mels / mels[-1] * 41 - 0.5) / 40  # band m is centred at mel (m + 1) / 41 of the whole scale
    gain = 10 ** (5 * np.cos(np.pi * ripples * place.clip(0, 1)) / 20)
    filtered = np.fft.irfft(gain * np.fft.rfft(wav), 32_000)
    np.testing.assert_allclose(mel_cepstral_distortion(filtered, wav), 5 / np.sqrt(2), rtol=0.03)


def test_pauses_do_not_count_in_the_distortion():
    clean = voice(rate=16_000)
    pause = np.zeros(16_000, np.float32)
    hiss = noisy(pause, 1e-3)
    longer = [np.concatenate([wav, tail]) for wav, tail in ((noisy(clean), hiss), (clean, pause))]
    alone, beside = compared("mcd", noisy(clean), clean, 16_000), compared("mcd", *longer, 16_000)
    assert beside == pytest.approx(alone, rel=0.05)


def test_long_sounds_are_taken_in_equal_pieces():
    wavs = np.arange(45 * 16_000, dtype=np.float32), np.zeros(45 * 16_000, np.float32)
    found = list(pieces(*wavs, rate=16_000))
    assert [len(one) for one, _ in found] == 3 * [15 * 16_000] == [len(other) for _, other in found]
    np.testing.assert_array_equal(np.concatenate([one for one, _ in found]), wavs[0])
    assert len(list(pieces(wavs[0][: 20 * 16_000], rate=16_000))) == 1
    assert len(list(pieces(wavs[0][:0], rate=16_000))) == 1


def test_pesq_of_a_long_sound_is_the_mean_of_its_pieces(monkeypatch):
    monkeypatch.setattr(scores, "PIECE_SECONDS", 2.0)
    clean = voice(4.0, 16_000)
    dirty = noisy(clean)
    halves = [slice(0, 32_000), slice(32_000, 64_000)]
    singly = [compared("pesq", dirty[half], clean[half], 16_000) for half in halves]
    assert singly[0] != singly[1]
    assert compared("pesq", dirty, clean, 16_000) == pytest.approx(np.mean(singly))


def test_pesq_does_not_pass_over_a_piece_that_was_lost(monkeypatch):
    monkeypatch.setattr(scores, "PIECE_SECONDS", 2.0)
    clean = voice(4.0, 16_000)
    lost, paused = noisy(clean), clean.copy()
    lost[32_000:] = 0
    paused[32_000:] = 0
    assert reason("pesq", Channel(lost, 16_000, clean, 16_000)) == "the sound is silent from 2 to 4 s"
    found = compared("pesq", lost, paused, 16_000)
    assert found == compared("pesq", lost[:32_000], clean[:32_000], 16_000)


@pytest.mark.parametrize("name", ["si_sdr", "pesq", "stoi", "lsd", "mcd", "wer", "speaker"])
def test_nothing_compares_with_a_silent_reference(name):
    wav = voice()
    assert reason(name, Channel(wav, RATE, 0 * wav, RATE)) == "the reference is silent"


def test_what_a_silent_sound_has():
    wav = voice()
    silent = Channel(0 * wav, RATE, wav, RATE)
    assert measured("si_sdr", silent) == (-100,)
    assert 10 < measured("lsd", silent)[0] <= 80
    assert measured("stoi", silent)[0] == pytest.approx(0, abs=1e-6)
    for name in ("pesq", "dnsmos"):
        assert reason(name, silent) == "the sound is silent"


@pytest.mark.parametrize(
    ("name", "seconds", "words"),
    [
        ("pesq", 0.2, "0.25 s"),
        ("stoi", 0.3, "0.4 s of sound"),
        ("lsd", 0.04, "2048 samples"),
        ("mcd", 0.02, "400 samples"),
        ("dnsmos", 0.9, "1 s"),
    ],
)
def test_sounds_that_are_too_short(name, seconds, words):
    wav = voice()[20_000 : 20_000 + round(seconds * RATE)]
    assert words in reason(name, Channel(noisy(wav), RATE, wav, RATE))


def test_too_little_speech_in_a_long_enough_sound():
    wav = np.zeros(RATE, np.float32)
    wav[:4000] = voice()[20_000:24_000]
    assert reason("stoi", Channel(noisy(wav), RATE, wav, RATE)) == "STOI needs 0.4 s of speech"


def test_a_package_that_fails_ends_nothing(monkeypatch):
    pesq = pytest.importorskip("pesq")

    def fail(*arguments):
        raise pesq.OutOfMemoryError("no room")

    monkeypatch.setattr(pesq, "pesq", fail)
    assert reason("pesq", Channel(voice(), RATE, voice(), RATE)) == (
        "its package fails (OutOfMemoryError: no room)"
    )


def test_a_package_that_cannot_be_imported_is_one_line(monkeypatch):
    pytest.importorskip("pesq")
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(BackendError, match=r"pesq: a package cannot be used .*parivox\[metrics\]"):
        TABLE["pesq"].measure(Channel(voice(), RATE, voice(), RATE))


def absent(monkeypatch, *modules: str) -> None:
    find = scores.importlib.util.find_spec
    monkeypatch.setattr(
        scores.importlib.util, "find_spec", lambda name: None if name in modules else find(name) or True
    )


def test_what_is_missing_is_left_out_with_a_line(monkeypatch):
    absent(monkeypatch, "pesq", "speechmos", "resemblyzer")
    chosen, lines = choose(None, reference=True)
    assert [metric.name for metric in chosen] == ["si_sdr", "stoi", "lsd", "mcd", "wer"]
    assert lines == [
        "pesq, dnsmos: left out, not installed; pip install 'parivox[metrics]'",
        "speaker: left out, not installed; pip install 'parivox[changed]'",
    ]


def test_what_is_missing_is_an_error_where_it_is_asked_for(monkeypatch):
    absent(monkeypatch, "pesq", "speechmos")
    with pytest.raises(
        BackendError, match=r"--metrics pesq: not installed; pip install 'parivox\[metrics\]'"
    ):
        choose(("si_sdr", "pesq"), reference=True)
    with pytest.raises(BackendError, match="nothing can be scored without a reference: dnsmos"):
        choose(None, reference=False)


def test_metrics_asked_for_by_name():
    assert [metric.name for metric in choose(("mcd", "si_sdr", "mcd"), reference=True)[0]] == [
        "mcd",
        "si_sdr",
    ]
    with pytest.raises(ConfigError, match="--metrics mcd: compares with a reference"):
        choose(("mcd",), reference=False)
    with pytest.raises(ConfigError, match=r"no such metric; use some of si_sdr, pesq"):
        choose(("loudness",), reference=True)
    with pytest.raises(ConfigError, match="--metrics names none; use some of si_sdr, pesq"):
        choose((), reference=True)


@pytest.mark.slow
@pytest.mark.skipif(
    "PARIVOX_RECORDINGS" not in os.environ, reason="PARIVOX_RECORDINGS names no folder of recordings"
)
def test_scores_of_real_recordings_are_those_of_the_packages():
    """Thirty recordings spread over the folder, with noise, as read from disk at their own rate."""
    found = find_audio(Path(os.environ["PARIVOX_RECORDINGS"]))
    for number, path in enumerate(found[:: max(1, len(found) // 30)]):
        wav, rate = read_audio(path)
        clean = wav[0]
        dirty = noisy(clean, 10 ** -(1 + number % 4 / 2) * float(np.abs(clean).max()), number)
        at_16k = [resample(x, rate, 16_000) for x in (dirty, clean)]
        at_44k = [resample(x, rate, RATE) for x in (dirty, clean)]
        assert compared("si_sdr", dirty, clean, rate) == pytest.approx(si_sdr_by_projection(dirty, clean))
        assert compared("lsd", dirty, clean, rate) == pytest.approx(lsd_by_librosa(*at_44k), rel=1e-5)
        assert compared("mcd", dirty, clean, rate) == pytest.approx(mcd_by_librosa(*at_16k), rel=1e-5)
        assert compared("pesq", dirty, clean, rate) == pesq_by_package(*at_16k)
        from pystoi import stoi

        assert compared("stoi", dirty, clean, rate) == stoi(clean, dirty, rate)
        assert list(measured("dnsmos", Channel(dirty, rate))) == dnsmos_by_package(at_16k[0])
