"""Prepared data: what `parivox prepare` makes of a folder, and how a run reads it.

PREPARED/prepared.json                   what it was made of and how, and whether it is complete
PREPARED/clips.npz                       the table of all clips, in the order in which a folder lists its files
PREPARED/shard-00000.array_record        samples of the first clips, mono at 44,100 Hz, in pieces of BLOCK samples
PREPARED/shard-00000.npz                 their part of the table

A piece is one record: little-endian int16 where that holds its samples exactly, else float32; its length tells which.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from parivox.atomic import replacing
from parivox.audio_formats import AudioInfo
from parivox.errors import AudioError, DataError
from parivox.hparams import WAV_RATE
from parivox.listing import PathList

FORMAT = 1
"""Counts the changes after which older prepared folders cannot be read."""

STATE, TABLE = "prepared.json", "clips.npz"

BLOCK = 2**18
"""Samples of a record (5.9 s): a crop reads one, two or three of them and little that it does not need."""

FULL_SCALE = 2.0**15

CLIP = np.dtype(
    [
        ("frames", "<i8"),  # at 44,100 Hz; 0 where the file did not decode
        ("shard", "<i4"),
        ("record", "<i4"),  # the first one of the clip in its shard
        ("rate", "<i4"),  # of the file
        ("size", "<i8"),  # of the file, bytes
        ("mtime_ns", "<i8"),  # of the file
    ]
)

OPEN_SHARDS = 128
"""Shards that a process keeps open at most; each is a file."""


@dataclass(frozen=True)
class State:
    """What `prepared.json` says.

    Attributes:
        source: the folder of files, absolute.
        samples: `float32`, or `int16` where samples were rounded to 16 bits.
        complete: whether every file is there.
        rate: Hz.
        format: of this folder.
    """

    source: str
    samples: str
    complete: bool = False
    rate: int = WAV_RATE
    format: int = FORMAT


def read_state(folder: Path) -> State | None:
    """What a folder says of itself; None where it is no prepared one.

    Raises:
        DataError: the file is damaged, or another version of Parivox or another sample rate made it.
    """
    path = folder / STATE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        made = {name: values[name] for name in ("format", "rate")}
        if made != {"format": FORMAT, "rate": WAV_RATE}:
            raise DataError(
                f"{folder}: was prepared in format {made['format']} at {made['rate']} Hz, this version reads format"
                f" {FORMAT} at {WAV_RATE} Hz; remove it and run parivox prepare again"
            )
        return State(**{field.name: values[field.name] for field in dataclasses.fields(State)})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run parivox prepare again") from error


@dataclass(frozen=True)
class Table:
    """Clips with their names.

    Attributes:
        files: names below the source folder, sorted.
        clips: (n,) of `CLIP`.
        reasons: place of a clip that did not decode -> why.
    """

    files: PathList
    clips: np.ndarray
    reasons: Mapping[int, str]

    def save(self, path: Path) -> None:
        """Write a file whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        names = np.frombuffer(b"\0".join(self.files.names()), np.uint8)
        reasons = np.frombuffer(json.dumps(list(self.reasons.items())).encode(), np.uint8)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, names=names, clips=self.clips, reasons=reasons)

    @classmethod
    def load(cls, path: Path, source: Path) -> Table:
        """Read it again.

        Raises:
            DataError: it is missing or damaged.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                clips, names = held["clips"], held["names"].tobytes()
                reasons = {int(place): str(why) for place, why in json.loads(held["reasons"].tobytes())}
            files = PathList(source, names.split(b"\0") if len(clips) else [])
            if clips.dtype != CLIP or len(files) != len(clips):
                raise ValueError("its parts do not fit together")
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: is missing or damaged ({error}); run parivox prepare again") from error
        return cls(files, clips, reasons)


def shard_file(folder: Path, number: int) -> Path:
    """The samples of a shard."""
    return folder / f"shard-{number:05d}.array_record"


class Prepared:
    """The clips of a prepared folder, instead of the files that they were made of.

    Attributes:
        folder: the prepared folder.
        table: its clips; their paths are those of the files, which need not be there any more.
    """

    def __init__(self, folder: Path, table: Table) -> None:
        """Made by `open_prepared`."""
        self.folder, self.table = folder, table

    def info(self, path: Path) -> AudioInfo:
        """Length of a clip.

        Raises:
            AudioError: the file did not decode when the folder was prepared.
        """
        place = self._place(path)
        if place in self.table.reasons:
            raise AudioError(f"{path}: {self.table.reasons[place]}")
        return AudioInfo(WAV_RATE, 1, int(self.table.clips[place]["frames"]), "ARRAYRECORD", "PCM")

    def read(
        self, path: Path, start: int = 0, frames: int | None = None
    ) -> tuple[Float[np.ndarray, "1 t"], int]:
        """`parivox.audio.read_audio` of what the clip's file was decoded to.

        Raises:
            AudioError: as `info`.
            DataError: a shard is missing or damaged.
        """
        count = self.info(path).frames
        end = count if frames is None else min(start + frames, count)
        clip = self.table.clips[self._place(path)]
        first, last = start // BLOCK, max(start, end - 1) // BLOCK
        records = _records(self.folder, int(clip["shard"]), int(clip["record"]) + first, last - first + 1)
        pieces = [
            _samples(self.folder, int(clip["shard"]), record, min(BLOCK, count - (first + k) * BLOCK))
            for k, record in enumerate(records)
        ]
        wav = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return wav[None, start - first * BLOCK : end - first * BLOCK], WAV_RATE

    def _place(self, path: Path) -> int:
        place = self.table.files.find(path)
        if place is None:
            raise DataError(f"{path}: is no clip of {self.folder}; run parivox prepare again")
        return place


def open_prepared(folder: Path) -> Prepared | None:
    """A prepared folder, ready to be read; None where the folder holds files.

    Raises:
        DataError: it is not complete, or as `read_state` and `Table.load`.
    """
    state = read_state(folder)
    if state is None:
        return None
    if not state.complete:
        raise DataError(f"{folder}: is not complete; run: parivox prepare {state.source} {folder}")
    return Prepared(folder, Table.load(folder / TABLE, Path(state.source)))


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _reader(path: Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    # Crops lie anywhere: what follows one of them is not wanted.
    return ArrayRecordReader(str(path), options="readahead_buffer_size:0", file_reader_buffer_size=32_768)


def _records(folder: Path, shard: int, first: int, count: int) -> list[bytes]:
    path = shard_file(folder, shard)
    try:
        return _reader(path).read(list(range(first, first + count)))
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error


def _samples(folder: Path, shard: int, record: bytes, count: int) -> Float[np.ndarray, " t"]:
    if len(record) == 2 * count:
        return np.frombuffer(record, "<i2").astype(np.float32) / np.float32(FULL_SCALE)
    if len(record) == 4 * count:
        return np.frombuffer(record, "<f4").astype(np.float32, copy=False)
    raise _damaged(shard_file(folder, shard), f"a piece of {count} samples has {len(record)} bytes")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: is missing or damaged ({reason}); remove it and run parivox prepare again")
