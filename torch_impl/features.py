"""STFT, inverse STFT and mel spectrogram in PyTorch; the twin of `jax_impl.features`.

Plain functions of tensors, in the dtype of their input. `parivox.features` holds the numbers and the
float64 oracle they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

from parivox.features import (
    NORMALIZE_EPS,
    SAMPLE_RATE,
    MelSpec,
    StftSpec,
    hann_window,
    mel_bands,
    mel_filter_bank,
)
from torch_impl.ends import ends, padded

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
"""Frames that a core transforms at once: what one operation hands to the next then stays in its cache."""


class MelTables(NamedTuple):
    """Tables of a mel spectrogram as a checkpoint stores them, instead of the computed ones.

    Attributes:
        window: of the STFT.
        bank: filters (f, m).
        magnitude_min: floor below the logarithm.
    """

    window: Float[Tensor, " size"]
    bank: Float[Tensor, "f m"]
    magnitude_min: Float[Tensor, ""]


def frame(x: Float[Tensor, "b t"], size: int, hop: int) -> Float[Tensor, "b n size"]:
    """Overlapping frames of `size` samples every `hop`; n = 1 + (t - size) // hop."""
    return x.unfold(-1, size, hop)


def overlap_add(frames: Float[Tensor, "b n size"], hop: int) -> Float[Tensor, "b t"]:
    """Sum of frames laid every `hop` samples; t = (n - 1) * hop + size. The adjoint of `frame`."""
    b, count, size = frames.shape
    pieces = -(-size // hop)
    blocks = F.pad(frames, (0, pieces * hop - size)).reshape(b, count, pieces, hop)
    total = frames.new_zeros(b, count + pieces - 1, hop)
    for i in range(pieces):
        total = total + F.pad(blocks[:, :, i], (0, 0, i, pieces - 1 - i))
    return total.reshape(b, -1)[:, : (count - 1) * hop + size]


def stft(
    x: Float[Tensor, "b t"], spec: StftSpec, window: Float[Tensor, " size"] | None = None
) -> Complex[Tensor, "b f n"]:
    """Centred STFT with a periodic Hann window or another: f = n_fft // 2 + 1 bins, n = 1 + t // hop frames.

    Raises:
        ValueError: reflect padding needs more than n_fft // 2 samples.
    """
    table = hann_window(spec.n_fft) if window is None else window
    return spectra(_centred(x, spec), table).transpose(1, 2)


def istft(z: Complex[Tensor, "b f n"], spec: StftSpec) -> Float[Tensor, "b t"]:
    """Inverse of `stft` by weighted overlap-add (Griffin and Lim, 1984); t = hop * (n - 1) samples.

    The last frame stands at a row's end; what comes out beyond it means nothing.
    """
    frames = torch.fft.irfft(z.transpose(1, 2), n=spec.n_fft)
    window = _constant(hann_window(spec.n_fft), frames)
    count = frames.shape[1]
    squares = (window**2).expand(1, count, spec.n_fft)
    if (last := ends(count - 1)) is not None:
        there = (torch.arange(count, device=frames.device) <= last[:, None])[..., None]
        frames, squares = frames.masked_fill(~there, 0), squares * there
    keep = slice(spec.n_fft // 2, spec.n_fft // 2 + spec.hop * (count - 1))
    weight = overlap_add(squares, spec.hop)[:, keep]
    return overlap_add(frames * window, spec.hop)[:, keep] / weight.masked_fill(weight == 0, 1)


def magnitude_phase(
    z: Complex[Tensor, "b f n"],
) -> tuple[Float[Tensor, "b f n"], Float[Tensor, "b f n"], Float[Tensor, "b f n"]]:
    """Magnitude, cosine and sine of the phase; the phase is 0 where the bin is 0."""
    magnitude = z.abs()
    empty = magnitude == 0
    divisor = magnitude.masked_fill(empty, 1)
    return magnitude, (z.real / divisor).masked_fill(empty, 1), (z.imag / divisor).masked_fill(empty, 0)


def mel_spectrogram(
    x: Float[Tensor, "b t"],
    spec: MelSpec = MelSpec(),  # noqa: B008 (frozen)
    tables: MelTables | None = None,
) -> Float[Tensor, "b m n"]:
    """Normalised log-mel spectrogram, all n = 1 + t // hop frames (the models drop the last)."""
    # One fused operation with one rounding, as XLA makes of it: low frequencies all but cancel here.
    x = torch.sub(x, F.pad(x, (1, 0))[:, :-1], alpha=spec.preemphasis)
    frames = _centred(x, spec.stft)
    window = tables.window if tables else hann_window(spec.stft.n_fft)
    floor = tables.magnitude_min if tables else spec.magnitude_min
    if _takes_blocks(frames):
        mel = _mel_in_blocks(frames, window, spec, tables).transpose(1, 2)
    else:
        bank = tables.bank if tables else mel_filter_bank(SAMPLE_RATE, spec.stft.n_fft, spec.num_mels)
        magnitude = spectra(frames, window).abs()
        mel = torch.einsum("bnf,fm->bmn", magnitude, _constant(bank, x))
    decibel = 20 * torch.log10(mel.clamp(min=floor))
    return (decibel - spec.min_db) / (spec.headroom_db - spec.min_db)


def peak_normalize(x: Float[Tensor, "*b t"]) -> Float[Tensor, "*b t"]:
    """x / (max|x| + 1e-7), each item on its own."""
    return x / (x.abs().amax(dim=-1, keepdim=True) + NORMALIZE_EPS)


def spectra(
    frames: Float[Tensor, "b n size"], window: Float[np.ndarray, " size"] | Float[Tensor, " size"]
) -> Complex[Tensor, "b n f"]:
    """Window and transform. On a CPU float32 frames are transformed in double precision and rounded once.

    A float32 transform leaves 1e-7 of the frame's peak in every bin. Bins far below the peak, such as all those
    above the band of a recording of a lower rate, then have a phase of their own in every library, and the
    network hears it. Accelerators keep float32: their double precision is slow or missing.
    """
    wide = torch.float64 if frames.device.type == "cpu" else frames.dtype
    table = _constant(window, frames.new_empty(0, dtype=wide))
    if not _takes_blocks(frames):
        spectrum = torch.fft.rfft(frames * table)
        return spectrum.to(torch.complex64) if frames.dtype == torch.float32 else spectrum
    out = frames.new_empty(*frames.shape[:2], frames.shape[2] // 2 + 1, dtype=_complex(frames))
    return _by_blocks(lambda part: torch.fft.rfft(part * table), frames, out)


def _centred(x: Tensor, spec: StftSpec) -> Tensor:
    """Frames (b, n, n_fft) around every `hop`-th sample, the first around the first."""
    half = spec.n_fft // 2
    if spec.pad_mode == "reflect" and x.shape[-1] <= half:
        raise ValueError(f"reflect padding needs more than {half} samples, got {x.shape[-1]}")
    return frame(padded(x[:, None], half, half, spec.pad_mode)[:, 0], spec.n_fft, spec.hop)


def _takes_blocks(frames: Tensor) -> bool:
    """Whether to work block by block: on a CPU, unless a gradient is wanted, which would keep every block anyway."""
    return frames.device.type == "cpu" and not (torch.is_grad_enabled() and frames.requires_grad)


def _by_blocks(work: Callable[[Tensor], Tensor], frames: Tensor, out: Tensor) -> Tensor:
    """Fill `out` (b, n, k) with what `work` makes of a few frames (m, size) of one row: (m, k)."""
    count = frames.shape[1]
    block = -(-count // -(-count // (BLOCK * torch.get_num_threads())))
    for row, place in zip(frames.unbind(), out.unbind(), strict=True):
        for first in range(0, count, block):
            place[first : first + block] = work(row[first : first + block])
    return out


def _mel_in_blocks(
    frames: Tensor, window: np.ndarray | Tensor, spec: MelSpec, tables: MelTables | None
) -> Tensor:
    """Mel magnitudes (b, n, m). Double precision as in `spectra`: 2e-6 of the peak is more than float32 keeps."""
    table, narrow = _constant(window, frames.new_empty(0, dtype=torch.float64)), _complex(frames)
    if tables:
        pieces = [(slice(None), tables.bank.to(frames))]
    else:
        bands = mel_bands(SAMPLE_RATE, spec.stft.n_fft, spec.num_mels)
        pieces = [(bins, _constant(columns, frames)) for bins, columns in bands]

    def work(part: Tensor) -> Tensor:
        squares = torch.view_as_real(torch.fft.rfft(part * table).to(narrow)).square_()
        # Not abs(), which takes three times as long to be right below 1e-19 and above 1e19 too.
        magnitude = (squares[..., 0] + squares[..., 1]).sqrt_()
        return torch.cat([magnitude[:, bins] @ columns for bins, columns in pieces], dim=1)

    return _by_blocks(work, frames, frames.new_empty(*frames.shape[:2], spec.num_mels))


def _complex(like: Tensor) -> torch.dtype:
    """What a transform in double precision is rounded to."""
    return torch.complex64 if like.dtype == torch.float32 else torch.complex128


def _constant(table: np.ndarray | Tensor, like: Tensor) -> Tensor:
    if isinstance(table, Tensor):
        return table.to(like)
    # np.array copies: the tables are cached read-only, and torch warns of a tensor over such memory.
    return torch.from_numpy(np.array(table)).to(like)
