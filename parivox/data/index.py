"""Which files a run trains on, and which ten it keeps for validation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from parivox.audio_formats import find_audio
from parivox.errors import DataError
from parivox.hparams import EnhancerHParams, HParams

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
    """

    field: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class DataFiles:
    """Every file of a run. `bg` and `rir` are None when the run reads speech alone."""

    train: ClipPool
    held_out: ClipPool
    bg: ClipPool | None
    rir: ClipPool | None

    def kinds(self) -> dict[str, tuple[str, int]]:
        """Path -> (field of its folder, number of files in that folder)."""
        pools = [pool for pool in (self.bg, self.rir) if pool is not None]
        sizes = {"fg_dir": len(self.train.files) + len(self.held_out.files)}
        sizes |= {pool.field: len(pool.files) for pool in pools}
        every = [self.train, self.held_out, *pools]
        return {str(path): (pool.field, sizes[pool.field]) for pool in every for path in pool.files}


def index_files(hp: HParams) -> DataFiles:
    """List the folders of a run and split off the validation files.

    Raises:
        DataError: a folder is missing or holds no file, or there are fewer than 11 speech files.
    """
    train, held_out = split_held_out(_listing("fg_dir", hp.fg_dir), hp.fg_dir)
    if hp.load_fg_only or (isinstance(hp, EnhancerHParams) and hp.lcfm_training_mode == "ae"):
        return DataFiles(ClipPool("fg_dir", train), ClipPool("fg_dir", held_out), None, None)
    bg = ClipPool("bg_dir", _listing("bg_dir", hp.bg_dir))
    rir = ClipPool("rir_dir", _listing("rir_dir", hp.rir_dir))
    return DataFiles(ClipPool("fg_dir", train), ClipPool("fg_dir", held_out), bg, rir)


def split_held_out(files: tuple[Path, ...], folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Split speech files into those to train on and the ten to validate on.

    The ten are those whose path below `folder` has the smallest BLAKE2b digest. So the split depends on
    names alone, not on the seed: a file held out once is never trained on by a later run, and adding
    files moves few of them.

    Returns:
        (train, held_out), both in the order of `files`.

    Raises:
        DataError: fewer than 11 files.
    """
    if len(files) <= HELD_OUT:
        raise DataError(
            f"fg_dir: {folder} holds {len(files)} speech files, too little data for a validation split; "
            f"put at least {HELD_OUT + 1} there"
        )
    chosen = set(sorted(files, key=lambda path: (_digest(path, folder), path))[:HELD_OUT])
    train = tuple(path for path in files if path not in chosen)
    return train, tuple(path for path in files if path in chosen)


def _digest(path: Path, folder: Path) -> bytes:
    return hashlib.blake2b(path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape")).digest()


def _listing(field: str, folder: Path) -> tuple[Path, ...]:
    """The files of a folder, sorted; impulse responses may be .npy too."""
    words = AUDIO_WORDS + (" or npy" if field == "rir_dir" else "")
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{field}: {folder} {state}; set {field} to a folder of {CONTENTS[field]} ({words})")
    files = find_audio(folder)
    if field == "rir_dir":
        arrays = [path for path in folder.rglob("*") if path.suffix.lower() == ".npy" and path.is_file()]
        files = sorted([*files, *(path for path in arrays if not _hidden(path, folder))])
    if not files:
        raise DataError(f"{field}: {folder} holds no audio; put {CONTENTS[field]} there ({words})")
    return tuple(files)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
