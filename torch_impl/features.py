"""STFT, inverse STFT and mel spectrogram in PyTorch; the twin of `jax_impl.features`.

Plain functions of tensors, in the dtype of their input. `parivox.features` holds the numbers and the
float64 oracle they are compared with.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

from parivox.features import NORMALIZE_EPS, SAMPLE_RATE, MelSpec, StftSpec, hann_window, mel_filter_bank
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
    half = spec.n_fft // 2
    if spec.pad_mode == "reflect" and x.shape[-1] <= half:
        raise ValueError(f"reflect padding needs more than {half} samples, got {x.shape[-1]}")
    wide = padded(x[:, None], half, half, spec.pad_mode)[:, 0]
    table = hann_window(spec.n_fft) if window is None else window
    return spectra(frame(wide, spec.n_fft, spec.hop), table).transpose(1, 2)


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
    magnitude = stft(x, spec.stft, tables.window if tables else None).abs()
    bank = tables.bank if tables else mel_filter_bank(SAMPLE_RATE, spec.stft.n_fft, spec.num_mels)
    floor = tables.magnitude_min if tables else spec.magnitude_min
    mel = torch.einsum("bfn,fm->bmn", magnitude, _constant(bank, x))
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
    wide = frames.double() if frames.device.type == "cpu" else frames
    spectrum = torch.fft.rfft(wide * _constant(window, wide))
    return spectrum.to(torch.complex64) if frames.dtype == torch.float32 else spectrum


def _constant(table: np.ndarray | Tensor, like: Tensor) -> Tensor:
    if isinstance(table, Tensor):
        return table.to(like)
    # np.array copies: the tables are cached read-only, and torch warns of a tensor over such memory.
    return torch.from_numpy(np.array(table)).to(like)
