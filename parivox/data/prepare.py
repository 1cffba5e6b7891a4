"""Decode a folder of audio into prepared data, as `parivox.data.prepared` describes it."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from parivox.atomic import TEMPORARY_SUFFIX, replacing, write_text
from parivox.audio import probe, read_blocks
from parivox.audio_formats import AUDIO_SUFFIXES
from parivox.data.batch import MAX_BAD_SHARE
from parivox.data.index import AUDIO_WORDS
from parivox.data.prepared import (
    BLOCK,
    CLIP,
    FULL_SCALE,
    STATE,
    TABLE,
    State,
    Table,
    read_state,
    shard_file,
)
from parivox.data.workers import available_cpus, hidden_main_module, start_worker
from parivox.errors import AudioError, ConfigError, DataError
from parivox.hparams import WAV_RATE
from parivox.listing import PathList, file_names
from parivox.run import locked
from parivox.stream import resampled

Samples = Literal["float32", "int16"]

SHARD_BYTES = 2**28
"""About what a shard takes; a longer file makes a longer one."""

GROWTH = {".wav": 1, ".flac": 2, ".ogg": 12, ".mp3": 12}
"""How much larger a file is decoded, roughly."""


@dataclass(frozen=True)
class Shard:
    """What one process makes at a time: the clips of some files."""

    folder: Path
    number: int
    source: Path
    names: tuple[str, ...]
    samples: Samples


@dataclass(frozen=True)
class Summary:
    """What was prepared.

    Attributes:
        clips: that decode.
        seconds: their length.
        made: files that were decoded now; the others were there.
        skipped: path -> why it did not decode.
    """

    clips: int
    seconds: float
    made: int
    skipped: dict[str, str]


def prepare(
    source: Path,
    folder: Path,
    samples: Samples = "float32",
    jobs: int | None = None,
    *,
    message: Callable[[str], None] = print,
    track: Callable[[Iterable[int], int], Iterable[int]] = lambda items, total: items,
) -> Summary:
    """Decode every audio file below `source` to 44,100 Hz, channels averaged, into shards in `folder`.

    A call goes on where another one was stopped, and brings a folder up to date when files were added, changed or
    removed: shards of which every file has its size and time of change are kept.

    Args:
        source: wav, flac, ogg and mp3 files, found as for training.
        folder: new, empty, or prepared of the same source before.
        samples: `int16` rounds to 16 bits; `float32` rounds nothing, and takes 16 bits where they hold a piece exactly.
        jobs: processes; by default one for each CPU.
        message: gets one line for each file that does not decode.
        track: hands on the numbers of files that were just decoded, given them and how many there will be.

    Raises:
        ConfigError: `folder` holds something else, or `jobs` is below 1.
        DataError: there is no audio, more than 5 % of the files do not decode, or a shard cannot be written.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; use 1 or more")
    source, folder = source.resolve(), folder.resolve()
    files = _files(source, folder)
    state = _state(source, folder, samples)
    with locked(folder, "a folder for prepared data", "preparing"):
        try:
            return _prepare(files, folder, state, samples, jobs or available_cpus(), message, track)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written ({error.strerror}); check its permissions and the space on the disk"
            ) from error


def _files(source: Path, folder: Path) -> PathList:
    if not source.is_dir():
        raise DataError(f"{source}: is not a folder; name a folder of audio ({AUDIO_WORDS})")
    if folder.is_relative_to(source) or source.is_relative_to(folder):
        raise ConfigError(f"{folder}: one of source and target lies in the other; name a folder outside it")
    files = PathList(source, file_names(source, AUDIO_SUFFIXES))
    if not files:
        raise DataError(f"{source}: holds no audio; put {AUDIO_WORDS} files there")
    return files


def _state(source: Path, folder: Path, samples: Samples) -> State:
    """The state of a folder that is not complete yet; refused where the folder holds something else."""
    wanted, found = State(str(source), samples), read_state(folder)
    if found is None and folder.exists() and (not folder.is_dir() or any(_not_hidden(folder))):
        raise ConfigError(f"{folder}: is there and holds something else; name a new folder")
    if found is not None and dataclasses.replace(found, complete=False) != wanted:
        raise ConfigError(
            f"{folder}: was prepared from {found.source} with --dtype {found.samples}; name another, or remove it"
        )
    return wanted


def _not_hidden(folder: Path) -> Iterator[str]:
    return (name for name in os.listdir(folder) if not name.startswith("."))


def _prepare(
    files: PathList,
    folder: Path,
    state: State,
    samples: Samples,
    jobs: int,
    message: Callable[[str], None],
    track: Callable[[Iterable[int], int], Iterable[int]],
) -> Summary:
    _write_state(folder, state)
    for left in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        left.unlink()
    kept = _kept(folder, files)
    there = {name for table in kept.values() for name in table.files.names()}
    missing = [name for name in files.names() if name not in there]
    shards = list(_shards(folder, files.folder, missing, max(kept, default=-1) + 1, samples))
    bad: dict[str, str] = {}
    for table in kept.values():
        _count_bad(table, bad, len(files), lambda line: None)

    def work() -> Iterator[int]:
        for shard in _made(shards, jobs):
            kept[shard.number] = Table.load(_table_file(folder, shard.number), files.folder)
            _count_bad(kept[shard.number], bad, len(files), message)
            yield from range(len(shard.names))

    for _ in track(work(), len(missing)):
        pass
    table = _joined(files, kept)
    table.save(folder / TABLE)
    _write_state(folder, dataclasses.replace(state, complete=True))
    seconds = float(table.clips["frames"].sum()) / WAV_RATE
    return Summary(len(files) - len(table.reasons), seconds, len(missing), bad)


def _write_state(folder: Path, state: State) -> None:
    write_text(folder / STATE, json.dumps(dataclasses.asdict(state), indent=2) + "\n")


def _table_file(folder: Path, number: int) -> Path:
    return shard_file(folder, number).with_suffix(".npz")


def _kept(folder: Path, files: PathList) -> dict[int, Table]:
    """The shards of which every file is as it was; the others are removed."""
    kept = {}
    for path in sorted(folder.glob("shard-*.*")):
        number = int(path.stem.partition("-")[2])
        if path.suffix == ".npz" and shard_file(folder, number).is_file():
            table = Table.load(path, files.folder)
            if all(
                path in files and _unchanged(path, clip)
                for path, clip in zip(table.files, table.clips, strict=True)
            ):
                kept[number] = table
    for path in folder.glob("shard-*.*"):
        if int(path.stem.partition("-")[2]) not in kept:
            path.unlink()
    return kept


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        reason = f"cannot be looked at ({error.strerror}); run parivox prepare again"
        raise DataError(f"{path}: {reason}") from error


def _unchanged(path: Path, clip: np.void) -> bool:
    found = _stat(path)
    return (found.st_size, found.st_mtime_ns) == (clip["size"], clip["mtime_ns"])


def _shards(
    folder: Path, source: Path, names: Iterable[bytes], number: int, samples: Samples
) -> Iterator[Shard]:
    """Files in their order, about SHARD_BYTES of samples in a shard."""
    group: list[str] = []
    size = 0
    for name in (name.decode("utf-8", "surrogateescape") for name in names):
        group.append(name)
        path = source / name
        size += GROWTH[path.suffix.lower()] * _stat(path).st_size
        if size >= SHARD_BYTES:
            yield Shard(folder, number, source, tuple(group), samples)
            group, size, number = [], 0, number + 1
    if group:
        yield Shard(folder, number, source, tuple(group), samples)


def _made(shards: Sequence[Shard], jobs: int) -> Iterator[Shard]:
    """Each shard once it is written."""
    jobs = min(jobs, len(shards))
    if jobs < 2:
        for shard in shards:
            make_shard(shard)
            yield shard
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, start_worker, (0, jobs)) as pool:
        try:
            with hidden_main_module():
                futures = {pool.submit(make_shard, shard): shard for shard in shards}
            for future in as_completed(futures):
                future.result()
                yield futures.pop(future)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def make_shard(shard: Shard) -> None:
    """Decode the files of a shard and write its samples, then its table; each appears whole or not at all."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    clips, reasons = np.zeros(len(shard.names), CLIP), {}
    with replacing(shard_file(shard.folder, shard.number)) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        record = 0
        for place, name in enumerate(shard.names):
            path, clip = shard.source / name, clips[place]
            clip["shard"], clip["record"] = shard.number, record
            found = _stat(path)  # before it is read: what changes meanwhile is then read again
            clip["size"], clip["mtime_ns"] = found.st_size, found.st_mtime_ns
            try:
                clip["rate"] = probe(path).rate
                frames = 0
                for block in _blocks(path, int(clip["rate"])):
                    writer.write(_packed(block, shard.samples))
                    frames, record = frames + len(block), record + 1
                if not frames:
                    raise AudioError(f"{path}: too short to use; remove it")
                clip["frames"] = frames
            except AudioError as error:
                reasons[place] = str(error).removeprefix(f"{path}: ")
        writer.close()
        reader = ArrayRecordReader(str(temporary))
        if reader.num_records() != record:
            raise OSError(errno.EIO, "not all samples were stored")
        reader.close()
    files = PathList(shard.source, shard.names)
    Table(files, clips, reasons).save(_table_file(shard.folder, shard.number))


def _blocks(path: Path, rate: int) -> Iterator[np.ndarray]:
    """A file's samples (t,) at 44,100 Hz, BLOCK in each but the last."""
    held = np.zeros(0, np.float32)
    # About BLOCK samples at a time when they are resampled.
    mono = (block.mean(axis=0)[None] for block in read_blocks(path, math.ceil(BLOCK * rate / WAV_RATE)))
    for rows in resampled(mono, rate, WAV_RATE):
        held = np.concatenate([held, rows[0]])
        while len(held) >= BLOCK:
            yield held[:BLOCK]
            held = held[BLOCK:]
    if len(held):
        yield held


def _packed(block: np.ndarray, samples: Samples) -> bytes:
    """A record: 16 bits where they hold every sample, or were asked for."""
    steps = np.clip(np.rint(block * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype("<i2")
    if samples == "int16" or np.array_equal(steps / np.float32(FULL_SCALE), block):
        return steps.tobytes()
    return block.astype("<f4").tobytes()


def _count_bad(table: Table, bad: dict[str, str], total: int, message: Callable[[str], None]) -> None:
    for place, reason in table.reasons.items():
        bad[str(table.files[place])] = reason
        message(f"skipped {table.files[place]}: {reason}")
    if len(bad) > MAX_BAD_SHARE * total:
        listing = "; ".join(f"{path}: {reason}" for path, reason in bad.items())
        raise DataError(
            f"{table.files.folder}: {len(bad)} of {total} files do not decode, more than {MAX_BAD_SHARE:.0%}; "
            f"mend or remove them: {listing}"
        )


def _joined(files: PathList, tables: dict[int, Table]) -> Table:
    """One table of all clips in the order of the files."""
    clips, reasons = np.zeros(len(files), CLIP), {}
    rows = {name: (table, k) for table in tables.values() for k, name in enumerate(table.files.names())}
    for place, name in enumerate(files.names()):
        table, k = rows[name]
        clips[place] = table.clips[k]
        if k in table.reasons:
            reasons[place] = table.reasons[k]
    return Table(files, clips, reasons)
