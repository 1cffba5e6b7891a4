"""Which files a run trains on, and which ten it keeps for validation."""

from __future__ import annotations

import functools
import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from parivox.audio import probe, read_audio
from parivox.audio_formats import AUDIO_SUFFIXES, AudioInfo
from parivox.data.prepared import Prepared, open_prepared
from parivox.errors import DataError
from parivox.hparams import EnhancerHParams, HParams
from parivox.listing import PathList, file_names

HELD_OUT = 10
"""Speech files kept for validation."""

CONTENTS = {"fg_dir": "speech", "bg_dir": "noise", "rir_dir": "room impulse responses"}
"""Field of `HParams` -> what its folder holds."""

AUDIO_WORDS = "wav, flac, ogg or mp3"
"""`parivox.audio_formats.AUDIO_SUFFIXES`, with or without the extra `media`: a folder is the same data anywhere."""


@dataclass(frozen=True)
class ClipPool:
    """Files that stand for each other: when one does not decode, another of them is drawn.

    Attributes:
        field: the hyperparameter that named the folder, for messages.
        files: sorted paths, at least one.
        prepared: what is read in place of the files, where the folder is a prepared one.
    """

    field: str
    files: Sequence[Path]
    prepared: Prepared | None = None

    def info(self, path: Path) -> AudioInfo:
        """Rate and length of a clip.

        Raises:
            AudioError: it does not decode.
        """
        return _info(path) if self.prepared is None else self.prepared.info(path)

    def read(
        self, path: Path, start: int = 0, frames: int | None = None
    ) -> tuple[Float[np.ndarray, "c t"], int]:
        """Samples of a clip, all or some, and their rate; see `parivox.audio.read_audio`.

        Raises:
            AudioError: it does not decode.
            DataError: prepared data are damaged.
        """
        if self.prepared is None:
            return read_audio(path, start, frames)
        return self.prepared.read(path, start, frames)


@functools.lru_cache(maxsize=1 << 16)
def _info(path: Path) -> AudioInfo:
    # Each process reads each header once.
    return probe(path)


@dataclass(frozen=True)
class DataFiles:
    """Every file of a run. `bg` and `rir` are None when the run reads speech alone."""

    train: ClipPool
    held_out: ClipPool
    bg: ClipPool | None
    rir: ClipPool | None

    def kind(self, path: Path) -> tuple[str, int]:
        """(field of the folder that a path was listed in, number of files in that folder).

        Where folders overlap, a file counts as a room before a noise, and as a noise before speech.
        """
        for pool in (self.rir, self.bg):
            if pool is not None and path in pool.files:
                return pool.field, len(pool.files)
        return self.train.field, len(self.train.files) + len(self.held_out.files)


def index_files(hp: HParams) -> DataFiles:
    """List the folders of a run and split off the validation files.

    Raises:
        DataError: a folder is missing or holds no file, or there are fewer than 11 speech files.
    """
    speech, store = _listing("fg_dir", hp.fg_dir)
    train, held_out = (ClipPool("fg_dir", files, store) for files in split_held_out(speech))
    if hp.load_fg_only or (isinstance(hp, EnhancerHParams) and hp.lcfm_training_mode == "ae"):
        return DataFiles(train, held_out, None, None)
    bg = ClipPool("bg_dir", *_listing("bg_dir", hp.bg_dir))
    rir = ClipPool("rir_dir", *_listing("rir_dir", hp.rir_dir))
    return DataFiles(train, held_out, bg, rir)


def split_held_out(files: PathList) -> tuple[PathList, PathList]:
    """Split speech files into those to train on and the ten to validate on.

    The ten are those whose name below the folder has the smallest BLAKE2b digest. So the split depends on
    names alone, not on the seed: a file held out once is never trained on by a later run, and adding
    files moves few of them.

    Returns:
        (train, held_out), both in the order of `files`.

    Raises:
        DataError: fewer than 11 files.
    """
    if len(files) <= HELD_OUT:
        raise DataError(
            f"fg_dir: {files.folder} holds {len(files)} speech files, too little data for a validation split; "
            f"put at least {HELD_OUT + 1} there"
        )
    digests = ((hashlib.blake2b(name).digest(), index) for index, name in enumerate(files.names()))
    chosen = sorted(index for _, index in heapq.nsmallest(HELD_OUT, digests))
    rest = (name for index, name in enumerate(files.names()) if index not in chosen)
    return PathList(files.folder, rest), PathList(files.folder, map(files.name, chosen))


def _listing(field: str, folder: Path) -> tuple[PathList, Prepared | None]:
    """The files of a folder, sorted, and what is read in their place; impulse responses may be .npy too."""
    arrays = field == "rir_dir"
    words = AUDIO_WORDS + (" or npy" if arrays else "")
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{field}: {folder} {state}; set {field} to a folder of {CONTENTS[field]} ({words})")
    prepared = open_prepared(folder)
    if prepared is not None and arrays:
        raise DataError(
            f"{field}: {folder} is a prepared folder; rooms are read from their files, so name those"
        )
    if prepared is not None:
        return prepared.table.files, prepared
    files = PathList(folder, file_names(folder, (*AUDIO_SUFFIXES, ".npy") if arrays else AUDIO_SUFFIXES))
    if not files:
        raise DataError(f"{field}: {folder} holds no audio; put {CONTENTS[field]} there ({words})")
    return files, None
