"""Rows: what a model sees at once of a recording, one channel of one chunk, and how rows of many are run together.

A row is normalised to a peak of 1 and followed by 10 ms of zeros. Rows of several channels, chunks and files may share
a call of the model, and a model that is compiled for each shape meets only the few lengths of `bucket_lengths`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from types import TracebackType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from parivox.hparams import WAV_RATE

Model = Callable[[np.ndarray], np.ndarray]
"""(b, t) float32 at 44,100 Hz -> (b, t), each row on its own; the rows are the channels of a chunk."""


class Place(NamedTuple):
    """Where a row stands in its recording, from 0: noise is drawn for it."""

    chunk: int
    channel: int


@runtime_checkable
class RowModel(Protocol):
    """A model for rows of any origin.

    Attributes:
        batch: rows that it takes at once, at most.
        compiles: whether it must be compiled for every new shape; it then meets few.
    """

    batch: int
    compiles: bool

    def __call__(
        self,
        wav: Float[np.ndarray, "b t"],
        lengths: Int[np.ndarray, " b"] | None,
        places: Sequence[Place],
    ) -> Float[np.ndarray, "b t"]:
        """Clean rows, filled up with zeros behind `lengths`; None: all are t long."""
        ...


PADDING = 441
"""Zeros after every chunk, 10 ms, which the model sees and which are cut off again."""

MIN_SAMPLES = 841
"""Shortest row: the denoiser's STFT reflects 840 samples at each end."""

FRAME = 420
"""A row that is filled up has a multiple of this length."""

_STEPS = ((5, 1), (14, 1.5), (30, 2))
"""Seconds up to which bucket lengths are so many seconds apart; beyond, a tenth."""


def bucket_lengths(full: int) -> tuple[int, ...]:
    """Lengths that rows are filled up to, rising, in samples; the last holds `full`, the length of a whole chunk's row.

    On average 6 % of the work on lengths from 0 to 30 s is for what is filled up.
    """
    seconds, found = 1.0, []
    while (length := _whole_frames(round(seconds * WAV_RATE) + PADDING)) < full:
        found.append(length)
        seconds += next((step for end, step in _STEPS if seconds < end), seconds / 10)
    return (*found, _whole_frames(full))


def _whole_frames(length: int) -> int:
    return -(-length // FRAME) * FRAME


class Row(NamedTuple):
    """One row to be run, and where its result goes: (t,) as long as it is."""

    wav: Float[np.ndarray, " t"]
    place: Place
    result: Future[np.ndarray]


class RowRunner:
    """Runs rows; this one at once, in the calling thread."""

    ahead = 0
    """How many chunks should be submitted before the first of them is waited for."""

    def __init__(self, model: Model | RowModel, full: int) -> None:
        """Take a model, and the length in samples of a whole chunk's row."""
        self.model, self.full = model, full
        self._buckets = bucket_lengths(full)
        self.shapes: set[tuple[int, int, bool]] = set()
        """Rows and samples of the calls so far, and whether they had lengths; as many programs were compiled."""

    def submit(self, wavs: Sequence[np.ndarray], places: Sequence[Place]) -> list[Future[np.ndarray]]:
        """Give rows (t,) of one chunk; their results have the same lengths."""
        rows = [Row(wav, place, Future()) for wav, place in zip(wavs, places, strict=True)]
        size = self.model.batch if isinstance(self.model, RowModel) else len(rows)
        for begin in range(0, len(rows), max(1, size)):
            self.run(rows[begin : begin + size])
        return [row.result for row in rows]

    def length(self, row: int) -> int:
        """What a row of this length is filled up to."""
        model = self.model
        if row == self.full or not isinstance(model, RowModel) or not (model.compiles or model.batch > 1):
            return row
        return next(length for length in self._buckets if length >= row)

    def run(self, rows: Sequence[Row]) -> None:
        """One call for rows that are filled up to one length; fulfils their results, or fails them."""
        try:
            for row, out in zip(rows, self._call(rows), strict=False):
                row.result.set_result(out[: len(row.wav)])
        except BaseException as error:
            for row in rows:
                if not row.result.done():
                    row.result.set_exception(error)

    def _call(self, rows: Sequence[Row]) -> np.ndarray:
        model, lengths = self.model, np.array([len(row.wav) for row in rows])
        places, same = [row.place for row in rows], bool((lengths == lengths[0]).all())
        if not isinstance(model, RowModel):
            wav = np.stack([row.wav for row in rows])
            return self._checked(model(wav), wav.shape)
        # A compiled model always gets as many rows, the missing ones silent, and as long as their bucket is.
        count, length = len(rows), int(lengths.max()) if same else _whole_frames(int(lengths.max()))
        if model.compiles:
            count, length = model.batch, self.length(len(rows[0].wav))
        wav = np.zeros((count, length), np.float32)
        for row, target in zip(rows, wav, strict=False):
            target[: len(row.wav)] = row.wav
        missing = count - len(rows)
        places += [Place(0, 0)] * missing
        # One program for each bucket: with lengths, unless all rows are whole chunks.
        alone = same and (lengths[0] == self.full or not model.compiles)
        filled = None if alone else np.append(lengths, np.full(missing, length))
        self.shapes.add((count, length, filled is not None))
        return self._checked(model(wav, filled, places), wav.shape)

    def _checked(self, out: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if np.shape(out) != shape:
            raise ValueError(f"the model returned shape {np.shape(out)} for {shape}")
        return np.asarray(out)


@dataclass
class _Waiting:
    """Rows that wait to be run, by the length they are filled up to."""

    rows: dict[int, deque[tuple[int, Row]]] = field(default_factory=dict)
    added: int = 0

    def add(self, length: int, row: Row) -> None:
        self.rows.setdefault(length, deque()).append((self.added, row))
        self.added += 1

    def take(self, count: int) -> list[Row]:
        """Rows of the fullest length; of several that are as full, of the one that waits longest."""
        queues = self.rows
        length = max(queues, key=lambda length: (min(count, len(queues[length])), -queues[length][0][0]))
        queue = queues[length]
        taken = [queue.popleft()[1] for _ in range(min(count, len(queue)))]
        if not queue:
            del self.rows[length]
        return taken

    def most(self) -> int:
        """Rows of the fullest length."""
        return max(map(len, self.rows.values()), default=0)


class SharedRunner(RowRunner):
    """Runs the rows that several threads submit, in a thread of its own; use it as a context manager.

    While it computes, the others read and write. When it is left, rows that still wait are cancelled.
    """

    PATIENCE = 0.05
    """Seconds that a call waits for more rows than it has."""

    def __init__(self, model: Model | RowModel, full: int) -> None:
        """See `RowRunner`."""
        super().__init__(model, full)
        self.batch = model.batch if isinstance(model, RowModel) else 1
        self.ahead = self.batch
        self._waiting, self._changed, self._closed = _Waiting(), Condition(), False
        self._thread = Thread(target=self._work, name="parivox-rows", daemon=True)

    def submit(self, wavs: Sequence[np.ndarray], places: Sequence[Place]) -> list[Future[np.ndarray]]:
        """Give rows (t,) of one chunk; their results have the same lengths.

        Raises:
            CancelledError: the runner has been left.
        """
        rows = [Row(wav, place, Future()) for wav, place in zip(wavs, places, strict=True)]
        with self._changed:
            if self._closed:
                raise CancelledError
            for row in rows:
                self._waiting.add(self.length(len(row.wav)), row)
            self._changed.notify_all()
        return [row.result for row in rows]

    def _work(self) -> None:
        while rows := self._next():
            self.run(rows)

    def _next(self) -> list[Row]:
        """Rows for the next call; none when the runner is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting.rows)
            self._changed.wait_for(
                lambda: self._closed or self._waiting.most() >= self.batch,
                self.PATIENCE if self.batch > 1 else 0,
            )
            return [] if self._closed else self._waiting.take(self.batch)

    def __enter__(self) -> SharedRunner:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closed = True
            for queue in self._waiting.rows.values():
                for _, row in queue:
                    row.result.cancel()
            self._changed.notify_all()
        self._thread.join()
