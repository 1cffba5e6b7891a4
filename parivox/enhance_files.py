"""Clean files and folders, block by block: a file of ten hours takes the memory of one of a minute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from parivox.audio import BLOCK, probe, read_blocks, write_blocks
from parivox.audio_formats import FLOAT_SUBTYPES, check_writable, kept_subtype
from parivox.enhance import chunk_sizes, full_row
from parivox.enhance_plan import Job, plan
from parivox.errors import ConfigError, ParivoxError, printable
from parivox.rows import Model, RowModel, RowRunner, SharedRunner
from parivox.spool import Spool
from parivox.stream import clean_stream, resampled

LONGEST_BLOCK = 8
"""Seconds of sound that are read at a time, at most."""


@dataclass(frozen=True)
class Summary:
    """What became of each file.

    Attributes:
        done: the outputs written.
        failed: each input that was not cleaned, with the reason in one line.
        skipped: the outputs that were there before.
        left: inputs that were not looked at, since one before them failed.
    """

    done: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    left: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class FileOptions:
    """How files are cleaned.

    Attributes:
        rate: sample rate of the outputs in Hz; None keeps each file's own.
        format: `wav`, `flac`, `ogg` or `mp3`; None keeps each file's suffix.
        chunk_seconds: see `parivox.enhance.clean`.
        overlap_seconds: see there.
        mono: whether the mean of the channels is cleaned instead of each.
        mix: how much of the original is kept in the result, 0 to 1.
        skip_existing: whether a file whose output is there already is passed over.
        keep_going: whether files after one that fails are cleaned.

    Raises:
        ConfigError: the overlap exceeds half a chunk, a duration is not positive, or the mix is out of range.
    """

    rate: int | None = None
    format: str | None = None
    chunk_seconds: float = 30.0
    overlap_seconds: float = 1.0
    mono: bool = False
    mix: float = 0.0
    skip_existing: bool = False
    keep_going: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        chunk_sizes(self.chunk_seconds, self.overlap_seconds)
        if not 0 <= self.mix <= 1:
            raise ConfigError(f"--mix is {self.mix}; it is a share, use 0 to 1")


def _ignore_message(line: str) -> None:
    """Take a message and do nothing."""


def _ignore_progress(done: float, total: float) -> None:
    """Take a progress report and do nothing."""


def enhance_path(
    source: str | Path,
    target: str | Path,
    model: Model | RowModel,
    options: FileOptions | None = None,
    *,
    message: Callable[[str], None] = _ignore_message,
    progress: Callable[[float, float], None] = _ignore_progress,
) -> Summary:
    """Clean a file, or every audio file below a folder, keeping channels, length and sample coding.

    Reading, computing and writing go on side by side. Outputs appear whole or not at all. An output that would clip is
    scaled down as a whole, with a message.

    Args:
        source: a file or a folder.
        target: for a file, the output file or an existing folder; for a folder, the output folder.
        model: see `parivox.enhance.clean`; it is called in one thread, on rows of several files where it takes many.
        options: rates, formats, chunks and what to do with each file; None takes the defaults.
        message: gets one line for each file that fails or is scaled down.
        progress: gets seconds of audio done and in total, after each chunk.

    Returns:
        Outputs written, inputs that failed, and what was passed over.

    Raises:
        AudioError: nothing can be done at all; see `parivox.enhance_plan.plan`.
    """
    options, summary = options or FileOptions(), Summary()
    jobs = plan(Path(source), Path(target), options.format)
    if options.skip_existing:
        summary.skipped.extend(job.target for job in jobs if job.target.exists())
        jobs = [job for job in jobs if not job.target.exists()]
    ready = _check_inputs(jobs, options, summary, message)
    if summary.failed and not options.keep_going:
        summary.left.extend(item.job.source for item in ready)
        return summary
    sizes = chunk_sizes(options.chunk_seconds, options.overlap_seconds)
    work = _Work(options, message, progress, math.fsum(item.seconds for item in ready))
    # Files are read and written in threads of their own while the model works on the rows of another.
    with (
        ThreadPoolExecutor(_threads(model, options)) as pool,
        SharedRunner(model, full_row(*sizes)) as runner,
    ):
        results = [pool.submit(work.clean, item, runner) for item in ready]
        try:
            for item, result in zip(ready, results, strict=True):
                _note(item, result, summary, message)
        finally:
            for result in results:
                result.cancel()
    return summary


def _threads(model: Model | RowModel, options: FileOptions) -> int:
    """Files that are worked on at a time: enough to fill a call of the model, and one that is read meanwhile."""
    if not options.keep_going:
        return 1
    return 1 + (model.batch if isinstance(model, RowModel) else 1)


def _note(item: _Ready, result: Future[bool], summary: Summary, message: Callable[[str], None]) -> None:
    """Wait for a file, and put down what became of it."""
    try:
        if result.result():
            summary.done.append(item.job.target)
        else:
            summary.left.append(item.job.source)
    except ParivoxError as error:
        _fail(item.job, error, summary, message)


@dataclass(frozen=True)
class _Ready:
    """A job whose input has a sound header: length in seconds, rates in Hz, channels and coding of the output."""

    job: Job
    seconds: float
    rate_in: int
    rate: int
    channels: int
    subtype: str


def _check_inputs(
    jobs: list[Job], options: FileOptions, summary: Summary, message: Callable[[str], None]
) -> list[_Ready]:
    """Look at every header before anything is computed; a bad file is noted and left out."""
    ready = []
    for job in jobs:
        try:
            info = probe(job.source)
            rate = info.rate if options.rate is None else options.rate
            channels = 1 if options.mono else info.channels
            subtype = kept_subtype(job.format, info.subtype)
            check_writable(job.target, job.format, subtype, rate, channels)
            ready.append(_Ready(job, info.frames / info.rate, info.rate, rate, channels, subtype))
        except ParivoxError as error:
            _fail(job, error, summary, message)
    return ready


class _Work:
    """What the threads of a run share."""

    def __init__(
        self,
        options: FileOptions,
        message: Callable[[str], None],
        progress: Callable[[float, float], None],
        total: float,
    ) -> None:
        self.options, self.message, self.stopped = options, message, False
        self._progress, self._total = progress, total
        self._done: dict[Job, float] = {}
        self._lock = Lock()

    def clean(self, item: _Ready, runner: RowRunner) -> bool:
        """Clean a file; False where an earlier one failed and that ends the run."""
        if self.stopped:
            return False
        try:
            _run(item, runner, self)
        except BaseException:
            self.stopped = not self.options.keep_going
            raise
        finally:
            self.report(item, item.seconds)
        return True

    def report(self, item: _Ready, seconds: float) -> None:
        """Take down how much of a file is done; one that failed is done with."""
        with self._lock:
            self._done[item.job] = min(seconds, item.seconds)
            self._progress(sum(self._done.values()), self._total)


def _run(item: _Ready, runner: RowRunner, work: _Work) -> None:
    """Read, clean and write one file, scaled down as a whole where integers would clip."""
    options = work.options
    cleaned = clean_stream(
        _original(item, options),
        item.rate_in,
        runner,
        chunk_seconds=options.chunk_seconds,
        overlap_seconds=options.overlap_seconds,
        rate_out=item.rate,
        progress=lambda seconds: work.report(item, seconds),
    )
    if options.mix:
        original = resampled(_original(item, options), item.rate_in, item.rate)
        cleaned = _mixed(cleaned, original, options.mix)
    with Spool(item.job.target, item.channels) as spool:
        for block in cleaned:
            spool.append(block)
        scale = 1.0
        if spool.peak > 1 and item.subtype not in FLOAT_SUBTYPES:
            scale = spool.peak
            loud = 20 * np.log10(scale)
            work.message(f"{printable(item.job.target)}: scaled down by {loud:.2f} dB, its peak would clip")
        blocks = (block / np.float32(scale) for block in spool.blocks())
        write_blocks(
            item.job.target, blocks, item.channels, spool.frames, item.rate, item.job.format, item.subtype
        )


def _original(item: _Ready, options: FileOptions) -> Iterator[np.ndarray]:
    """What is to be cleaned, block by block."""
    # Where a header says a few Hz, a block of the usual size would be resampled to hours.
    for block in read_blocks(item.job.source, min(BLOCK, LONGEST_BLOCK * item.rate_in)):
        yield block.mean(axis=0, keepdims=True) if options.mono else block


def _mixed(cleaned: Iterator[np.ndarray], original: Iterator[np.ndarray], mix: float) -> Iterator[np.ndarray]:
    """Blocks of the one with a share of the other, sample by sample, as long as the first."""
    held: list[np.ndarray] = []
    length = 0
    for block in cleaned:
        while length < block.shape[1] and (part := next(original, None)) is not None:
            held.append(part)
            length += part.shape[1]
        own = np.concatenate(held, axis=1) if held else np.zeros_like(block)
        part = own[:, : block.shape[1]]
        held, length = [own[:, block.shape[1] :]], max(0, length - block.shape[1])
        missing = block.shape[1] - part.shape[1]
        yield (1 - mix) * block + mix * np.pad(part, ((0, 0), (0, missing)))


def _fail(job: Job, error: ParivoxError, summary: Summary, message: Callable[[str], None]) -> None:
    """Note a failed file, once in the summary and once as a message that names it."""
    reason = printable(error)
    if printable(job.source) not in reason and printable(job.target) not in reason:
        reason = f"{printable(job.source)}: {reason}"
    summary.failed.append((job.source, reason))
    message(reason)
