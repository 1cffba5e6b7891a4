"""Sound that comes in blocks and leaves in blocks, cleaned with memory for about two chunks.

The same chunks, models and joins as `parivox.enhance.clean`, and the same samples: soxr gives of a stream what it gives
of a whole recording.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import soxr

from parivox.chunks import WAV_RATE
from parivox.enhance import ChunkCleaner, Submitted, chunk_sizes, fit, full_row, output_length, shortest
from parivox.errors import AudioError
from parivox.rows import Model, RowModel, RowRunner
from parivox.samples import checked_rate, checked_wav


def clean_stream(
    blocks: Iterable[np.ndarray],
    rate: int,
    model: Model | RowModel | RowRunner,
    *,
    chunk_seconds: float = 30.0,
    overlap_seconds: float = 1.0,
    rate_out: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[np.ndarray]:
    """Clean blocks as they come.

    A chunk is cleaned once it is full, so what goes in comes out one chunk later, and the rest when the blocks end.

    Args:
        blocks: floats (t,) or (c, t) each, of any lengths, with as many channels.
        rate: their rate in Hz.
        model: see `parivox.enhance.clean`; or what runs it for others too.
        chunk_seconds: see there.
        overlap_seconds: see there.
        rate_out: rate of the result in Hz; None keeps `rate`.
        progress: called after each chunk with the seconds of sound that were given out so far.

    Returns:
        Blocks float32, of other lengths than those that went in and together as long as what `clean` gives.

    Raises:
        AudioError: the rate is out of range; and, while it runs, a block has another shape or dtype than it should, or
            holds samples that are not finite.
        ConfigError: the overlap exceeds half a chunk, or a duration is not positive.
    """
    rate = checked_rate(rate)
    rate_out = rate if rate_out is None else checked_rate(rate_out)
    hop, overlap = chunk_sizes(chunk_seconds, overlap_seconds)
    runner = model if isinstance(model, RowRunner) else RowRunner(model, full_row(hop, overlap))
    cleaner = ChunkCleaner(runner, hop, overlap)
    return _cleaned(_Blocks(blocks), rate, rate_out, cleaner, hop, overlap, progress)


class _Blocks:
    """Checks blocks and counts their samples, as they pass."""

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self.taken, self.channels, self.dimensions = 0, 0, 0
        self._blocks = blocks

    def __iter__(self) -> Iterator[np.ndarray]:
        for number, block in enumerate(self._blocks):
            rows = checked_wav(block, f"block {number}")
            shape = len(rows), np.ndim(block)
            if number == 0:
                self.channels, self.dimensions = shape
            if shape != (self.channels, self.dimensions):
                raise AudioError(
                    f"block {number} has the shape {np.shape(block)}, unlike block 0; give one shape"
                )
            self.taken += rows.shape[1]
            yield rows

    def shaped(self, rows: np.ndarray) -> np.ndarray:
        """Rows in as many dimensions as the blocks have."""
        return rows[0] if self.dimensions == 1 else rows


def _cleaned(
    blocks: _Blocks,
    rate: int,
    rate_out: int,
    cleaner: ChunkCleaner,
    hop: int,
    overlap: int,
    progress: Callable[[float], None] | None,
) -> Iterator[np.ndarray]:
    sound = resampled(_filled(blocks, rate), rate, WAV_RATE)
    given = 0
    for block in resampled(_joined(_cut(sound, hop, overlap), cleaner), WAV_RATE, rate_out):
        # What was filled up, or rounded up, at the end is cut off.
        block = block[:, : output_length(blocks.taken, rate, rate_out) - given]
        given += block.shape[1]
        if progress:
            progress(given / rate_out)
        if block.size:
            yield blocks.shaped(block)
    missing = output_length(blocks.taken, rate, rate_out) - given
    if missing and blocks.taken:
        yield blocks.shaped(np.zeros((blocks.channels, missing), np.float32))


def _filled(blocks: _Blocks, rate: int) -> Iterator[np.ndarray]:
    """At the end zeros, where there was something and too little for a resampler."""
    rows = None
    for rows in blocks:
        yield rows
    if rows is not None and rate != WAV_RATE and 0 < blocks.taken < shortest(rate):
        yield np.zeros((len(rows), shortest(rate) - blocks.taken), np.float32)


def resampled(blocks: Iterator[np.ndarray], rate_in: int, rate_out: int) -> Iterator[np.ndarray]:
    """Blocks (c, t) at another rate, together the samples that `parivox.audio.resample` gives of the whole."""
    if rate_in == rate_out:
        yield from blocks
        return
    stream, taken, given = None, 0, 0
    for rows in blocks:
        stream = stream or soxr.ResampleStream(rate_in, rate_out, len(rows), "float32", "HQ")
        channels = len(rows)
        taken += rows.shape[1]
        out = _turned(stream, rows)
        given += out.shape[1]
        yield out
    if stream is not None:
        rest = _turned(stream, np.zeros((channels, 0), np.float32), last=True)
        yield fit(rest, max(0, round(taken * rate_out / rate_in) - given))


def _turned(stream: soxr.ResampleStream, rows: np.ndarray, last: bool = False) -> np.ndarray:
    """(c, t) through a resampler, which takes (t, c)."""
    out = stream.resample_chunk(np.ascontiguousarray(rows.T), last=last)
    return out.reshape(-1, len(rows)).T


def _cut(blocks: Iterator[np.ndarray], hop: int, overlap: int) -> Iterator[np.ndarray]:
    """The chunks of `parivox.chunks.split_chunks`, each as soon as it is full."""
    held: list[np.ndarray] = []
    length, shared = 0, 0  # of what is held; of that, what the chunk before has had
    for rows in blocks:
        held.append(rows.copy())  # whoever made the block may fill it anew
        length += rows.shape[1]
        if length < hop + overlap:
            continue
        wav = np.concatenate(held, axis=1)
        while wav.shape[1] >= hop + overlap:
            yield wav[:, : hop + overlap]
            wav, shared = wav[:, hop:], overlap
        held, length = [wav.copy()], wav.shape[1]  # a view would keep all of it alive
        del wav
    if length > shared:
        yield np.concatenate(held, axis=1)


def _joined(chunks: Iterator[np.ndarray], cleaner: ChunkCleaner) -> Iterator[np.ndarray]:
    """The cleaned chunks, joined; some are submitted before the first of them is waited for."""
    waiting: deque[Submitted] = deque()
    chunk = None
    for chunk in chunks:
        waiting.append(cleaner.submit(chunk))
        if len(waiting) > cleaner.ahead:
            yield cleaner.join(waiting.popleft())
    while waiting:
        yield cleaner.join(waiting.popleft())
    if chunk is not None:
        yield cleaner.finish()
