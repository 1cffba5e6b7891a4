"""The endless stream of training batches, and the validation batches.

Record i of the stream is a function of (seed, i, files) alone: grain shuffles the speech files anew in
every epoch, gives each record its own generator (Philox, keyed by the seed, counted by i), and workers
share out the records before they are made; batches are put together afterwards. So the number of workers
and the place where a run resumes change nothing.

The ranks of a run read one stream together: of every global batch of `batch_size * ranks` records, rank r takes
the r-th block of `batch_size` rows. So the blocks of all ranks, in order, are the batch that one rank would read.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from parivox.data.batch import BadFiles, TrainBatch, stack
from parivox.data.dataset import ItemMaker, Record
from parivox.data.index import DataFiles, index_files
from parivox.data.praat import require_praat
from parivox.data.workers import drain, hidden_main_module, settle_flags, start_worker, worker_count
from parivox.errors import ConfigError
from parivox.hparams import HParams

MAX_SEED = 2**32 - 1

AHEAD = 2
"""Batches made ahead of the training step."""


class BatchStream:
    """Iterator of `TrainBatch`; close it, or use it as a context manager.

    Attributes:
        skipped: path -> reason of every file that did not decode so far.
        position: records consumed so far, by all ranks.
    """

    def __init__(self, dataset: Any, bad: BadFiles, start: int, workers: int, batch_size: int, ranks: int):
        """Made by `open_stream`; `dataset` is a grain `IterDataset` of this rank's records."""
        self.position = start
        self._bad = bad
        self._batch_size, self._workers, self._ranks = batch_size, workers, ranks
        self._source: list[Any] = [iter(dataset)]
        # Also runs when the stream is forgotten or the program ends; grain's clean-up comes too late then.
        self._closer = weakref.finalize(self, _close, self._source)
        self._ready: deque[Record] = deque()
        self._started = False

    @property
    def skipped(self) -> dict[str, str]:
        """Path -> reason of every file that did not decode so far."""
        return self._bad.skipped

    def __iter__(self) -> BatchStream:
        """The stream itself."""
        return self

    def __next__(self) -> TrainBatch:
        """The next batch.

        Raises:
            DataError: more than 5 % of the files of a folder do not decode.
            ValueError: the stream is closed.
        """
        if not self._closer.alive:
            raise ValueError("the stream is closed")
        self._start()
        while len(self._ready) < self._batch_size:
            self._ready.append(next(self._source[0]))
        self.position += self._batch_size * self._ranks
        batch = stack([self._ready.popleft() for _ in range(self._batch_size)], self.position)
        self._bad.add(batch.skipped)
        return batch

    def close(self) -> None:
        """End the workers; may be called twice."""
        self._closer()
        self._ready.clear()

    def __enter__(self) -> BatchStream:
        """The stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _start(self) -> None:
        # Each worker starts at the latest when its first record is asked for.
        if self._workers and not self._started:
            with hidden_main_module():
                self._ready.extend(next(self._source[0]) for _ in range(self._workers))
        self._started = True


def open_stream(
    hp: HParams,
    *,
    seed: int,
    files: DataFiles | None = None,
    start: int = 0,
    workers: int | None = None,
    batch_size: int | None = None,
    rank: int = 0,
    ranks: int = 1,
    message: Callable[[str], None] = print,
) -> BatchStream:
    """Open the training stream, or one rank's share of it.

    Args:
        hp: folders, crop length, augmentation and mixing.
        seed: 0 to 2^32 - 1; decides every draw.
        files: of `index_files`, where they are listed already; None lists them.
        start: records of all ranks to leave out, the `position` of a checkpoint; any number of ranks may have made it.
        workers: processes that make the data, taken as it is; 0 is a thread of this process. None takes
            `hp.nj`, capped at the CPUs there are.
        batch_size: rows of a batch of this rank; None takes `hp.batch_size_per_gpu`. The same for all ranks.
        rank: number of this process among those that read the stream together.
        ranks: processes that read the stream together.
        message: gets one line for each thing the user should know.

    Raises:
        ConfigError: an argument makes no sense, or Praat is asked for and missing.
        DataError: a folder is missing, empty or too small.
    """
    batch_size = hp.batch_size_per_gpu if batch_size is None else batch_size
    _check(seed, start, workers, batch_size)
    if not 0 <= rank < ranks:
        raise ConfigError(f"rank is {rank} of {ranks} ranks; use 0 to {ranks - 1}, and at least one rank")
    require_praat(hp.praat_augment_prob)
    files = files or index_files(hp)
    count = worker_count(hp.nj, message) if workers is None else workers
    dataset = _dataset(hp, files, seed, start, count, batch_size, rank, ranks)
    return BatchStream(dataset, BadFiles(files, message), start, count, batch_size, ranks)


def validation_batches(
    hp: HParams,
    *,
    seed: int,
    batch_size: int,
    files: DataFiles | None = None,
    message: Callable[[str], None] = print,
) -> list[TrainBatch]:
    """The ten held-out files as batches; the same items at every call with the same seed and files.

    Item k begins with the k-th held-out file; one fixed room and one fixed reverb stand for all.

    Args:
        hp: as for `open_stream`.
        seed: decides crops, noises and mixing weights; not the choice of files.
        batch_size: rows of a batch; the last one is smaller when 10 is not a multiple.
        files: as for `open_stream`.
        message: gets one line for each file that does not decode.

    Raises:
        ConfigError: an argument makes no sense.
        DataError: as `open_stream`, or more than 5 % of a folder's files do not decode.
    """
    _check(seed, 0, 0, batch_size)
    files = files or index_files(hp)
    make, bad = ItemMaker(hp, files, validation=True), BadFiles(files, message)
    records = [make(path, np.random.default_rng([seed, k])) for k, path in enumerate(files.held_out.files)]
    batches = []
    for begin in range(0, len(records), batch_size):
        rows = records[begin : begin + batch_size]
        batches.append(stack(rows, begin + len(rows)))
        bad.add(batches[-1].skipped)
    return batches


@dataclass(frozen=True)
class _RankShare:
    """Which records of the stream a rank reads; grain asks for (number of the data set, index in it).

    A class of grain's own would be the base, were grain not imported so late.
    """

    records: int
    rows: int
    rank: int
    ranks: int

    def __len__(self) -> int:
        return self.records // (self.rows * self.ranks) * self.rows

    def __getitem__(self, index: int) -> tuple[int, int]:
        batch, row = divmod(index, self.rows)
        return 0, (batch * self.ranks + self.rank) * self.rows + row


def _close(source: list[Any]) -> None:
    # The iterator is let go as well: were it deleted at the end of the program, grain would complain.
    while source:
        iterator = source.pop()
        drain(iterator)
        iterator.close()


def _dataset(
    hp: HParams,
    files: DataFiles,
    seed: int,
    start: int,
    workers: int,
    batch_size: int,
    rank: int,
    ranks: int,
) -> Any:
    """Grain's pipeline of one rank's records from `start` on."""
    # Imported here: grain imports jax where it is installed, and only a stream needs to wait for that.
    import grain

    settle_flags()
    paths = grain.MapDataset.source(files.train.files).seed(seed).shuffle().repeat()
    records = paths.random_map(ItemMaker(hp, files))[start:]
    if ranks > 1:
        share: Any = _RankShare(len(records), batch_size, rank, ranks)
        records = grain.MapDataset.select_from_datasets([records], share)
    ahead = AHEAD * batch_size
    if not workers:
        return records.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead))
    each = max(1, -(-ahead // workers) // 2)  # twice: in the worker's queue and in this process
    made = records.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=each)
    return made.mp_prefetch(options, worker_init_fn=start_worker)


def _check(seed: int, start: int, workers: int | None, batch_size: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed is {seed}; use 0 to {MAX_SEED}")
    if start < 0:
        raise ConfigError(f"start is {start}; a position in the data stream is 0 or more")
    if workers is not None and workers < 0:
        raise ConfigError(f"workers is {workers}; use 0 (no worker process) or more")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; use 1 or more")
