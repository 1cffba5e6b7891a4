"""Audio files in and out, resampling and peak normalisation.

Files are decoded and encoded by libsndfile (`parivox.sndfile`), decoded by FFmpeg where libsndfile cannot
(`parivox.media`), and resampled by soxr. Arrays are (channel, sample) float32 in full scale -1 to 1. Whatever is
wrong with a file is one `AudioError` line.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from jaxtyping import Float

from parivox.atomic import replacing
from parivox.audio_formats import (
    DEFAULT_SUBTYPES,
    FLOAT_SUBTYPES,
    INTEGER_BITS,
    MAX_RATE,
    AudioInfo,
    check_writable,
    output_format,
)
from parivox.errors import AudioError
from parivox.features import NORMALIZE_EPS
from parivox.media import HEAD_BYTES, media_demuxer, media_frames, probe_media, regroup
from parivox.sndfile import (
    checked_end,
    error_reason,
    memory_errors,
    probe_sound,
    read_sound,
    sound_blocks,
)

BLOCK = 65_536  # frames per write: libsndfile crashes on very long single writes of Vorbis
WAV_BYTES = 2**32 - 2**16  # beyond this a WAV header overflows and RF64 is written
SHORT_WRITE = "not all samples were stored"


def _head(path: Path) -> bytes:
    """The first bytes, or the error that a path deserves before any decoder sees it."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{path}: is a folder; name an audio file")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
            raise AudioError(f"{path}: is a pipe or device, not a file; save the sound as a file first")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error
    if not head:
        raise AudioError(f"{path}: the file is empty (0 bytes); copy or record it again")
    return head


def probe(path: str | Path) -> AudioInfo:
    """Rate, channels, length and coding of an audio file.

    libsndfile's files say it in their headers. Others (`parivox.media`) are decoded once to be counted.

    Raises:
        AudioError: the file is missing, empty, not audio, has no samples or an absurd rate, is seen to be
            truncated, or needs the extra `media`.
    """
    path = Path(path)
    head = _head(path)
    demuxer = media_demuxer(path, head)
    return probe_media(path, demuxer) if demuxer else probe_sound(path, head)


def read_audio(
    path: str | Path, start: int = 0, frames: int | None = None
) -> tuple[Float[np.ndarray, "c t"], int]:
    """Decode a file, or a part of it.

    Args:
        path: any file that libsndfile or, with the extra `media`, FFmpeg decodes, recognised by its content.
        start: first sample, from 0.
        frames: samples to read; None, or more than there are, reads to the end.

    Returns:
        Samples (c, t) float32 at the file's own rate, and that rate in Hz.

    Raises:
        AudioError: as `probe`; or `start` lies beyond the end, fewer samples decode than the header
            promises, a sample is NaN or infinite, or the memory does not hold them all.
    """
    path = Path(path)
    head = _head(path)
    demuxer = media_demuxer(path, head)
    if demuxer is None:
        wav, rate = read_sound(path, head, start, frames)
        return _finite(path, wav), rate
    info = probe_media(path, demuxer)
    count = checked_end(path, info, start, frames) - start
    with memory_errors(path, info):
        wav = np.empty((info.channels, count), np.float32)
    done = 0
    for block in read_blocks(path, BLOCK, start, count):
        wav[:, done : done + block.shape[1]] = block
        done += block.shape[1]
    return wav, info.rate


def read_blocks(
    path: str | Path, frames: int = BLOCK, start: int = 0, count: int | None = None
) -> Iterator[Float[np.ndarray, "c n"]]:
    """Decode a file, or a part of it, in blocks, with memory for one.

    Args:
        path: as `read_audio`.
        frames: samples of each channel in a block, at least 1; the last block may be shorter.
        start: first sample, from 0.
        count: samples to read; None, or more than there are, reads to the end.

    Yields:
        Blocks (c, n) float32 at the file's own rate, together what `read_audio` returns.

    Raises:
        AudioError: as `read_audio`, when the block is reached that shows it.
    """
    path = Path(path)
    head = _head(path)
    if demuxer := media_demuxer(path, head):
        blocks = regroup(path, media_frames(path, demuxer), frames, start, count)
    else:
        blocks = sound_blocks(path, head, frames, start, count)
    yield from (_finite(path, block) for block in blocks)


def _finite(path: Path, block: np.ndarray) -> np.ndarray:
    """The samples, where they are all numbers."""
    if not np.isfinite(block).all():
        raise AudioError(f"{path}: holds samples that are NaN or infinite; export it again from its source")
    return block


def resample(wav: Float[np.ndarray, "... t"], rate_in: int, rate_out: int) -> Float[np.ndarray, "... t2"]:
    """Resample with soxr's "HQ" filter (linear phase, delay compensated).

    Args:
        wav: samples (..., t), float32 or float64.
        rate_in: rate of `wav` in Hz.
        rate_out: wanted rate in Hz.

    Returns:
        (..., t2) of the same dtype with t2 == round(t * rate_out / rate_in); `wav` itself when the
        rates are equal.

    Raises:
        AudioError: a rate is not between 1 and 768,000 Hz.
    """
    for rate in (rate_in, rate_out):
        if not 0 < rate <= MAX_RATE:
            raise AudioError(f"sample rate {rate} Hz is out of range; use 1 to {MAX_RATE}")
    if rate_in == rate_out:
        return wav
    length = round(wav.shape[-1] * rate_out / rate_in)
    out = np.zeros((*wav.shape[:-1], length), wav.dtype)
    for index in np.ndindex(wav.shape[:-1]):  # row by row: any number of rows, no interleaved copy of all
        row = soxr.resample(np.ascontiguousarray(wav[index]), rate_in, rate_out, "HQ")[:length]
        out[index][: len(row)] = row
    return out


def peak_normalize(wav: Float[np.ndarray, "... t"]) -> Float[np.ndarray, "... t"]:
    """Return x / (max|x| + 1e-7) over the last axis, each row on its own; (..., t) to (..., t)."""
    return wav / (np.abs(wav).max(axis=-1, keepdims=True) + wav.dtype.type(NORMALIZE_EPS))


def write_audio(
    path: str | Path,
    wav: Float[np.ndarray, "c t"],
    rate: int,
    format: str | None = None,
    subtype: str | None = None,
) -> None:
    """Write a file whole or not at all: under a temporary name beside the target, synced, then renamed.

    Integer PCM is rounded to the nearest step of 2^(1-bits), so that what `read_audio` gives is
    written back bit for bit.

    Args:
        path: the target; its folder is made when needed.
        wav: samples (c, t), t at least 1, finite, within -1 to 1 unless the coding is float.
        rate: sample rate in Hz.
        format: `wav`, `flac`, `ogg` or `mp3`; None takes the suffix of `path`.
        subtype: libsndfile's sample coding; None takes 16 bits for WAV and FLAC.

    Raises:
        AudioError: the target cannot be written, the container cannot hold the rate, channels or
            coding, or the samples are empty, not finite or beyond full scale.
    """
    _check_samples(Path(path), wav, subtype or DEFAULT_SUBTYPES[output_format(Path(path), format)])
    write_blocks(path, [wav], wav.shape[0], wav.shape[1], rate, format, subtype)


def write_blocks(
    path: str | Path,
    blocks: Iterable[Float[np.ndarray, "c t"]],
    channels: int,
    frames: int,
    rate: int,
    format: str | None = None,
    subtype: str | None = None,
) -> None:
    """`write_audio` for samples that come in blocks (c, t) and need not fit into memory.

    Args:
        path: as there.
        blocks: of any lengths, together `frames` samples, finite and within full scale.
        channels: of each block.
        frames: samples of each channel.
        rate: as there.
        format: as there.
        subtype: as there.

    Raises:
        AudioError: as there, but the samples are not looked at; what the blocks raise goes through.
    """
    path = Path(path)
    container = output_format(path, format)
    subtype = subtype or DEFAULT_SUBTYPES[container]
    check_writable(path, container, subtype, rate, channels)
    if container == "WAV" and channels * frames * 8 > WAV_BYTES:
        container = "RF64"
    try:
        with replacing(path) as temporary:
            _encode(temporary, blocks, channels, rate, container, subtype)
            if _stored(temporary) != frames:
                raise OSError(0, SHORT_WRITE)
    except (OSError, sf.LibsndfileError, AssertionError) as error:
        # AssertionError is soundfile's way to say that fewer samples were stored than given.
        reason = getattr(error, "strerror", None) or error_reason(error).strip(" ()") or SHORT_WRITE
        raise AudioError(
            f"{path}: cannot be written ({reason}); check that the folder is writable and the disk has space"
        ) from error


def _stored(path: Path) -> int:
    """Samples of each channel in a file that was just written; 0 where nothing can be read from it."""
    try:
        return probe(path).frames
    except AudioError:
        return 0


def _check_samples(path: Path, wav: np.ndarray, subtype: str) -> None:
    """Refuse samples that a file cannot hold."""
    if not wav.shape[1]:
        raise AudioError(f"{path}: there are no samples to write")
    if not np.isfinite(wav).all():
        raise AudioError(f"{path}: not written, the samples hold NaN or infinite values")
    peak = float(np.abs(wav).max())
    if peak > 1 and subtype not in FLOAT_SUBTYPES:
        raise AudioError(f"{path}: not written, its peak {peak:.3g} is beyond full scale; scale it down to 1")


def _encode(
    path: Path, blocks: Iterable[np.ndarray], channels: int, rate: int, container: str, subtype: str
) -> None:
    """Encode in blocks that libsndfile can take."""
    name: Any = os.fsencode(path)  # soundfile takes bytes too, and itself refuses names that are no UTF-8
    with sf.SoundFile(name, "w", rate, channels, subtype, format=container) as file:
        for wav in blocks:
            for begin in range(0, wav.shape[1], BLOCK):
                file.write(_to_integers(wav[:, begin : begin + BLOCK].T, subtype))


def _to_integers(block: np.ndarray, subtype: str) -> np.ndarray:
    """The block as left-aligned int32 for integer PCM, as it is for other codings.

    libsndfile scales float by 2^15 - 1 when it writes and by 2^15 when it reads, which is not an identity.
    """
    bits = INTEGER_BITS.get(subtype)
    if bits is None:
        return np.ascontiguousarray(block)
    half = 2.0 ** (bits - 1)
    steps = np.clip(np.rint(block.astype(np.float64) * half), -half, half - 1).astype(np.int64)
    return np.ascontiguousarray((steps << (32 - bits)).astype(np.int32))
