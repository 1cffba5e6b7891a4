from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parivox.audio import write_audio
from parivox.data import filters
from parivox.data.distort import EFFECTS, Distorter
from parivox.data.index import ClipPool
from parivox.data.rooms import convolve, load_room, reverb
from tests.data_folder import RATE, room

SAMPLES = 4410


def signal_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * rng.uniform(80, 4000) * np.arange(SAMPLES) / RATE)
    return (rng.uniform(1e-4, 3) * (tone + 0.1 * rng.standard_normal(SAMPLES))).astype(np.float32)


def gain_at(section: np.ndarray, freq: float) -> float:
    """Gain of a filter in dB, from its response to one sample."""
    impulse = np.zeros(RATE)
    impulse[0] = 1
    response = np.fft.rfft(filters.apply(section, impulse))
    return float(20 * np.log10(np.abs(response[round(freq)]) + 1e-12))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory) -> ClipPool:
    folder = tmp_path_factory.mktemp("rir")
    return ClipPool("rir_dir", tuple(room(folder / f"{k}.npy", 0.02 + 0.1 * k) for k in range(3)))


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.__name__)
@given(seed=st.integers(0, 2**32 - 1))
def test_each_effect_is_finite_bounded_deterministic_and_does_something(rooms, effect, seed):
    wav = signal_of(seed).astype(np.float64)
    wav /= np.abs(wav).max()
    one, two = (effect(Distorter(RATE, rooms), wav, np.random.default_rng(seed), {}) for _ in range(2))
    assert one.shape == wav.shape and np.isfinite(one).all() and np.abs(one).max() < 1e3
    assert np.array_equal(one, two) and not np.array_equal(one, wav)


@given(seed=st.integers(0, 2**32 - 1))
def test_distorter_keeps_length_dtype_and_scale(rooms, seed):
    wav = signal_of(seed)
    before = wav.copy()
    out = Distorter(RATE, rooms)(wav, np.random.default_rng(seed), {})
    assert out.shape == wav.shape and out.dtype == np.float32 and np.isfinite(out).all()
    assert np.abs(out).max() <= max(1, np.abs(wav).max())
    assert np.array_equal(wav, before)


def test_subsets_and_orders_vary(rooms):
    wav, distort = signal_of(0), Distorter(RATE, rooms)
    made = [distort(wav, np.random.default_rng(seed), {}) for seed in range(200)]
    untouched = sum(np.array_equal(one, wav) for one in made)
    # Each effect is left out with probability 1/2: about 200 / 64 signals keep their form.
    assert 0 <= untouched <= 20
    assert len({one.tobytes() for one in made}) > 180


def test_silence_stays_silence(rooms):
    for seed in range(50):
        silence = np.zeros(SAMPLES, np.float32)
        assert not Distorter(RATE, rooms)(silence, np.random.default_rng(seed), {}).any()


def test_validation_uses_one_room_and_one_reverb(rooms):
    wav = signal_of(1).astype(np.float64)
    fixed, free = Distorter(RATE, rooms, fixed=True), Distorter(RATE, rooms)
    for name in ("room", "reverb"):
        same = [getattr(fixed, name)(wav, np.random.default_rng(k), {}) for k in range(6)]
        other = [getattr(free, name)(wav, np.random.default_rng(k), {}) for k in range(6)]
        assert all(np.array_equal(same[0], one) for one in same)
        assert len({one.tobytes() for one in other}) > 1


def test_a_room_that_does_not_decode_gives_way(tmp_path, rooms):
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"no")
    skips: dict[str, str] = {}
    pool = ClipPool("rir_dir", (bad, *rooms.files))
    out = Distorter(RATE, pool, fixed=True).room(
        signal_of(2).astype(np.float64), np.random.default_rng(0), skips
    )
    assert np.isfinite(out).all() and list(skips) == [str(bad)]


def test_peaking_eq_raises_its_frequency_alone():
    for gain in (-30.0, 12.0, 30.0):
        section = filters.peaking(1000.0, 2.0, gain, RATE)
        assert gain_at(section, 1000.0) == pytest.approx(gain, abs=0.01)
        assert gain_at(section, 0) == pytest.approx(0, abs=0.01)
        assert gain_at(section, 20_000) == pytest.approx(0, abs=0.3)


def test_low_and_band_pass():
    low = filters.low_pass(2000.0, 0.5**0.5, RATE)
    assert gain_at(low, 0) == pytest.approx(0, abs=0.01)
    assert gain_at(low, 2000) == pytest.approx(-3.01, abs=0.02)
    assert gain_at(low, 16_000) < -36
    band = filters.band_pass(1500.0, 1.0, RATE)
    assert gain_at(band, 1500) == pytest.approx(0, abs=0.01)
    # Bandwidth between the -3 dB points is freq / Q.
    edges = [1500 * (np.sqrt(1 + 0.25) + sign * 0.5) for sign in (-1, 1)]
    assert all(gain_at(band, edge) == pytest.approx(-3.01, abs=0.3) for edge in edges)
    assert gain_at(band, 20) < -30


def test_overdrive_follows_its_recurrence():
    wav = signal_of(3).astype(np.float64)[:300]
    wav /= np.abs(wav).max()
    gain, colour = 10 ** (18 / 20), 40 / 200
    expected, last_in, last_out = [], 0.0, 0.0
    for x in wav:
        driven = gain * x + colour
        bent = -2 / 3 if driven < -1 else 2 / 3 if driven > 1 else driven - driven**3 / 3
        last_out = bent - last_in + 0.995 * last_out
        last_in = bent
        expected.append(min(1.0, max(-1.0, 0.5 * x + 0.75 * last_out)))
    np.testing.assert_allclose(filters.overdrive(wav, 18.0, 40.0), expected, atol=1e-12)


def test_reverb_decays_by_60_db_in_its_time():
    impulse = np.zeros(RATE)
    impulse[0] = 1.0
    out = reverb(impulse, np.random.default_rng(0), RATE, 0.5, 0.4, 0.01)
    assert out[0] == pytest.approx(1) and np.abs(out[1:400]).max() < 1e-12
    windows = [np.square(out[round(s * RATE) : round((s + 0.05) * RATE)]).mean() for s in (0.02, 0.42)]
    assert 10 * np.log10(windows[0] / windows[1]) == pytest.approx(60 * 0.4 / 0.5, abs=1.5)


def test_rooms_start_with_the_direct_sound_at_any_rate(tmp_path, rooms):
    response = load_room(rooms.files[0], RATE)
    assert response.argmax() == 0 and np.square(response).sum() == pytest.approx(1)
    wav = np.zeros((2, 800), np.float32)
    wav[0, 100], wav[0, 300], wav[1] = -0.9, 0.3, 0.5
    write_audio(tmp_path / "slow.wav", wav, 22_050)
    response = load_room(tmp_path / "slow.wav", RATE)
    assert response.argmax() == 0 and response[0] > 0, "an inverted microphone is turned round"
    assert np.abs(response[395:405]).argmax() in range(4, 7), "200 samples at half the rate are 400"


def test_convolution_keeps_the_length():
    wav, response = signal_of(4).astype(np.float64), np.random.default_rng(0).standard_normal(9000)
    np.testing.assert_allclose(convolve(wav, response), np.convolve(wav, response)[:SAMPLES], atol=1e-9)
