"""Decode with libsndfile (through soundfile): wav, flac, ogg, mp3, aiff and the like.

Whatever is wrong with a file is one `AudioError` line, and libmpg123's remarks are kept from the standard error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from jaxtyping import Float

from parivox.audio_formats import MAX_RATE, AudioInfo
from parivox.errors import AudioError
from parivox.quiet import stderr_closed

VORBIS_PAGE = 2**20
"""An Ogg page holds at most 255 packets of at most 4096 samples."""

STEP = 65_536
"""Samples that are decoded at once on the way to a later one."""

_NOT_MPEG = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b"caff")


def probe_sound(path: Path, head: bytes) -> AudioInfo:
    """Rate, channels, length and coding, from the header.

    Args:
        path: a file.
        head: its first bytes.

    Raises:
        AudioError: it cannot be decoded, or its header makes no sense or shows that it is truncated.
    """
    with _opened(path, head) as (_, info):
        return info


def read_sound(
    path: Path, head: bytes, start: int = 0, count: int | None = None
) -> tuple[Float[np.ndarray, "c t"], int]:
    """All samples or some, and the rate in Hz; the file is opened once, for MP3 is searched to its end each time.

    Args:
        path: a file.
        head: its first bytes.
        start: as `sound_blocks`.
        count: as `sound_blocks`.

    Raises:
        AudioError: as `sound_blocks`, or the memory does not hold them all.
    """
    with _opened(path, head) as (file, info), _quiet(head):
        end = checked_end(path, info, start, count)
        with _errors(path):
            _seek(file, start)
        with memory_errors(path, info):
            return _read(path, file, end - start, start), info.rate


def sound_blocks(
    path: Path, head: bytes, size: int, start: int = 0, count: int | None = None
) -> Iterator[Float[np.ndarray, "c n"]]:
    """The samples in blocks; between them the standard error is open.

    Args:
        path: a file.
        head: its first bytes.
        size: samples of each channel in a block; the last may be shorter.
        start: the first sample.
        count: samples to read at most; None reads to the end.

    Yields:
        Blocks (c, n) float32, n at least 1; nothing looks for NaN.

    Raises:
        AudioError: as `probe_sound`; or `start` lies beyond the end, or fewer samples decode than the header
            promises.
    """
    with _opened(path, head) as (file, info):
        end = checked_end(path, info, start, count)
        with _quiet(head), _errors(path):
            _seek(file, start)
        for begin in range(start, end, size):
            with _quiet(head):  # not around the yield: whoever takes the block may write on stderr
                block = _read(path, file, min(size, end - begin), begin)
            yield block


def _read(path: Path, file: sf.SoundFile, count: int, start: int) -> np.ndarray:
    """The next samples (c, count); `start` is the number of the first."""
    with _errors(path):
        samples = file.read(count, dtype="float32", always_2d=True)
    if len(samples) < count:
        raise AudioError(
            f"{path}: truncated, its header promises {file.frames} samples and decoding stopped at "
            f"{start + len(samples)}; copy it again"
        )
    return np.ascontiguousarray(samples.T)


def checked_end(path: Path, info: AudioInfo, start: int, count: int | None) -> int:
    """The sample behind the last one of `count` from `start` on.

    Raises:
        AudioError: there is no sample `start`.
    """
    if not 0 <= start < info.frames:
        raise AudioError(f"{path}: has no sample {start}, it holds {info.frames}; start earlier")
    return info.frames if count is None else min(start + count, info.frames)


@contextmanager
def memory_errors(path: Path, info: AudioInfo) -> Iterator[None]:
    """Turn what NumPy raises for an array that is too large into AudioError."""
    try:
        yield
    except (MemoryError, ValueError) as error:  # ValueError: more than any memory could hold
        raise AudioError(
            f"{path}: its header promises {info.frames} samples, more than the memory holds; split it first"
        ) from error


def error_reason(error: Exception) -> str:
    """What libsndfile says, in brackets, where that helps; its text for a broken MP3 is about pipes."""
    text = str(getattr(error, "error_string", "")).removeprefix("Error :").strip(" .")
    return f" ({text})" if text and "regular file" not in text else ""


def _quiet(head: bytes) -> AbstractContextManager[None]:
    """What every call of libsndfile on a file with these first bytes must run in."""
    return nullcontext() if head[:4] in _NOT_MPEG else stderr_closed()


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn what libsndfile raises into AudioError."""
    try:
        yield
    except (sf.LibsndfileError, TypeError) as error:  # TypeError: soundfile takes *.raw for headerless
        raise AudioError(
            f"{path}: cannot be decoded{error_reason(error)}, it is truncated, damaged or not audio; "
            "give a whole WAV, FLAC, OGG or MP3 file"
        ) from error


@contextmanager
def _opened(path: Path, head: bytes) -> Iterator[tuple[sf.SoundFile, AudioInfo]]:
    """An open file with its checked header; the decoder is silenced when it opens and closes."""
    with _quiet(head), _errors(path):
        name: Any = os.fsencode(path)  # soundfile takes bytes too, and itself refuses names that are no UTF-8
        file = sf.SoundFile(name)
    try:
        yield file, _checked_info(path, file)
    finally:
        with _quiet(head):
            file.close()


def _checked_info(path: Path, file: sf.SoundFile) -> AudioInfo:
    """The header of an open file, refused when it makes no sense or promises more than the file holds."""
    info = AudioInfo(file.samplerate, file.channels, file.frames, file.format, file.subtype)
    if not 0 < info.rate <= MAX_RATE:
        raise AudioError(
            f"{path}: its sample rate is {info.rate} Hz, expected 1 to {MAX_RATE}; save it with the true one"
        )
    if info.frames <= 0:
        raise AudioError(f"{path}: holds no samples; record or copy it again")
    if info.frames >= 2**40:
        raise AudioError(f"{path}: its header gives no length; convert it to a complete file first")
    _refuse_torn(path, file.extra_info)
    return info


def _refuse_torn(path: Path, log: str) -> None:
    """Raise where libsndfile's log says that a WAV or Ogg file ends too early; it would just read less.

    A WAV written to a pipe carries a placeholder for its size (0, or about 2 or 4 GiB): that is no tear.
    """
    sizes = re.search(r"^\s*data : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if sizes:
        promised, held = int(sizes[1]), int(sizes[2])
        if held < promised < 2**31 - 2**16:
            raise AudioError(
                f"{path}: truncated, its header promises {promised} bytes of samples and {held} are there; "
                "copy it again"
            )
    if "lacks an end-of-stream" in log and "Junk after the last page" in log:
        raise AudioError(f"{path}: truncated, the file ends inside an Ogg page; copy it again")


def _seek(file: sf.SoundFile, start: int) -> None:
    """Go to a sample.

    libsndfile misplaces a seek into the last page of an Ogg file (by hundreds of samples, measured
    with libsndfile 1.2.2), so the way there is decoded from a point before any such page.
    """
    if not start:
        return
    safe = start if file.format != "OGG" else max(0, min(start, file.frames - VORBIS_PAGE))
    if safe:
        file.seek(safe)
    while safe < start:
        step = len(file.read(min(STEP, start - safe), dtype="float32"))
        if not step:
            return  # the read that follows comes back short and is reported as truncated
        safe += step
