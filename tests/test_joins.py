"""Where chunks meet nothing is heard: a tone through a denoiser has no click there."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.signal import butter, sosfiltfilt

from parivox.backend import get_backend, installed
from parivox.enhance import chunk_sizes, clean
from parivox.hparams import DenoiserHParams
from parivox.weights import initial_denoiser

RATE, SECONDS, CHUNK, OVERLAP = 44_100, 5.0, 1.5, 0.25
HIDDEN = 4
STEP_16 = 2.0**-15
"""A step of 16-bit audio, which nobody hears."""


def tone(frequency: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(SECONDS * RATE)) / RATE)[None].astype(
        np.float32
    )


def loudest_above(out: np.ndarray, frequency: float, overlap: float) -> float:
    """The largest value above a frequency, around the places where neighbouring chunks share samples."""
    high = sosfiltfilt(butter(6, frequency, "high", fs=RATE, output="sos"), out[0].astype(np.float64))
    hop, shared = chunk_sizes(CHUNK, overlap)
    starts = range(hop, out.shape[1] - shared - 882, hop)
    assert len(starts) >= 2
    return max(np.abs(high[start - 882 : start + shared + 882]).max() for start in starts)


@pytest.fixture(scope="module", params=["torch", pytest.param("jax", marks=pytest.mark.slow)])
def denoise(request):
    if not installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    backend = get_backend(request.param, device="cpu")
    model = backend.load_denoiser(DenoiserHParams(unet_hidden_dim=HIDDEN), initial_denoiser(0, HIDDEN))
    return partial(backend.denoise, model)


@pytest.mark.parametrize("frequency", [110.0, 440.0, 1234.5])
def test_a_tone_through_a_denoiser_has_no_click_where_chunks_meet(denoise, frequency):
    found = {}
    for overlap in (OVERLAP, 0.0):
        out = clean(tone(frequency), RATE, denoise, chunk_seconds=CHUNK, overlap_seconds=overlap)
        assert np.abs(out).max() > 0.1
        found[overlap] = loudest_above(out, 5000.0, overlap)
    assert found[OVERLAP] < STEP_16
    assert found[0.0] > STEP_16  # without a fade the same measure hears a click
