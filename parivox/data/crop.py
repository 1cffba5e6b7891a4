"""Random pieces of audio files, and rooms, with another file in the place of one that does not decode."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from parivox.audio import peak_normalize, resample
from parivox.data.index import ClipPool
from parivox.errors import AudioError, DataError

Skips = dict[str, str]
"""Path of a file that did not decode -> why."""

MAX_TRIES = 20
"""Files in a row that may fail before the run stops; by then far more than 5 % of them are bad."""

MAX_PIECES = 100
"""Clips joined into one crop at most; what is still missing then stays silent."""

SILENT_PEAK = 1e-4
"""Below -80 dB of full scale there is nothing but dither."""

SILENT_TRIES = 8
"""Crops drawn when those before are silent, as padded clips are in places; the last is taken as it is."""

JOIN_FADE = 0.005
"""Seconds of fade on both sides of a joint, so that it does not click."""

Made = TypeVar("Made")


def draw(
    pool: ClipPool, first: Path | None, rng: np.random.Generator, skips: Skips, use: Callable[[Path], Made]
) -> tuple[Made, Path]:
    """Use one file of a pool, or another one when it does not decode.

    Args:
        pool: what to draw from.
        first: the file to begin with; None draws it.
        rng: the record's generator.
        skips: gets each file that failed, with the reason.
        use: what to do with the file; raises AudioError when it does not decode.

    Returns:
        (what `use` returned, the file it was given).

    Raises:
        DataError: 20 files in a row, or all of them, did not decode.
    """
    path = first if first is not None else pool.files[int(rng.integers(len(pool.files)))]
    failed: Skips = {}
    for _ in range(MAX_TRIES):
        try:
            return use(path), path
        except AudioError as error:
            failed[str(path)] = skips[str(path)] = str(error).removeprefix(f"{path}: ")
        if len(failed) == len(pool.files):
            break
        path = other_file(pool, path, rng)
    listing = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
    raise DataError(
        f"{pool.field}: {len(failed)} files drawn and none decoded; mend or remove them: {listing}"
    )


def other_file(pool: ClipPool, path: Path, rng: np.random.Generator) -> Path:
    """Another file of the pool than `path`, each equally likely; `path` itself when it is the only one."""
    others = len(pool.files) - 1
    if others < 1:
        return path
    chosen = pool.files[int(rng.integers(others))]
    # One index short of the list: the last file stands in for `path`, so that all others are equally likely.
    return pool.files[-1] if chosen == path else chosen


def random_crop(
    pool: ClipPool, first: Path | None, frames: int, rate: int, rng: np.random.Generator, skips: Skips
) -> tuple[Float[np.ndarray, " t"], Path]:
    """A random crop, mono, peak-normalised; a silent one is drawn anew, up to eight times.

    Channels are averaged, as in cleaning a file. A clip that is too short is followed by random crops of
    other clips of the pool, each peak-normalised and faded at the joint; silence fills the rest only when
    the pool has a single file.

    Args:
        pool: the clips of one split.
        first: the clip to begin with; None draws it.
        frames: length of the result at `rate`.
        rate: Hz of the result.
        rng: the record's generator.
        skips: gets each file that did not decode.

    Returns:
        ((t,) float32 with t = frames, the first clip that decoded).

    Raises:
        DataError: nothing decodes, see `draw`.
    """
    wav, source = _joined(pool, first, frames, rate, rng, skips)
    for _ in range(SILENT_TRIES - 1):
        if not _silent(wav):
            break
        wav, source = _joined(pool, first, frames, rate, rng, skips)
    return peak_normalize(wav), source


def _silent(wav: Float[np.ndarray, " t"]) -> bool:
    return bool(np.abs(wav).max() < SILENT_PEAK)


def _joined(
    pool: ClipPool, first: Path | None, frames: int, rate: int, rng: np.random.Generator, skips: Skips
) -> tuple[Float[np.ndarray, " t"], Path]:
    """One crop, made of several clips where the first is too short; see `random_crop`."""
    use = functools.partial(_piece, pool=pool, frames=frames, rate=rate, rng=rng)
    piece, source = draw(pool, first, rng, skips, use)
    pieces, path = [piece], source
    have = piece.shape[-1]
    while have < frames and len(pool.files) > 1 and len(pieces) < MAX_PIECES:
        use = functools.partial(_piece, pool=pool, frames=frames - have, rate=rate, rng=rng)
        piece, path = draw(pool, other_file(pool, path, rng), rng, skips, use)
        pieces.append(piece)
        have += piece.shape[-1]
    wav = pieces[0] if len(pieces) == 1 else join(pieces, round(JOIN_FADE * rate))
    return np.pad(wav, (0, frames - have)), source


def join(pieces: list[Float[np.ndarray, " _"]], fade: int) -> Float[np.ndarray, " t"]:
    """Chain clips, peak-normalised unless silent, with linear fades of `fade` samples around each joint."""
    out = []
    for k, piece in enumerate(pieces):
        n = min(fade, piece.shape[-1])
        ramp = (np.arange(n, dtype=piece.dtype) + 0.5) / max(n, 1)
        gain = np.ones_like(piece)
        if k > 0:
            gain[:n] *= ramp
        if k < len(pieces) - 1:
            gain[piece.shape[-1] - n :] *= ramp[::-1]
        out.append((piece if _silent(piece) else peak_normalize(piece)) * gain)
    return np.concatenate(out)


def _piece(
    path: Path, pool: ClipPool, frames: int, rate: int, rng: np.random.Generator
) -> Float[np.ndarray, " t"]:
    """At most `frames` samples at `rate` from a random place of a file; only those are decoded."""
    info = pool.info(path)
    need = math.ceil(frames * info.rate / rate)
    if info.frames > need:
        wav, rate_in = pool.read(path, start=int(rng.integers(info.frames - need + 1)), frames=need)
    else:
        wav, rate_in = pool.read(path)
    mono = resample(wav.mean(axis=0), rate_in, rate)[:frames]
    if not mono.size:
        raise AudioError(f"{path}: {info.frames} samples at {info.rate} Hz are too short to use; remove it")
    return mono
