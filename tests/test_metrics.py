"""Metrics: known values, invariances, silence."""

from __future__ import annotations

import numpy as np
import pytest

from parivox.metrics import LSD_FRAME, LSD_HOP, energy_ratio, log_spectral_distance, si_sdr, si_sdr_gain


def orthogonal(seed: int, length: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Two zero-mean signals of equal energy with inner product 0 (to rounding)."""
    rng = np.random.default_rng(seed)
    a, b = (x - x.mean() for x in rng.standard_normal((2, length)))
    b -= a * (a @ b) / (a @ a)
    return a, b * np.sqrt((a @ a) / (b @ b))


@pytest.mark.parametrize("db", [-20.0, 0.0, 3.0, 35.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, -7.0])
def test_known_ratio_whatever_the_scale_and_offset(db, scale):
    target, noise = orthogonal(1)
    estimate = scale * (target + 10 ** (-db / 20) * noise) + 0.3 * scale
    np.testing.assert_allclose(si_sdr(estimate, 5 * target - 2), db, atol=1e-6)


def test_batches_row_by_row_in_float64():
    rng = np.random.default_rng(2)
    target = rng.standard_normal((2, 3, 500)).astype(np.float32)
    estimate = target + 0.1 * rng.standard_normal((2, 3, 500)).astype(np.float32)
    out = si_sdr(estimate, target)
    assert (out.shape, out.dtype) == ((2, 3), np.float64)
    each = [[float(si_sdr(estimate[i, j], target[i, j])) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(out, each, rtol=1e-12)


def test_gain_is_the_difference():
    target, noise = orthogonal(3)
    gain = si_sdr_gain(target + 0.1 * noise, target + noise, target)
    np.testing.assert_allclose(gain, 20.0, atol=1e-6)


def test_silence_is_minus_infinity_and_a_silent_target_undefined():
    target, _ = orthogonal(4)
    silence = np.zeros_like(target)
    assert si_sdr(silence, target) == -np.inf
    assert np.isnan(si_sdr(target, silence))
    assert si_sdr(np.array([1.0, -1.0]), np.array([1.0, -1.0])) == np.inf


def test_energy_ratio():
    x = np.ones((2, 100), np.float32)
    np.testing.assert_allclose(energy_ratio(0.5 * x, x), [0.25, 0.25])
    assert energy_ratio(np.zeros(10), np.ones(10)) == 0
    assert energy_ratio(np.zeros(10), np.zeros(10)) == 0
    assert energy_ratio(np.ones(10), np.zeros(10)) > 1e300


@pytest.mark.parametrize("db", [-12.0, 0.0, 6.0])
def test_a_gain_is_its_own_spectral_distance(db):
    noise = np.random.default_rng(5).standard_normal((2, 3, 8000))
    found = log_spectral_distance(10 ** (db / 20) * noise, noise)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found, abs(db), atol=1e-9)


def test_spectral_distance_is_a_mean_over_frames_of_roots_over_bins():
    noise = np.random.default_rng(7).standard_normal(LSD_FRAME + 3 * LSD_HOP)
    louder = noise * np.linspace(1, 4, noise.size)
    parts = [slice(k * LSD_HOP, k * LSD_HOP + LSD_FRAME) for k in range(4)]
    singly = [float(log_spectral_distance(louder[part], noise[part])) for part in parts]
    assert len({round(value, 3) for value in singly}) == 4
    assert float(log_spectral_distance(louder, noise)) == pytest.approx(np.mean(singly))
    # A Hann window spreads a tone over three bins; all others are at the floor of both.
    tone = np.sin(2 * np.pi * 64 / LSD_FRAME * np.arange(LSD_FRAME))
    assert float(log_spectral_distance(10**0.5 * tone, tone)) == pytest.approx(
        10 * np.sqrt(3 / (LSD_FRAME // 2 + 1))
    )


def test_spectral_distance_of_silence():
    noise = np.random.default_rng(6).standard_normal(4096)
    silence = np.zeros_like(noise)
    assert 40 < log_spectral_distance(silence, noise) <= 80
    assert np.isnan(log_spectral_distance(noise, silence)) and np.isnan(
        log_spectral_distance(silence, silence)
    )
