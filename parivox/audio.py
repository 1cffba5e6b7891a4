"""Audio files in and out, resampling and peak normalisation.

Files are decoded and encoded by libsndfile (through soundfile) and resampled by soxr. Arrays are
(channel, sample) float32 in full scale -1 to 1. Whatever is wrong with a file is one `AudioError` line.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

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
    check_writable,
    output_format,
)
from parivox.errors import AudioError
from parivox.features import NORMALIZE_EPS

BLOCK = 65_536  # frames per write: libsndfile crashes on very long single writes of Vorbis
WAV_BYTES = 2**32 - 2**16  # beyond this a WAV header overflows and RF64 is written
SHORT_WRITE = "not all samples were stored"
VORBIS_PAGE = 2**20  # an Ogg page holds at most 255 packets of at most 4096 samples

_NOT_MPEG = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM")
_stderr_lock = threading.RLock()


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes:
        rate: sample rate in Hz.
        channels: number of channels.
        frames: samples per channel.
        format: libsndfile's name of the container, such as `WAV`.
        subtype: libsndfile's name of the sample coding, such as `PCM_16`.
    """

    rate: int
    channels: int
    frames: int
    format: str
    subtype: str


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Send file descriptor 2 to nowhere: libmpg123 writes its remarks there, past Python."""
    with _stderr_lock:
        try:
            saved = os.dup(2)
        except OSError:  # a process without standard error: nothing to protect
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nowhere)


def _magic(path: Path) -> bytes:
    """The first four bytes, or the error that a path deserves before any decoder sees it."""
    if path.is_dir():
        raise AudioError(f"{path}: is a folder; name an audio file")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error
    if not magic:
        raise AudioError(f"{path}: the file is empty (0 bytes); copy or record it again")
    return magic


@contextmanager
def _decoding(path: Path, mpeg: bool) -> Iterator[None]:
    """Errors of the decoder inside become AudioError; that of MPEG is kept quiet."""
    with _stderr_closed() if mpeg else nullcontext():
        try:
            yield
        except (sf.LibsndfileError, TypeError) as error:  # TypeError: soundfile takes *.raw for headerless
            raise AudioError(
                f"{path}: cannot be decoded{_reason(error)}, it is truncated, damaged or not audio; "
                "give a whole WAV, FLAC, OGG or MP3 file"
            ) from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[sf.SoundFile, AudioInfo]]:
    """An open file with its checked header."""
    with _decoding(path, _magic(path) not in _NOT_MPEG), sf.SoundFile(path) as file:
        yield file, _checked_info(path, file)


def _reason(error: Exception) -> str:
    """What libsndfile says, in brackets, where that helps; its text for a broken MP3 is about pipes."""
    text = str(getattr(error, "error_string", "")).removeprefix("Error :").strip(" .")
    return f" ({text})" if text and "regular file" not in text else ""


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


def probe(path: str | Path) -> AudioInfo:
    """Rate, channels, length and coding of an audio file, from its header.

    Raises:
        AudioError: the file is missing, empty, not audio, has no samples or an absurd rate, or its
            header shows that it is truncated.
    """
    with _opened(Path(path)) as (_, info):
        return info


def read_audio(
    path: str | Path, start: int = 0, frames: int | None = None
) -> tuple[Float[np.ndarray, "c t"], int]:
    """Decode a file, or a part of it.

    Args:
        path: any file that libsndfile decodes, recognised by its content.
        start: first sample, from 0.
        frames: samples to read; None, or more than there are, reads to the end.

    Returns:
        Samples (c, t) float32 at the file's own rate, and that rate in Hz.

    Raises:
        AudioError: as `probe`; or `start` lies beyond the end, fewer samples decode than the header
            promises, or a sample is NaN or infinite.
    """
    path = Path(path)
    with _opened(path) as (file, info):
        if not 0 <= start < info.frames:
            raise AudioError(f"{path}: has no sample {start}, it holds {info.frames}; start earlier")
        count = info.frames - start if frames is None else min(frames, info.frames - start)
        _seek(file, start)
        return _read(path, file, count, start), info.rate


def read_blocks(path: str | Path, frames: int = BLOCK) -> Iterator[Float[np.ndarray, "c t"]]:
    """Decode a whole file in blocks, with memory for one.

    Args:
        path: as `read_audio`.
        frames: samples of each channel in a block; the last may be shorter.

    Raises:
        AudioError: as `read_audio`, when the block is reached that shows it.
    """
    path = Path(path)
    mpeg = _magic(path) not in _NOT_MPEG
    with _decoding(path, mpeg):
        file = sf.SoundFile(path)
    with file:
        with _decoding(path, mpeg):
            count = _checked_info(path, file).frames
        for start in range(0, count, frames):
            with _decoding(path, mpeg):  # not around the yield: whoever takes the block may write on stderr
                block = _read(path, file, min(frames, count - start), start)
            yield block


def _read(path: Path, file: sf.SoundFile, count: int, start: int) -> np.ndarray:
    """The next samples (c, count); `start` is the number of the first."""
    samples = file.read(count, dtype="float32", always_2d=True)
    if len(samples) < count:
        raise AudioError(
            f"{path}: truncated, its header promises {file.frames} samples and decoding stopped at "
            f"{start + len(samples)}; copy it again"
        )
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds samples that are NaN or infinite; export it again from its source")
    return np.ascontiguousarray(samples.T)


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
        step = len(file.read(min(BLOCK, start - safe), dtype="float32"))
        if not step:
            return  # the read that follows comes back short and is reported as truncated
        safe += step


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
        reason = getattr(error, "strerror", None) or _reason(error).strip(" ()") or SHORT_WRITE
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
    with sf.SoundFile(path, "w", rate, channels, subtype, format=container) as file:
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
