"""Clean arrays with any model that maps (b, t) samples at 44,100 Hz to as many.

Everything but the model is here: resampling, chunks, normalisation, padding, joining. Nothing depends on a
backend. `parivox.stream` does the same block by block, and `parivox.enhance_files` with files.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from parivox.audio import resample
from parivox.chunks import WAV_RATE, ChunkJoiner, split_chunks
from parivox.errors import AudioError, ConfigError
from parivox.rows import MIN_SAMPLES, PADDING, Model, Place, RowModel, RowRunner


def clean(
    wav: Float[np.ndarray, "c t"],
    rate: int,
    model: Model | RowModel,
    *,
    chunk_seconds: float = 30.0,
    overlap_seconds: float = 1.0,
    rate_out: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Float[np.ndarray, "c t2"]:
    """Clean a recording of any length, rate and number of channels.

    Args:
        wav: samples (c, t), t at least 1.
        rate: their rate in Hz.
        model: sees the channels as rows, each at a peak of 1; see `parivox.rows`.
        chunk_seconds: how much the model sees at once.
        overlap_seconds: how much neighbouring chunks share; at most half a chunk.
        rate_out: rate of the result in Hz; None keeps `rate`.
        progress: called after each chunk with the share done, up to 1.

    Returns:
        (c, t2) float32; t2 is t when the rate is kept, else round(t * rate_out / rate), at least 1.
        The peak may exceed 1. Digital silence in a channel of a chunk stays exactly 0.

    Raises:
        AudioError: a rate is out of range, or the model returned NaN or infinite samples.
        ConfigError: the overlap exceeds half a chunk, or a duration is not positive.
        ValueError: the model changed the shape.
    """
    hop, overlap = chunk_sizes(chunk_seconds, overlap_seconds)
    rate_out = rate if rate_out is None else rate_out
    length = output_length(wav.shape[1], rate, rate_out)
    wav = wav.astype(np.float32, copy=False)
    if rate != WAV_RATE:  # of less than 10 ms the resampler may leave nothing
        wav = resample(fit(wav, max(wav.shape[1], shortest(rate))), rate, WAV_RATE)
    cleaner = ChunkCleaner(RowRunner(model, full_row(hop, overlap)), hop, overlap)
    parts, chunks = [], split_chunks(wav, hop, overlap)
    for index, chunk in enumerate(chunks):
        parts.append(cleaner.push(chunk))
        if progress:
            progress((index + 1) / len(chunks))
    out = np.concatenate([*parts, cleaner.finish()], axis=-1)
    return fit(resample(out, WAV_RATE, rate_out), length)


class Submitted(NamedTuple):
    """A chunk whose rows are run: its shape, the channels that sound, their peaks and their results."""

    shape: tuple[int, int]
    channels: list[int]
    peaks: Float[np.ndarray, "c 1"]
    results: list[Future[np.ndarray]]


class ChunkCleaner:
    """Runs a model over chunks as they come and joins them; a whole recording and a stream share it."""

    def __init__(self, runner: RowRunner, hop: int, overlap: int) -> None:
        """What runs the rows, and sizes as `chunk_sizes` gives them."""
        self._runner, self._count = runner, 0
        self.ahead = runner.ahead
        self._joiner = ChunkJoiner(hop, overlap, WAV_RATE)

    def push(self, chunk: Float[np.ndarray, "c t"]) -> Float[np.ndarray, "c t2"]:
        """Clean the next chunk of `split_chunks`; returns the samples that are final now, in order."""
        return self.join(self.submit(chunk))

    def submit(self, chunk: Float[np.ndarray, "c t"]) -> Submitted:
        """Have the next chunk cleaned, each channel at a peak of 1; silence needs no model."""
        number, self._count = self._count, self._count + 1
        peaks = np.abs(chunk).max(axis=-1, keepdims=True)
        channels = np.flatnonzero(peaks).tolist()
        length = max(chunk.shape[1] + PADDING, MIN_SAMPLES)
        rows = [fit(chunk[[channel]] / peaks[channel], length)[0] for channel in channels]
        results = self._runner.submit(rows, [Place(number, channel) for channel in channels])
        return Submitted(chunk.shape, channels, peaks, results)

    def join(self, chunk: Submitted) -> Float[np.ndarray, "c t"]:
        """Wait for the chunk that was submitted first; returns the samples that are final now, in order."""
        out = np.zeros(chunk.shape, np.float32)
        for channel, result in zip(chunk.channels, chunk.results, strict=True):
            sound = result.result()
            if not np.isfinite(sound).all():
                raise AudioError(
                    "the model returned NaN or infinite samples; use another checkpoint or precision"
                )
            out[channel] = sound[: chunk.shape[1]] * chunk.peaks[channel]
        return self._joiner.push(out)

    def finish(self) -> Float[np.ndarray, "c t"]:
        """The remaining samples."""
        return self._joiner.finish()


def output_length(length: int, rate: int, rate_out: int) -> int:
    """Samples of the result for so many at `rate`: as many where the rate is kept, else at least one."""
    return length if rate_out == rate else max(1, round(length * rate_out / rate))


def shortest(rate: int) -> int:
    """Samples that a recording is filled up to before it is resampled, a little more than 10 ms."""
    return rate // 100 + 1


def full_row(hop: int, overlap: int) -> int:
    """Samples of the row that a whole chunk becomes."""
    return max(hop + overlap + PADDING, MIN_SAMPLES)


def chunk_sizes(chunk: float, overlap: float) -> tuple[int, int]:
    """Hop and overlap in samples at 44,100 Hz, from durations in seconds.

    Raises:
        ConfigError: the overlap exceeds half a chunk, or a duration is not positive.
    """
    if not (chunk > 0 and 0 <= overlap <= chunk / 2):
        raise ConfigError(f"chunks of {chunk} s cannot overlap by {overlap} s; use 0 to half a chunk")
    shared = int(overlap * WAV_RATE)
    return max(int(chunk * WAV_RATE) - shared, 1), shared


def fit(wav: np.ndarray, length: int) -> np.ndarray:
    """Cut (c, t) to `length` samples, or append zeros."""
    return np.pad(wav[:, :length], [(0, 0), (0, max(0, length - wav.shape[1]))])
