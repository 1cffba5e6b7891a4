"""Decode what libsndfile cannot, such as m4a, mp4, webm and wma, with FFmpeg (through PyAV; the extra `media`).

A file is known by its first bytes, and FFmpeg is given the one demuxer they call for and no protocol but files:
a playlist with a false name opens nothing. Where the sound begins and ends is what the container says: FFmpeg
cuts the encoder's delay away, and the edit list of an MP4 cuts the end and puts silence before a late start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from parivox.audio_formats import MAX_RATE, AudioInfo, media_installed
from parivox.errors import AudioError

HEAD_BYTES = 36
"""How much of a file's beginning tells its container, and the coding within a CAF."""

LONGEST_LEAD = 3600
"""Seconds of silence before the sound that are believed of an edit list."""

SLACK = 0.25
"""Seconds by which a header may promise more than decodes: rounding, and frames that end behind the sound."""

PLANES = 8
"""PyAV (18.1) takes the memory behind the eighth plane of a frame for a ninth, and the process crashes."""

_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_MAGIC = {
    b"\x1aE\xdf\xa3": "matroska",
    b"0&\xb2u": "asf",
    b"\x0bw": "ac3",
    b"#!AMR": "amr",
    b"FLV\x01": "flv",
    b"MAC ": "ape",
    b"TTA1": "tta",
    b"wvpk": "wv",
}
_PLAIN_CAF = (b"lpcm", b"alaw", b"ulaw")
_ALAC_CAF = tuple(b"alac" + bytes((0, 0, 0, depth)) for depth in range(1, 5))  # FFmpeg itself writes depth 0
_DEEP = {"s16": "PCM_16", "s32": "PCM_24"}
_LOSSLESS = ("alac", "ape", "flac", "tta", "wavpack")
_HALF = {"u8": 7, "s16": 15, "s32": 31}


def media_demuxer(path: Path, head: bytes) -> str | None:
    """FFmpeg's name of the container that these first bytes begin; None is for libsndfile to try.

    Raises:
        AudioError: there is one, and the extra `media` is not installed.
    """
    found = _demuxer(head)
    if found and not media_installed():
        raise AudioError(f"{path}: is of a kind ({found}) that needs FFmpeg; pip install 'parivox[media]'")
    return found


def _demuxer(head: bytes) -> str | None:
    if head[4:8] in _BOXES:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"caff":
        return None if head[28:32] in _PLAIN_CAF or head[28:36] in _ALAC_CAF else "caf"
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:  # layer 0: ADTS and not MP3
        return "aac"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def probe_media(path: Path, demuxer: str) -> AudioInfo:
    """Rate, channels, length and coding, by decoding all of it once; remembered while the file does not change.

    Raises:
        AudioError: as `media_frames`.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error
    return _probed(path.absolute(), demuxer, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)
def _probed(path: Path, demuxer: str, _changed: int, _size: int) -> AudioInfo:
    decoder = _Decoder(path, demuxer)
    frames = sum(part.shape[1] for part in decoder)
    coding = _DEEP.get(decoder.sample_format, "") if decoder.codec in _LOSSLESS else ""
    return AudioInfo(decoder.rate, decoder.channels, frames, demuxer.upper(), coding or decoder.codec.upper())


def media_frames(path: Path, demuxer: str) -> Iterator[Float[np.ndarray, "c n"]]:
    """The first sound track, in pieces as they are decoded.

    Args:
        path: a file.
        demuxer: FFmpeg's name of its container, from `media_demuxer`.

    Yields:
        Samples (c, n) float32, n at least 1.

    Raises:
        AudioError: there is no sound, it cannot be decoded, its rate or channels make no sense or change on the
            way, or it ends before the length that the header promises.
    """
    return iter(_Decoder(path, demuxer))


def regroup(
    path: Path, parts: Iterator[np.ndarray], size: int, start: int = 0, frames: int | None = None
) -> Iterator[Float[np.ndarray, "c n"]]:
    """Cut pieces of any length into blocks.

    Args:
        path: what the pieces come from, for messages.
        parts: pieces (c, n).
        size: samples in each block; the last one may hold fewer.
        start: samples to leave out first.
        frames: samples to give at most; None gives all.

    Yields:
        Blocks (c, n), n at least 1.

    Raises:
        AudioError: the pieces end before `start`.
    """
    first = start
    left = math.inf if frames is None else frames
    kept: list[np.ndarray] = []
    held = 0
    for part in parts:
        skipped = min(start, part.shape[1])
        start -= skipped
        part = part[:, skipped : int(min(part.shape[1], skipped + left))]
        if not part.shape[1]:
            continue
        left -= part.shape[1]
        kept.append(part)
        held += part.shape[1]
        if held >= size:
            whole = np.concatenate(kept, axis=1)
            full = held - held % size
            yield from (whole[:, at : at + size] for at in range(0, full, size))
            kept, held = [whole[:, full:]], held - full
        if left <= 0:
            break
    if not kept:
        raise AudioError(f"{path}: has no sample {first}; start earlier")
    if held:
        yield np.concatenate(kept, axis=1)


class _Decoder:
    """Decodes one file; what it says of itself is known after the first piece."""

    def __init__(self, path: Path, demuxer: str) -> None:
        self.path, self.demuxer = path, demuxer
        self.rate = self.channels = 0
        self.codec = self.sample_format = ""

    def __iter__(self) -> Iterator[np.ndarray]:
        with self._opened() as (container, stream):
            self.codec = stream.codec_context.name.removesuffix("float")
            end, done = None, 0
            for frame in self._frames(container, stream):
                piece = self._samples(frame)
                if not done and self.demuxer == "mov":
                    lead = self._lead(frame)
                    end = self._end(stream)
                    for begin in range(0, lead, self.rate):
                        yield np.zeros((self.channels, min(self.rate, lead - begin)), np.float32)
                    done += lead
                piece = piece[:, : self._kept(frame, done, end)]
                done += piece.shape[1]
                if piece.shape[1]:
                    yield piece
            self._refuse_short(container, stream, done, end)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and its first sound track."""
        import av
        from av.codec.context import Flags2

        options = {"format_whitelist": self.demuxer, "protocol_whitelist": "file"}
        with self._errors():
            container = av.open(str(self.path.absolute()), options=options, metadata_errors="ignore")
        try:
            if not container.streams.audio:
                raise AudioError(f"{self.path}: holds no sound track; give a file with sound")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise AudioError(
                    f"{self.path}: its sound is in a coding that FFmpeg does not know; convert it first"
                )
            stream.codec_context.thread_count = 1
            if self.demuxer == "caf" and stream.codec_context.name == "alac":
                # Its last packet is short by itself, and FFmpeg would cut what a full one lacks a second time.
                stream.codec_context.flags2 |= Flags2.skip_manual
            yield container, stream
        finally:
            container.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what PyAV raises into AudioError."""
        from av.error import FFmpegError

        try:
            yield
        except (FFmpegError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
            reason = str(getattr(error, "strerror", None) or "").strip(" .").replace("\n", " ")
            raise AudioError(
                f"{self.path}: cannot be decoded{f' ({reason})' if reason else ''}, it is truncated or damaged; "
                "copy or export it again"
            ) from error

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """The decoded frames, none of them empty."""
        packets = container.demux(stream)
        while True:
            with self._errors():
                packet = next(packets, None)
                if packet is None:
                    return
                if packet.is_corrupt:
                    raise AudioError(f"{self.path}: truncated, it ends inside a packet; copy it again")
                frames = packet.decode()
            yield from (frame for frame in frames if frame.samples)

    def _samples(self, frame: Any) -> np.ndarray:
        """A frame as (c, n) float32; its rate and channels are checked."""
        rate, channels = frame.sample_rate, frame.layout.nb_channels
        if not self.rate:
            self.sample_format = frame.format.packed.name
            self.rate, self.channels = rate, channels
        if (rate, channels) != (self.rate, self.channels):
            raise AudioError(f"{self.path}: its rate or channels change on the way; convert it to WAV first")
        if not (0 < rate <= MAX_RATE and channels > 0):
            raise AudioError(
                f"{self.path}: says {rate} Hz and {channels} channels, which no sound has; export it again"
            )
        with self._errors():
            if frame.format.is_planar and channels >= PLANES:
                frame = self._packed(frame)
            data = frame.to_ndarray()
        if not frame.format.is_planar:
            data = data.reshape(-1, channels).T
        bits = _HALF.get(frame.format.packed.name)
        if bits is None:
            return np.ascontiguousarray(data, np.float32)
        middle = 128.0 if bits == 7 else 0.0
        return np.ascontiguousarray((data - middle) / 2.0**bits, np.float32)

    def _packed(self, frame: Any) -> Any:
        """The same samples, interleaved."""
        import av

        packed = av.AudioResampler(format=frame.format.packed.name).resample(frame)
        if len(packed) != 1 or packed[0].samples != frame.samples:
            raise ValueError("the interleaved frame has another length")
        return packed[0]

    def _lead(self, frame: Any) -> int:
        """Samples of silence before the first frame, by the edit list."""
        if frame.pts is None or frame.time_base is None or frame.pts <= 0:
            return 0
        lead = round(frame.pts * frame.time_base * self.rate)
        if lead > LONGEST_LEAD * self.rate:
            raise AudioError(f"{self.path}: says it begins {lead // self.rate} s late; export it again")
        return lead

    def _end(self, stream: Any) -> int | None:
        """The sample behind the last one, by the edit list."""
        if not stream.duration or not stream.time_base:
            return None
        return round(((stream.start_time or 0) + stream.duration) * stream.time_base * self.rate)

    def _kept(self, frame: Any, done: int, end: int | None) -> int:
        """How many samples of a frame count.

        The last packet of an MP4 says how long it is. The edit list says it too, but often in
        milliseconds: where both agree to that, the packet is believed.
        """
        count = frame.samples
        if end is None:
            return count
        if frame.duration and frame.time_base:
            count = min(count, max(0, round(frame.duration * frame.time_base * self.rate)))
        return count if done + count <= end + self.rate // 1000 else max(0, min(count, end - done))

    def _refuse_short(self, container: Any, stream: Any, done: int, end: int | None) -> None:
        """Raise where nothing was decoded, or less than the header promises."""
        if not done:
            raise AudioError(f"{self.path}: holds no samples; record or copy it again")
        promised = self._end(stream) if self.demuxer == "caf" else end
        if self.demuxer == "matroska" and len(container.streams) == 1 and container.duration:
            promised = round(container.duration * self.rate / 1e6)
        if promised is not None and done < promised - SLACK * self.rate:
            raise AudioError(
                f"{self.path}: truncated, its header promises {promised} samples and decoding stopped at {done}; "
                "copy it again"
            )
