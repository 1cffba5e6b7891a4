"""The spectrograms as a CPU computes them, block by block, against the obvious forms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest

from parity_tests import seeded, tolerances
from parity_tests.rungs_signal import peak_error
from parivox.features import (
    DENOISER_STFT,
    MelSpec,
    StftSpec,
    hann_window,
    mel_bands,
    mel_filter_bank,
    mel_oracle,
    stft_oracle,
)

SHAPES = [(1, 1025), (3, 1681), (2, 30_001), (1, 96 * 420 - 1), (2, 97 * 420)]
"""One frame more than the reflection takes; a few; odd lengths; on both sides of whole blocks."""

SPECS = [DENOISER_STFT, MelSpec().stft, StftSpec(400, 150, "reflect")]


class Side(NamedTuple):
    """One backend, from and to NumPy."""

    stft: Callable[..., np.ndarray]
    """(x, spec) -> (b, f, n)."""
    mel: Callable[..., np.ndarray]
    """(x, a window, a bank and a floor or None) -> (b, m, n)."""
    pulled: Callable[..., tuple[np.ndarray, np.ndarray]]
    """(x, weights of an STFT (b, f, n), of a mel spectrogram (b, m, n)): gradients of the weighted sums."""
    plain: Callable[..., tuple[np.ndarray, np.ndarray]]
    """The same of the obvious forms."""


def torch_side(dtype: str, monkeypatch: pytest.MonkeyPatch, block: int | None) -> Side:
    torch = pytest.importorskip("torch")
    from torch_impl import features

    if block:
        monkeypatch.setattr(features, "BLOCK", block)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

    def tensor(x: np.ndarray) -> Any:
        return torch.from_numpy(np.array(x, dtype))

    def mel(x: np.ndarray, tables: tuple | None = None) -> np.ndarray:
        given = features.MelTables(*map(tensor, tables)) if tables else None
        return features.mel_spectrogram(tensor(x), MelSpec(), given).numpy()

    def plain_stft(x: Any, spec: StftSpec) -> Any:
        window = tensor(hann_window(spec.n_fft))
        return torch.stft(x, spec.n_fft, spec.hop, window=window, pad_mode=spec.pad_mode, return_complex=True)

    def plain_mel(x: Any) -> Any:
        x = x - 0.97 * torch.nn.functional.pad(x, (1, 0))[:, :-1]
        magnitude = plain_stft(x, MelSpec().stft).abs()
        mel = torch.einsum("bfn,fm->bmn", magnitude, tensor(mel_filter_bank()))
        return (20 * torch.log10(mel.clamp(min=1e-4)) + 80) / 95

    def gradients(stft: Callable, mel: Callable) -> Callable:
        def pulled(x: np.ndarray, z: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            found = []
            for of, weight in ((lambda x: torch.view_as_real(stft(x, DENOISER_STFT)), z), (mel, m)):
                wanted = tensor(x).requires_grad_()
                (of(wanted) * tensor(weight)).sum().backward()
                found.append(wanted.grad.numpy())
            return found[0], found[1]

        return pulled

    return Side(
        lambda x, spec: features.stft(tensor(x), spec).numpy(),
        mel,
        gradients(features.stft, features.mel_spectrogram),
        gradients(plain_stft, plain_mel),
    )


def jax_side(dtype: str, monkeypatch: pytest.MonkeyPatch, block: int | None) -> Side:
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    from jax_impl import features

    if block:
        monkeypatch.setattr(features, "BLOCK", block)

    def compiled(of: Callable) -> Callable[..., Any]:
        def call(*arrays: np.ndarray) -> Any:
            with jax.enable_x64(True) if dtype == "float64" else nullcontext():
                return jax.tree.map(np.asarray, jax.jit(of)(*(jnp.asarray(a, dtype) for a in arrays)))

        return call

    def mel(x: np.ndarray, tables: tuple | None = None) -> np.ndarray:
        def of(x: Any, *given: Any) -> Any:
            return features.mel_spectrogram(x, MelSpec(), features.MelTables(*given) if given else None)

        return compiled(of)(x, *(tables or ()))

    def plain_stft(x: Any, spec: StftSpec) -> Any:
        half = spec.n_fft // 2
        wide = jnp.pad(x, ((0, 0), (half, half)), mode=spec.pad_mode)
        place = spec.hop * np.arange(1 + x.shape[1] // spec.hop)[:, None] + np.arange(spec.n_fft)
        return jnp.fft.rfft(wide[:, place] * jnp.asarray(hann_window(spec.n_fft), x.dtype)).swapaxes(1, 2)

    def plain_mel(x: Any) -> Any:
        x = x - 0.97 * jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]
        bank = jnp.asarray(mel_filter_bank(), x.dtype)
        mel = jnp.einsum("bfn,fm->bmn", jnp.abs(plain_stft(x, MelSpec().stft)), bank)
        return (20 * jnp.log10(jnp.maximum(mel, 1e-4)) + 80) / 95

    def gradients(stft: Callable, mel: Callable) -> Callable:
        def real(x: Any) -> Any:
            z = stft(x, DENOISER_STFT)
            return jnp.stack([z.real, z.imag], axis=-1)

        def pulled(x: Any, z: Any, m: Any) -> Any:
            return jax.grad(lambda x: (real(x) * z).sum())(x), jax.grad(lambda x: (mel(x) * m).sum())(x)

        return compiled(pulled)

    return Side(
        lambda x, spec: compiled(lambda x: features.stft(x, spec))(x),
        mel,
        gradients(features.stft, features.mel_spectrogram),
        gradients(plain_stft, plain_mel),
    )


BACKENDS = pytest.mark.parametrize("make", [torch_side, jax_side])


@pytest.mark.parametrize(("n_fft", "bands", "together"), [(2048, 128, 16), (2048, 128, 7), (512, 256, 1)])
def test_bands_are_the_filter_bank(n_fft, bands, together):
    """256 bands of 257 bins: the lowest touch no bin at all."""
    bank = mel_filter_bank(44_100, n_fft, bands)
    pieces, found = mel_bands(44_100, n_fft, bands, together), np.zeros_like(bank)
    for k, (bins, columns) in enumerate(pieces):
        found[bins, k * together : (k + 1) * together] = columns
    assert (found == bank).all() and (bank.any(axis=0).all() or bands == 256)
    assert sum(columns.size for _, columns in pieces) < bank.size / 6


@BACKENDS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_are_those_of_the_oracle(make, shape, dtype, monkeypatch):
    bound, x = tolerances.bound("features peak", dtype), seeded.signal(shape[1], *shape)
    side = make(dtype, monkeypatch, None)
    for spec in SPECS:
        assert peak_error(side.stft(x, spec), stft_oracle(x, spec)) <= bound
    assert peak_error(side.mel(x), mel_oracle(x)) <= bound


@BACKENDS
@pytest.mark.parametrize("block", [1, 5, 7])
def test_blocks_of_any_size_give_the_same(make, block, monkeypatch):
    """22 frames: blocks that divide them and blocks that do not."""
    x, bound = seeded.signal(3, 2, 21 * 420 + 13), tolerances.bound("features peak", "float64")
    side = make("float64", monkeypatch, block)
    assert peak_error(side.stft(x, DENOISER_STFT), stft_oracle(x, DENOISER_STFT)) <= bound
    assert peak_error(side.mel(x), mel_oracle(x)) <= bound


@BACKENDS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stored_tables_are_used_whatever_they_hold(make, dtype, monkeypatch):
    """Another window, and a bank without a zero: nothing may be taken for granted of a checkpoint's."""
    draw = np.random.default_rng(0)
    window, bank, floor = draw.uniform(0.1, 1, 2048), draw.uniform(0.01, 1, (1025, 128)), np.array(2e-3)
    x = seeded.signal(4, 2, 10_000).astype(np.float64)
    wide = np.pad(x - 0.97 * np.pad(x, ((0, 0), (1, 0)))[:, :-1], ((0, 0), (1024, 1024)))
    frames = wide[:, 420 * np.arange(24)[:, None] + np.arange(2048)] * window
    plain = np.einsum("bnf,fm->bmn", np.abs(np.fft.rfft(frames)), bank)
    plain = (20 * np.log10(np.maximum(plain, floor)) + 80) / 95
    found = make(dtype, monkeypatch, None).mel(x, (window, bank, floor))
    assert peak_error(found, plain) <= tolerances.bound("features peak", dtype)


@BACKENDS
def test_silence_and_extremes_meet_the_floor(make, monkeypatch):
    side, bound = make("float32", monkeypatch, None), tolerances.bound("features peak", "float32")
    for scale in (0.0, 1e-38, 1e-25, 1e-20):
        x = scale * seeded.signal(3, 1, 5000)
        assert np.abs(side.mel(x)).max() <= bound and np.isfinite(side.stft(x, DENOISER_STFT)).all()
    loud = 1e12 * seeded.signal(3, 1, 5000)
    assert peak_error(side.mel(loud), mel_oracle(loud)) <= bound


@BACKENDS
@pytest.mark.parametrize("shape", SHAPES[1:3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_those_of_the_obvious_forms(make, shape, dtype, monkeypatch):
    draw, x = np.random.default_rng(1), seeded.signal(5, *shape).astype(np.float64)
    frames = 1 + shape[1] // 420
    z, m = draw.standard_normal((shape[0], 841, frames, 2)), draw.standard_normal((shape[0], 128, frames))
    side = make(dtype, monkeypatch, 7)
    for found, wanted in zip(side.pulled(x, z, m), side.plain(x, z, m), strict=True):
        assert np.isfinite(found).all()
        assert peak_error(found, wanted) <= tolerances.bound("gradients", dtype)


def test_torch_works_block_by_block_only_where_no_gradient_is_wanted():
    torch = pytest.importorskip("torch")
    from torch_impl.features import mel_spectrogram, stft

    x = torch.from_numpy(seeded.signal(7, 1, 5000)).float().requires_grad_()
    assert mel_spectrogram(x).requires_grad and stft(x, DENOISER_STFT).requires_grad
    with torch.inference_mode():
        inside = mel_spectrogram(x)
    bound = tolerances.bound("features peak", "float32")
    assert peak_error(inside.numpy(), mel_spectrogram(x).detach().numpy()) <= bound
