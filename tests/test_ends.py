"""Rows of several lengths, filled up and computed as one, become what each becomes alone: no padding leaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from parity_tests import seeded, tolerances
from parity_tests.rungs_signal import distance
from parivox.backend import Backend, get_backend, installed
from parivox.enhancer_tables import FRAME, TAIL, VOCODER_NOISE, vocoder_reach
from parivox.hparams import DenoiserHParams
from parivox.weights import initial_denoiser
from tests.tiny_model import NARROW, enhancer_weights

BOUND = tolerances.bound("outputs", "float64")
LENGTHS = (841, 9 * FRAME - 1, 9 * FRAME, 33 * FRAME + 17, 40 * FRAME)
"""The shortest there is; either side of a whole frame; more than the UNet's 16 or 32 frames; the whole array."""

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason=f"{name} is not installed"))
    for name in ("jax", "torch")
]


def rows(lengths: tuple[int, ...], total: int) -> np.ndarray:
    """Sounds, and behind the end of each what must not be heard."""
    wav = seeded.signal(5, len(lengths), total).astype(np.float64)
    for row, length in zip(wav, lengths, strict=True):
        row[length:] = 1e3
    return wav


def denoised(backend: Backend, lengths: tuple[int, ...], total: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """All rows together, and each alone."""
    model = backend.load_denoiser(DenoiserHParams(unet_hidden_dim=1), initial_denoiser(3, 1, "published"))
    wav = rows(lengths, total)
    alone = [backend.denoise(model, row[None, :n])[0] for row, n in zip(wav, lengths, strict=True)]
    return backend.denoise(model, wav, np.array(lengths)), alone


def enhanced(backend: Backend, lengths: tuple[int, ...], total: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """All rows together, and each alone."""
    hp, frames, count = NARROW, total // FRAME, len(lengths)
    model = backend.load_enhancer(hp, enhancer_weights(hp))
    wav = rows(lengths, total)
    prior = seeded.noise(5, "prior", (count, hp.lcfm_latent_dim, frames))
    noise = seeded.noise(5, "noise", (count, VOCODER_NOISE, frames + TAIL))
    tau, blend = np.linspace(0.2, 1, count), np.linspace(1, 0.3, count)
    alone = []
    for k, n in enumerate(lengths):
        m, one = n // FRAME, slice(k, k + 1)
        draws = prior[one, :, :m], noise[one, :, : m + TAIL], tau[one], blend[one]
        alone.append(backend.enhance(model, wav[one, :n], *draws, "midpoint", 2)[0])
    draws = prior, noise, tau, blend
    return backend.enhance(model, wav, *draws, "midpoint", 2, np.array(lengths)), alone


def worst(together: np.ndarray, alone: list[np.ndarray]) -> float:
    return max(distance(row[: len(own)], own) for row, own in zip(together, alone, strict=True))


@pytest.mark.parametrize("name", BACKENDS)
def test_no_padding_leaks_into_a_denoised_row(name):
    backend = get_backend(name, device="cpu", dtype="float64")
    lengths = LENGTHS if name == "torch" else LENGTHS[3:4]  # every length alone is a program for JAX
    assert worst(*denoised(backend, lengths, LENGTHS[-1])) <= BOUND


@contextmanager
def tiles_of(frames: int) -> Iterator[None]:
    with patch("jax_impl.weights.TILE", frames), patch("torch_impl.weights.TILE", frames):
        yield


@pytest.mark.skipif(not installed("torch"), reason="torch is not installed")
def test_no_padding_leaks_into_an_enhanced_row():
    backend, lengths = get_backend("torch", device="cpu", dtype="float64"), LENGTHS
    with tiles_of(1000):
        assert worst(*enhanced(backend, lengths, LENGTHS[-1])) <= BOUND


@pytest.mark.slow
@pytest.mark.skipif(not installed("jax"), reason="jax is not installed")
@pytest.mark.parametrize("task", [denoised, enhanced])
def test_no_padding_leaks_into_rows_of_any_length_in_jax(task):
    backend = get_backend("jax", device="cpu", dtype="float64")
    with tiles_of(1000):
        assert worst(*task(backend, LENGTHS, LENGTHS[-1])) <= BOUND


@pytest.mark.parametrize("name", [BACKENDS[1], pytest.param(*BACKENDS[0].values, marks=pytest.mark.slow)])
def test_tiles_end_where_each_row_ends(name):
    """Rows within one window, a little longer than one, of two windows, and of all there are."""
    backend, window = get_backend(name, device="cpu", dtype="float64"), 6 + 2 * vocoder_reach()
    frames = [n - TAIL for n in (TAIL + 2, window - 1, window, window + 1, window + 7, window + 20)]
    with tiles_of(6):
        assert (
            worst(*enhanced(backend, tuple(n * FRAME + 5 for n in frames[:-1]), frames[-1] * FRAME)) <= BOUND
        )


LEAKS: dict[str, tuple[str, Any]] = {
    "zeros beyond a row": ("kept", lambda x: x),
    "what a norm counts": ("layers.ends", lambda width: None),
    "the reflected end": ("features.padded", None),
}


@pytest.mark.parametrize("what", LEAKS)
def test_a_planted_leak_is_found(what):
    pytest.importorskip("torch")
    import torch.nn.functional as F

    place, fault = LEAKS[what]
    module = {"kept": "model.layers.kept", "layers.ends": "model.layers.ends"}.get(place, place)
    fault = fault or (lambda x, left, right, mode="constant": F.pad(x, (left, right), mode=mode))
    backend = get_backend("torch", device="cpu", dtype="float64")
    with patch(f"torch_impl.{module}", fault):
        assert worst(*denoised(backend, LENGTHS[1:4], LENGTHS[-1])) > 1e3 * BOUND
