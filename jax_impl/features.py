"""STFT, inverse STFT and mel spectrogram in JAX; the twin of `torch_impl.features`.

Plain functions of arrays, in the dtype of their input. `parivox.features` holds the numbers and the
float64 oracle they are compared with.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jax_impl.ends import ends, padded
from parivox.features import NORMALIZE_EPS, SAMPLE_RATE, MelSpec, StftSpec, hann_window, mel_filter_bank

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
    half = spec.n_fft // 2
    if spec.pad_mode == "reflect" and x.shape[-1] <= half:
        raise ValueError(f"reflect padding needs more than {half} samples, got {x.shape[-1]}")
    wide = padded(x[..., None], half, half, spec.pad_mode)[..., 0]
    table = hann_window(spec.n_fft) if window is None else window
    return spectra(frame(wide, spec.n_fft, spec.hop), table).swapaxes(1, 2)


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
    magnitude = jnp.abs(stft(x, spec.stft, tables.window if tables else None))
    bank = tables.bank if tables else mel_filter_bank(SAMPLE_RATE, spec.stft.n_fft, spec.num_mels)
    floor = tables.magnitude_min if tables else spec.magnitude_min
    mel = jnp.einsum(
        "bfn,fm->bmn", magnitude, jnp.asarray(bank, x.dtype), precision=jax.lax.Precision.HIGHEST
    )
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
        with jax.enable_x64(True):
            return plain(frames.astype(jnp.float64)).astype(jnp.complex64)

    def back(_: None, g: Array) -> tuple[Array]:
        # Left to itself, JAX would trace this part outside of the double precision above, and fail.
        with jax.enable_x64(True):
            adjoint = jax.linear_transpose(plain, jax.ShapeDtypeStruct(frames.shape, jnp.float64))
            return (adjoint(g.astype(jnp.complex128))[0].astype(jnp.float32),)

    double.defvjp(lambda frames: (double(frames), None), back)
    if frames.dtype == jnp.float64:
        return plain(frames)
    return jax.lax.platform_dependent(frames, cpu=double, default=plain)
