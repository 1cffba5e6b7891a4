"""A training batch, and the record of files that did not decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parivox.data.dataset import Record
from parivox.data.index import DataFiles
from parivox.errors import DataError

MAX_BAD_SHARE = 0.05
"""Share of a folder's files that may fail to decode before a run stops."""


@dataclass(frozen=True)
class TrainBatch:
    """What the training loop takes.

    Attributes:
        arrays: float32, as `parivox.backend.Batch` has them; sound is (b, t) at 44,100 Hz.
        records: the speech file of each row, for messages.
        skipped: (path, reason) of files that did not decode while making this batch.
        position: records consumed from the stream once this batch is used; a checkpoint stores it.
    """

    arrays: dict[str, np.ndarray]
    records: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    position: int


def stack(records: Sequence[Record], position: int) -> TrainBatch:
    """Rows to a batch; every array of the records gets a first axis of b."""
    arrays = {name: np.stack([record.arrays[name] for record in records]) for name in records[0].arrays}
    skipped = dict(pair for record in records for pair in record.skipped)
    return TrainBatch(arrays, tuple(record.source for record in records), tuple(skipped.items()), position)


class BadFiles:
    """Collects the files that do not decode, names each once, and stops a run that has too many.

    Attributes:
        skipped: path -> reason.
    """

    def __init__(self, files: DataFiles, message: Callable[[str], None]):
        """Start with none; `message` gets one line for each new file."""
        self.skipped: dict[str, str] = {}
        self._files, self._message = files, message

    def add(self, found: Sequence[tuple[str, str]]) -> None:
        """Take note of (path, reason) pairs.

        Raises:
            DataError: more than 5 % of the files of a folder do not decode; lists them.
        """
        new = {path: reason for path, reason in found if path not in self.skipped}
        self.skipped |= new
        for path, reason in new.items():
            self._message(f"skipped {path}: {reason}")
        if new:
            self._check()

    def _check(self) -> None:
        kinds = {path: self._files.kind(Path(path)) for path in self.skipped}
        for field, total in dict.fromkeys(kinds.values()):
            bad = [path for path, kind in kinds.items() if kind[0] == field]
            if len(bad) > MAX_BAD_SHARE * total:
                listing = "; ".join(f"{path}: {self.skipped[path]}" for path in bad)
                raise DataError(
                    f"{field}: {len(bad)} of {total} files do not decode, more than {MAX_BAD_SHARE:.0%}; "
                    f"mend or remove them: {listing}"
                )
