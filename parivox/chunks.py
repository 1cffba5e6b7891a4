"""Long recordings in overlapping chunks: cut, align, join with linear fades.

A model sees at most one chunk at a time. Neighbours share `overlap` samples; where the model moved the
sound by a few milliseconds, the later chunk is shifted to where its mel spectrogram correlates best with
the earlier one's, and the two are cross-faded. When they agree sample for sample, the join is bit-exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from parivox.hparams import WAV_RATE

ALIGN_MELS = 80


def split_chunks(wav: Float[np.ndarray, "... t"], hop: int, overlap: int) -> list[np.ndarray]:
    """Cut (..., t) into views of `hop + overlap` samples, one every `hop`; the last may be shorter.

    Each but the first has more than `overlap` samples; a recording no longer than a chunk is one chunk.

    Raises:
        ValueError: not 0 <= overlap <= hop, or hop is 0.
    """
    _check_sizes(hop, overlap)
    count = 1 + max(0, -(-(wav.shape[-1] - hop - overlap) // hop))
    return [wav[..., i * hop : (i + 1) * hop + overlap] for i in range(count)]


def join_chunks(
    chunks: Sequence[np.ndarray], hop: int, overlap: int, rate: int = WAV_RATE
) -> Float[np.ndarray, "... t"]:
    """Align and join chunks made by `split_chunks`, all at once.

    Args:
        chunks: (..., hop + overlap) float32 or float64 each; the last may be shorter.
        hop: samples from one chunk's start to the next.
        overlap: samples that neighbours share.
        rate: sample rate in Hz, for the alignment.

    Returns:
        (..., t) of the chunks' dtype, t = (number - 1) * hop + length of the last.

    Raises:
        ValueError: there are no chunks, or their sizes do not fit (see `ChunkJoiner.push`).
    """
    joiner = ChunkJoiner(hop, overlap, rate)
    parts = [joiner.push(chunk) for chunk in chunks]
    return np.concatenate([*parts, joiner.finish()], axis=-1)


class ChunkJoiner:
    """Joins chunks as they come and gives back what later chunks cannot change; holds about two chunks.

    Chunk i starts at sample i * hop, plus its shift against chunk i - 1. In its first `overlap` samples
    it rises linearly from 0 to 1, in its last ones it falls from 1 to 0; the first chunk does not rise and
    the last does not fall. The fall is made when the next chunk comes, as
    sum + (rise * new - rise * old), which leaves the sum untouched bit for bit where new equals old.
    """

    def __init__(self, hop: int, overlap: int, rate: int = WAV_RATE) -> None:
        """Sizes in samples, rate in Hz.

        Raises:
            ValueError: not 0 <= overlap <= hop, or hop is 0.
        """
        _check_sizes(hop, overlap)
        self.hop, self.overlap, self.rate = hop, overlap, rate
        step = max(1, rate // 200)
        self._reach = (overlap // step + 1) // 2 * step  # the largest possible shift
        self._count = 0
        self._given = 0  # samples handed out; the sum begins here
        self._nominal_end = 0
        self._fall_at = 0  # where the previous chunk's fall begins, with its shift
        self._sum = np.zeros(0)
        self._tail = np.zeros(0)  # the previous chunk's last `overlap` samples
        self._last = False

    def push(self, chunk: Float[np.ndarray, "... t"]) -> Float[np.ndarray, "... t2"]:
        """Add the next chunk; returns the samples (..., t2) that are final now, in order.

        Raises:
            ValueError: the chunk is empty or longer than hop + overlap, or follows a shorter one.
        """
        size = chunk.shape[-1]
        if self._last or not 0 < size <= self.hop + self.overlap:
            full = self.hop + self.overlap
            raise ValueError(f"chunk {self._count} has {size} samples; it takes {full}, the last 1 to {full}")
        start = self._count * self.hop
        if self._count == 0:
            self._sum = chunk.copy()
        else:
            start = self._add(chunk, start)
        self._last = size < self.hop + self.overlap
        self._nominal_end = self._count * self.hop + size
        self._fall_at = start + self.hop
        self._tail = chunk[..., self.hop :].copy()
        self._count += 1
        return self._give(self._count * self.hop - self._reach)

    def finish(self) -> Float[np.ndarray, "... t"]:
        """The remaining samples; the total is the nominal end of the last chunk, whatever the shifts.

        Raises:
            ValueError: no chunk was pushed.
        """
        if not self._count:
            raise ValueError("no chunks to join")
        self._extend(self._nominal_end)
        return self._give(self._nominal_end)

    def _add(self, chunk: np.ndarray, start: int) -> int:
        """Fade from the previous chunk into this one; returns its shifted start."""
        missing = max(0, self.overlap - chunk.shape[-1])
        head = np.pad(chunk[..., : self.overlap], [(0, 0)] * (chunk.ndim - 1) + [(0, missing)])
        if self.overlap:
            start += alignment_shift(self._tail, head, self.rate)
        self._extend(max(start + chunk.shape[-1] + missing, self._fall_at + self.overlap))
        rise = np.linspace(0, 1, self.overlap).astype(chunk.dtype)
        change = np.zeros_like(self._sum)
        self._at(change, start, self.overlap)[...] += rise * head
        self._at(change, self._fall_at, self.overlap)[...] -= rise * self._tail
        self._sum += change
        rest = chunk[..., self.overlap :]
        self._at(self._sum, start + self.overlap, rest.shape[-1])[...] += rest
        return start

    def _at(self, array: np.ndarray, start: int, size: int) -> np.ndarray:
        """View of `size` samples from absolute position `start` of an array laid out as the sum."""
        return array[..., start - self._given : start - self._given + size]

    def _extend(self, end: int) -> None:
        """Lengthen the sum with zeros to the absolute position `end`."""
        missing = max(0, end - self._given - self._sum.shape[-1])
        self._sum = np.pad(self._sum, [(0, 0)] * (self._sum.ndim - 1) + [(0, missing)])

    def _give(self, end: int) -> np.ndarray:
        """Hand out the sum up to the absolute position `end`."""
        size = max(0, end - self._given)
        out, self._sum = self._sum[..., :size], self._sum[..., size:].copy()
        self._given += out.shape[-1]
        return out


def alignment_shift(
    earlier: Float[np.ndarray, "... t"], later: Float[np.ndarray, "... t"], rate: int = WAV_RATE
) -> int:
    """By how many samples to move `later` so that it lies on `earlier`, in steps of 5 ms.

    The circular cross-correlation over frames of the two log1p mel spectrograms, averaged over bands
    (and over leading axes: the channels of a recording move together), has its largest magnitude
    at the shift. Computed in float64 whatever the input.

    Args:
        earlier: the end of one chunk (..., t).
        later: the beginning of the next, same shape.
        rate: sample rate in Hz.

    Returns:
        A multiple of rate // 200, within half of t either way; positive moves `later` to the right.
    """
    first, second = (np.fft.fft(_log_mel(x, rate), axis=-2) for x in (earlier, later))
    match = np.abs(np.fft.ifft(first * second.conj(), axis=-2))
    match = match.mean(axis=tuple(i for i in range(match.ndim) if i != match.ndim - 2))
    frames = len(match)
    best = int(match.argmax())
    return (best - frames if best > frames // 2 else best) * max(1, rate // 200)


def _log_mel(wav: np.ndarray, rate: int) -> np.ndarray:
    """log(1 + mel power spectrogram) (..., n, 80) of (..., t), centred with reflect padding."""
    hop = max(1, rate // 200)
    win = 4 * hop
    n_fft = 1 << (win - 1).bit_length()
    window = np.zeros(n_fft)
    left = (n_fft - win) // 2
    window[left : left + win] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win) / win)
    padding = [(0, 0)] * (wav.ndim - 1) + [(n_fft // 2, n_fft // 2)]
    padded = np.pad(wav.astype(np.float64), padding, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=-1)[..., ::hop, :]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return np.log1p(power @ _mel_filters(n_fft, rate))


@lru_cache(maxsize=4)
def _mel_filters(n_fft: int, rate: int) -> np.ndarray:
    """Triangles (n_fft // 2 + 1, 80) of height 1, equally wide on the HTK scale 2595 log10(1 + f / 700)."""
    bins = np.linspace(0, rate // 2, n_fft // 2 + 1)
    top = 2595 * np.log10(1 + (rate // 2) / 700)
    corners = 700 * (10 ** (np.linspace(0, top, ALIGN_MELS + 2) / 2595) - 1)
    rising = (bins[:, None] - corners[None, :-2]) / np.diff(corners)[:-1]
    falling = (corners[None, 2:] - bins[:, None]) / np.diff(corners)[1:]
    return np.maximum(0, np.minimum(rising, falling))


def _check_sizes(hop: int, overlap: int) -> None:
    """Refuse sizes in which more than two chunks would meet."""
    if hop < 1 or not 0 <= overlap <= hop:
        raise ValueError(f"hop {hop} and overlap {overlap} do not fit; need hop >= 1 and 0 <= overlap <= hop")
