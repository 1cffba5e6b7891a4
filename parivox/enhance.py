"""Clean arrays with any model that maps (b, t) samples at 44,100 Hz to as many.

Everything but the model is here: resampling, chunks, normalisation, padding, joining. Nothing depends on a
backend. `parivox.stream` does the same block by block, and `parivox.enhance_files` with files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from parivox.audio import resample
from parivox.chunks import WAV_RATE, ChunkJoiner, split_chunks
from parivox.errors import AudioError, ConfigError

Model = Callable[[np.ndarray], np.ndarray]
"""(b, t) float32 at 44,100 Hz -> (b, t), each row on its own."""


@runtime_checkable
class ChunkModel(Protocol):
    """A model that is another one for every chunk: one that draws noise, such as `parivox.sampling.Sampler`."""

    def for_chunk(self, number: int) -> Model:
        """What maps the chunk of this number, from 0."""
        ...


PADDING = 441
"""Zeros after every chunk, 10 ms, which the model sees and which are cut off again."""

MIN_SAMPLES = 841
"""Shortest input of a model: the denoiser's STFT reflects 840 samples at each end."""


def clean(
    wav: Float[np.ndarray, "c t"],
    rate: int,
    model: Model | ChunkModel,
    *,
    chunk_seconds: float = 30.0,
    overlap_seconds: float = 1.0,
    rate_out: int | None = None,
    bucket_seconds: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Float[np.ndarray, "c t2"]:
    """Clean a recording of any length, rate and number of channels.

    Args:
        wav: samples (c, t), t at least 1.
        rate: their rate in Hz.
        model: sees the channels as rows of a batch, each at a peak of 1.
        chunk_seconds: how much the model sees at once.
        overlap_seconds: how much neighbouring chunks share; at most half a chunk.
        rate_out: rate of the result in Hz; None keeps `rate`.
        bucket_seconds: pad chunks with zeros to multiples of this, so that a compiled model meets few
            lengths. A model that averages over time hears the difference, so None (no padding beyond
            `PADDING`) is the default and reproduces the published program.
        progress: called after each chunk with the share done, up to 1.

    Returns:
        (c, t2) float32; t2 is t when the rate is kept, else round(t * rate_out / rate), at least 1.
        The peak may exceed 1. Digital silence in a channel of a chunk stays exactly 0.

    Raises:
        AudioError: a rate is out of range, or the model returned NaN or infinite samples.
        ConfigError: the overlap exceeds half a chunk, or a duration is not positive.
        ValueError: the model changed the shape.
    """
    hop, overlap, bucket = chunk_sizes(chunk_seconds, overlap_seconds, bucket_seconds)
    rate_out = rate if rate_out is None else rate_out
    length = output_length(wav.shape[1], rate, rate_out)
    wav = wav.astype(np.float32, copy=False)
    if rate != WAV_RATE:  # of less than 10 ms the resampler may leave nothing
        wav = resample(fit(wav, max(wav.shape[1], shortest(rate))), rate, WAV_RATE)
    cleaner = ChunkCleaner(model, hop, overlap, bucket)
    parts, chunks = [], split_chunks(wav, hop, overlap)
    for index, chunk in enumerate(chunks):
        parts.append(cleaner.push(chunk))
        if progress:
            progress((index + 1) / len(chunks))
    out = np.concatenate([*parts, cleaner.finish()], axis=-1)
    return fit(resample(out, WAV_RATE, rate_out), length)


class ChunkCleaner:
    """Runs a model over chunks as they come and joins them; a whole recording and a stream share it."""

    def __init__(self, model: Model | ChunkModel, hop: int, overlap: int, bucket: int = 1) -> None:
        """Sizes as `chunk_sizes` gives them."""
        self._model, self._bucket, self._count = model, bucket, 0
        self._joiner = ChunkJoiner(hop, overlap, WAV_RATE)

    def push(self, chunk: Float[np.ndarray, "c t"]) -> Float[np.ndarray, "c t2"]:
        """Clean the next chunk of `split_chunks`; returns the samples that are final now, in order."""
        model = self._model
        own = model.for_chunk(self._count) if isinstance(model, ChunkModel) else model
        self._count += 1
        return self._joiner.push(_clean_chunk(chunk, own, self._bucket))

    def finish(self) -> Float[np.ndarray, "c t"]:
        """The remaining samples."""
        return self._joiner.finish()


def output_length(length: int, rate: int, rate_out: int) -> int:
    """Samples of the result for so many at `rate`: as many where the rate is kept, else at least one."""
    return length if rate_out == rate else max(1, round(length * rate_out / rate))


def shortest(rate: int) -> int:
    """Samples that a recording is filled up to before it is resampled, a little more than 10 ms."""
    return rate // 100 + 1


def chunk_sizes(chunk: float, overlap: float, bucket: float | None = None) -> tuple[int, int, int]:
    """Hop, overlap and bucket in samples at 44,100 Hz, from durations in seconds.

    Raises:
        ConfigError: the overlap exceeds half a chunk, or a duration is not positive.
    """
    if not (chunk > 0 and 0 <= overlap <= chunk / 2):
        raise ConfigError(f"chunks of {chunk} s cannot overlap by {overlap} s; use 0 to half a chunk")
    if bucket is not None and not bucket > 0:
        raise ConfigError(f"bucket_seconds is {bucket}; use a positive duration or leave it out")
    shared = int(overlap * WAV_RATE)
    hop = max(int(chunk * WAV_RATE) - shared, 1)
    return hop, shared, 1 if bucket is None else max(1, round(bucket * WAV_RATE))


def _clean_chunk(chunk: np.ndarray, model: Model, bucket: int) -> np.ndarray:
    """Run the model on one chunk (c, t): peak 1, padded, cut, and back at each channel's own peak."""
    peak = np.abs(chunk).max(axis=-1, keepdims=True)
    if not peak.any():
        return np.zeros_like(chunk)
    length = chunk.shape[-1]
    padded = max(-(-length // bucket) * bucket + PADDING, MIN_SAMPLES)
    out = np.asarray(model(fit(chunk / np.where(peak > 0, peak, 1), padded)))
    if out.shape != (chunk.shape[0], padded):
        raise ValueError(f"the model returned shape {out.shape} for {(chunk.shape[0], padded)}")
    if not np.isfinite(out).all():
        raise AudioError("the model returned NaN or infinite samples; use another checkpoint or precision")
    return out[:, :length].astype(np.float32) * peak


def fit(wav: np.ndarray, length: int) -> np.ndarray:
    """Cut (c, t) to `length` samples, or append zeros."""
    return np.pad(wav[:, :length], [(0, 0), (0, max(0, length - wav.shape[1]))])
