"""Sound of any length on its way into a file, on disk instead of in memory.

How far a file must be scaled down is known when all of its samples are, so they wait in a nameless file beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float

from parivox.audio import BLOCK
from parivox.errors import AudioError


class Spool:
    """Samples that are appended block by block and then read in order; a context manager.

    The system frees the space when the block ends, and when the process is killed.

    Attributes:
        frames: samples of each channel so far.
        peak: largest magnitude so far.
    """

    def __init__(self, beside: Path, channels: int) -> None:
        """An empty spool in the folder of `beside`, the file that it is for, or in that which this will be made in.

        Raises:
            AudioError: nothing can be written there.
        """
        self.frames, self.peak = 0, 0.0
        self._path, self._channels = beside, channels
        try:
            folder = next(path for path in beside.absolute().parents if path.is_dir())
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise self._refused(error) from error

    def append(self, block: Float[np.ndarray, "c t"]) -> None:
        """Append samples, kept as float32.

        Raises:
            AudioError: the disk is full.
        """
        try:
            self._file.write(np.ascontiguousarray(block.T, np.float32).tobytes())
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error
        self.frames += block.shape[1]
        self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))

    def blocks(self, size: int = BLOCK) -> Iterator[Float[np.ndarray, "c t"]]:
        """All samples from the first one on, so many at a time."""
        self._file.seek(0)
        while data := self._file.read(size * self._channels * 4):
            yield np.frombuffer(data, np.float32).reshape(-1, self._channels).T

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _refused(self, error: OSError) -> AudioError:
        return AudioError(
            f"{self._path}: cannot be written ({error.strerror}); check that the folder is writable and the disk has"
            " space for its samples as float32"
        )
