"""Clean arrays, files and folders with any model that maps (b, t) samples at 44,100 Hz to as many.

Everything but the model is here: resampling, chunks, normalisation, padding, joining, files. Nothing
depends on a backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from parivox.audio import probe, read_audio, resample, write_audio
from parivox.audio_formats import FLOAT_SUBTYPES, check_writable, kept_subtype
from parivox.chunks import WAV_RATE, ChunkJoiner, split_chunks
from parivox.enhance_plan import Job, plan
from parivox.errors import AudioError, ConfigError, ParivoxError

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


@dataclass(frozen=True)
class Summary:
    """What became of each file.

    Attributes:
        done: the outputs written.
        failed: each input that was not cleaned, with the reason in one line.
    """

    done: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


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
    length = wav.shape[1] if rate_out == rate else max(1, round(wav.shape[1] * rate_out / rate))
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


def _ignore_message(line: str) -> None:
    """Take a message and do nothing."""


def _ignore_progress(done: float, total: float) -> None:
    """Take a progress report and do nothing."""


def enhance_path(
    source: str | Path,
    target: str | Path,
    model: Model | ChunkModel,
    *,
    rate: int | None = None,
    format: str | None = None,
    chunk_seconds: float = 30.0,
    overlap_seconds: float = 1.0,
    bucket_seconds: float | None = None,
    message: Callable[[str], None] = _ignore_message,
    progress: Callable[[float, float], None] = _ignore_progress,
) -> Summary:
    """Clean a file, or every audio file below a folder, keeping channels, length and sample coding.

    One bad file does not stop the others. Outputs appear whole or not at all. An output that would clip
    is scaled down as a whole, with a message.

    Args:
        source: a file or a folder.
        target: for a file, the output file or an existing folder; for a folder, the output folder.
        model: see `clean`.
        rate: sample rate of the outputs in Hz; None keeps each file's own.
        format: `wav`, `flac`, `ogg` or `mp3`; None keeps each file's suffix.
        chunk_seconds: see `clean`.
        overlap_seconds: see `clean`.
        bucket_seconds: see `clean`.
        message: gets one line for each file that fails or is scaled down.
        progress: gets seconds of audio done and in total, after each chunk.

    Returns:
        Outputs written and inputs that failed.

    Raises:
        AudioError: nothing can be done at all; see `parivox.enhance_plan.plan`.
        ConfigError: see `clean`.
    """
    chunk_sizes(chunk_seconds, overlap_seconds, bucket_seconds)
    cleaner = partial(
        clean,
        model=model,
        chunk_seconds=chunk_seconds,
        overlap_seconds=overlap_seconds,
        bucket_seconds=bucket_seconds,
    )
    summary = Summary()
    ready = _check_inputs(plan(Path(source), Path(target), format), rate, summary, message)
    done, total = 0.0, sum(item.seconds for item in ready)
    for item in ready:
        report = partial(_report, progress, done, item.seconds, total)
        try:
            _run(item, cleaner, report, message)
            summary.done.append(item.job.target)
        except ParivoxError as error:
            _fail(item.job, error, summary, message)
        done += item.seconds
        progress(done, total)
    return summary


@dataclass(frozen=True)
class _Ready:
    """A job whose input has a sound header: length in seconds, output rate in Hz, output coding."""

    job: Job
    seconds: float
    rate: int
    subtype: str


def _check_inputs(
    jobs: list[Job], rate: int | None, summary: Summary, message: Callable[[str], None]
) -> list[_Ready]:
    """Look at every header before anything is computed; a bad file is noted and left out."""
    ready = []
    for job in jobs:
        try:
            info = probe(job.source)
            rate_out = info.rate if rate is None else rate
            subtype = kept_subtype(job.format, info.subtype)
            check_writable(job.target, job.format, subtype, rate_out, info.channels)
            ready.append(_Ready(job, info.frames / info.rate, rate_out, subtype))
        except ParivoxError as error:
            _fail(job, error, summary, message)
    return ready


def _run(
    item: _Ready,
    cleaner: Callable[..., np.ndarray],
    report: Callable[[float], None],
    message: Callable[[str], None],
) -> None:
    """Read, clean and write one file, scaled down as a whole where integers would clip."""
    wav, rate = read_audio(item.job.source)
    wav = cleaner(wav, rate, rate_out=item.rate, progress=report)
    peak = float(np.abs(wav).max())
    if peak > 1 and item.subtype not in FLOAT_SUBTYPES:
        wav = wav / peak
        message(f"{item.job.target}: scaled down by {20 * np.log10(peak):.2f} dB, its peak would clip")
    write_audio(item.job.target, wav, item.rate, item.job.format, item.subtype)


def _report(
    progress: Callable[[float, float], None], before: float, length: float, total: float, share: float
) -> None:
    """Turn a share of one file into seconds of the whole job."""
    progress(before + share * length, total)


def _fail(job: Job, error: ParivoxError, summary: Summary, message: Callable[[str], None]) -> None:
    """Note a failed file, once in the summary and once as a message that names it."""
    reason = str(error)
    if str(job.source) not in reason and str(job.target) not in reason:
        reason = f"{job.source}: {reason}"
    summary.failed.append((job.source, reason))
    message(reason)
