"""STFT, inverse STFT and mel spectrogram in JAX; the twin of `torch_impl.features`.

Plain functions of arrays, in the dtype of their input. `parivox.features` holds the numbers and the
float64 oracle they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jax_impl.ends import ends, padded
from parivox.features import (
    NORMALIZE_EPS,
    SAMPLE_RATE,
    MelSpec,
    StftSpec,
    hann_window,
    mel_bands,
    mel_filter_bank,
)

__all__ = [
    "MelTables",
    "frame",
    "istft",
    "magnitude_phase",
    "mel_spectrogram",
    "overlap_add",
    "peak_normalize",
    "spectra",
    "stft",
]

BLOCK = 48
"""Frames that a CPU transforms at once: what one operation hands to the next then stays in its cache."""


class MelTables(NamedTuple):
    """Tables of a mel spectrogram as a checkpoint stores them, instead of the computed ones.

    Attributes:
        window: of the STFT.
        bank: filters (f, m).
        magnitude_min: floor below the logarithm.
    """

    window: Float[Array, " size"]
    bank: Float[Array, "f m"]
    magnitude_min: Float[Array, ""]


def frame(x: Float[Array, "b t"], size: int, hop: int) -> Float[Array, "b n size"]:
    """Overlapping frames of `size` samples every `hop`; n = 1 + (t - size) // hop.

    Built from shifted views of whole hops and not by a gather, which accelerators do badly.
    """
    count = 1 + (x.shape[-1] - size) // hop
    pieces = -(-size // hop)
    length = (count + pieces - 1) * hop
    x = jnp.pad(x, ((0, 0), (0, max(0, length - x.shape[-1]))))[:, :length]
    blocks = x.reshape(x.shape[0], -1, hop)
    return jnp.concatenate([blocks[:, i : i + count] for i in range(pieces)], axis=-1)[..., :size]


def overlap_add(frames: Float[Array, "b n size"], hop: int) -> Float[Array, "b t"]:
    """Sum of frames laid every `hop` samples; t = (n - 1) * hop + size. The adjoint of `frame`."""
    b, count, size = frames.shape
    pieces = -(-size // hop)
    blocks = jnp.pad(frames, ((0, 0), (0, 0), (0, pieces * hop - size))).reshape(b, count, pieces, hop)
    total = jnp.zeros((b, count + pieces - 1, hop), frames.dtype)
    for i in range(pieces):
        total = total + jnp.pad(blocks[:, :, i], ((0, 0), (i, pieces - 1 - i), (0, 0)))
    return total.reshape(b, -1)[:, : (count - 1) * hop + size]


def stft(
    x: Float[Array, "b t"], spec: StftSpec, window: Float[Array, " size"] | None = None
) -> Complex[Array, "b f n"]:
    """Centred STFT with a periodic Hann window or another: f = n_fft // 2 + 1 bins, n = 1 + t // hop frames.

    `jax.scipy.signal.stft` scales and pads differently, so it is not used.

    Raises:
        ValueError: reflect padding needs more than n_fft // 2 samples.
    """
    wide = _centred(x, spec)
    table = hann_window(spec.n_fft) if window is None else window

    def whole(wide: Array) -> Array:
        return spectra(frame(wide, spec.n_fft, spec.hop), table).swapaxes(1, 2)

    def blocks(wide: Array) -> Array:
        return _by_blocks(lambda part: _double(part, table).swapaxes(0, 1), wide, spec)

    return _blocks_on_cpu(blocks, whole, wide)


def istft(z: Complex[Array, "b f n"], spec: StftSpec) -> Float[Array, "b t"]:
    """Inverse of `stft` by weighted overlap-add (Griffin and Lim, 1984); t = hop * (n - 1) samples.

    The last frame stands at a row's end; what comes out beyond it means nothing.
    """
    frames = jnp.fft.irfft(z.swapaxes(1, 2), n=spec.n_fft)
    window = jnp.asarray(hann_window(spec.n_fft), frames.dtype)
    count = frames.shape[1]
    squares = jnp.broadcast_to(window**2, (1, count, spec.n_fft))
    if (last := ends(count - 1)) is not None:
        there = (jnp.arange(count) <= last[:, None])[..., None]
        frames, squares = jnp.where(there, frames, 0), jnp.where(there, squares, 0)
    keep = slice(spec.n_fft // 2, spec.n_fft // 2 + spec.hop * (count - 1))
    weight = overlap_add(squares, spec.hop)[:, keep]
    return overlap_add(frames * window, spec.hop)[:, keep] / jnp.where(weight > 0, weight, 1)


def magnitude_phase(
    z: Complex[Array, "b f n"],
) -> tuple[Float[Array, "b f n"], Float[Array, "b f n"], Float[Array, "b f n"]]:
    """Magnitude, cosine and sine of the phase; the phase is 0 where the bin is 0."""
    magnitude = jnp.abs(z)
    empty = magnitude == 0
    divisor = jnp.where(empty, 1, magnitude)
    return magnitude, jnp.where(empty, 1, z.real / divisor), jnp.where(empty, 0, z.imag / divisor)


def mel_spectrogram(
    x: Float[Array, "b t"],
    spec: MelSpec = MelSpec(),  # noqa: B008 (frozen)
    tables: MelTables | None = None,
) -> Float[Array, "b m n"]:
    """Normalised log-mel spectrogram, all n = 1 + t // hop frames (the models drop the last)."""
    x = x - spec.preemphasis * jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]
    wide = _centred(x, spec.stft)
    window = tables.window if tables else hann_window(spec.stft.n_fft)
    bank = tables.bank if tables else mel_filter_bank(SAMPLE_RATE, spec.stft.n_fft, spec.num_mels)
    floor = tables.magnitude_min if tables else spec.magnitude_min

    def bands(magnitude: Array, bank: Array | np.ndarray) -> Array:
        bank = jnp.asarray(bank, magnitude.dtype)
        return jnp.einsum("...nf,fm->...mn", magnitude, bank, precision=jax.lax.Precision.HIGHEST)

    def whole(wide: Array) -> Array:
        return bands(jnp.abs(spectra(frame(wide, spec.stft.n_fft, spec.stft.hop), window)), bank)

    def block(part: Array) -> Array:
        z = _double(part, window)
        magnitude = jnp.sqrt(z.real**2 + z.imag**2)
        if tables:
            return bands(magnitude, bank)
        pieces = mel_bands(SAMPLE_RATE, spec.stft.n_fft, spec.num_mels)
        return jnp.concatenate([bands(magnitude[:, bins], columns) for bins, columns in pieces])

    mel = _blocks_on_cpu(lambda wide: _by_blocks(block, wide, spec.stft), whole, wide)
    decibel = 20 * jnp.log10(jnp.maximum(mel, floor))
    return (decibel - spec.min_db) / (spec.headroom_db - spec.min_db)


def peak_normalize(x: Float[Array, "*b t"]) -> Float[Array, "*b t"]:
    """x / (max|x| + 1e-7), each item on its own."""
    return x / (jnp.abs(x).max(axis=-1, keepdims=True) + NORMALIZE_EPS)


def spectra(
    frames: Float[Array, "b n size"], window: Float[np.ndarray, " size"] | Float[Array, " size"]
) -> Complex[Array, "b n f"]:
    """Window and transform. On a CPU float32 frames are transformed in double precision and rounded once.

    A float32 transform leaves 1e-7 of the frame's peak in every bin. Bins far below the peak, such as all those
    above the band of a recording of a lower rate, then have a phase of their own in every library, and the
    network hears it. Accelerators keep float32: their double precision is slow or missing.
    """

    def plain(frames: Array) -> Array:
        return jnp.fft.rfft(frames * jnp.asarray(window, frames.dtype))

    @jax.custom_vjp
    def double(frames: Array) -> Array:
        return _double(frames, window)

    def back(_: None, g: Array) -> tuple[Array]:
        # Left to itself, JAX would trace this part outside of the double precision above, and fail.
        with jax.enable_x64(True):
            adjoint = jax.linear_transpose(plain, jax.ShapeDtypeStruct(frames.shape, jnp.float64))
            return (adjoint(g.astype(jnp.complex128))[0].astype(jnp.float32),)

    double.defvjp(lambda frames: (double(frames), None), back)
    if frames.dtype == jnp.float64:
        return plain(frames)
    return jax.lax.platform_dependent(frames, cpu=double, default=plain)


def _double(frames: Array, window: np.ndarray | Array) -> Array:
    """Window and transform in double precision, rounded once to the precision of the frames."""
    narrow = jnp.complex128 if frames.dtype == jnp.float64 else jnp.complex64
    with jax.enable_x64(True):
        return jnp.fft.rfft(frames.astype(jnp.float64) * jnp.asarray(window, jnp.float64)).astype(narrow)


def _centred(x: Array, spec: StftSpec) -> Array:
    """x with what lies beyond its ends, so that the first of all frames stands around the first sample."""
    half = spec.n_fft // 2
    if spec.pad_mode == "reflect" and x.shape[-1] <= half:
        raise ValueError(f"reflect padding needs more than {half} samples, got {x.shape[-1]}")
    return padded(x[..., None], half, half, spec.pad_mode)[..., 0]


def _blocks_on_cpu(blocks: Callable[[Array], Array], whole: Callable[[Array], Array], x: Array) -> Array:
    """`whole(x)`; on a CPU by `blocks`, unless a gradient is wanted or the sizes are symbols of an export."""
    if not all(isinstance(size, int) for size in x.shape):
        return whole(x)

    @jax.custom_vjp
    def either(x: Array) -> Array:
        return jax.lax.platform_dependent(x, cpu=blocks, default=whole)

    either.defvjp(lambda x: jax.vjp(whole, x), lambda pull, g: pull(g))
    return either(x)


def _by_blocks(work: Callable[[Array], Array], x: Array, spec: StftSpec) -> Array:
    """(b, k, n): what `work` makes of a few frames (m, n_fft) of one row, (k, m), for all of them."""
    count = 1 + (x.shape[1] - spec.n_fft) // spec.hop
    pieces = -(-count // BLOCK)
    block = -(-count // pieces)
    like = jax.eval_shape(work, jax.ShapeDtypeStruct((block, spec.n_fft), x.dtype))

    def fill(i: Array, out: Array) -> Array:
        # The last block of a row begins early enough to be whole, and computes some frames again.
        row, first = i // pieces, jnp.minimum(i % pieces * block, count - block)
        part = jax.lax.dynamic_slice(x, (row, first * spec.hop), (1, (block - 1) * spec.hop + spec.n_fft))
        part = work(frame(part, spec.n_fft, spec.hop)[0])
        return jax.lax.dynamic_update_slice(out, part[None], (row, 0, first))

    out = jnp.zeros((x.shape[0], like.shape[0], count), like.dtype)
    return jax.lax.fori_loop(0, x.shape[0] * pieces, fill, out)
