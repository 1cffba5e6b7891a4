"""Which audio files Parivox reads, which containers it writes, what each can hold, and where such files are."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import soundfile as sf

from parivox.errors import AudioError
from parivox.listing import file_names

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
"""Suffixes that Parivox reads and writes, in lower case."""

READ_SUFFIXES = (*AUDIO_SUFFIXES, ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".caf", ".rf64", ".w64")
"""Suffixes that libsndfile reads."""

MEDIA_SUFFIXES = (
    *(".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".mka"),
    *(".aac", ".wma", ".wmv", ".asf", ".ac3", ".amr", ".avi", ".flv", ".ape", ".tta", ".wv"),
)
"""Suffixes that the extra `media` adds."""

MAX_RATE = 768_000
"""Highest sample rate that is taken for a real one, in Hz."""

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
RATE_LIMITS = {"FLAC": 655_350, "OGG": 200_000}  # libvorbis crashes above its limit
CHANNEL_LIMITS = {"FLAC": 8, "OGG": 255, "MP3": 2}
DEFAULT_SUBTYPES = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}
INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file says of itself.

    Attributes:
        rate: sample rate in Hz.
        channels: number of channels.
        frames: samples per channel.
        format: name of the container: libsndfile's, such as `WAV`, or FFmpeg's in capitals.
        subtype: libsndfile's name of the sample coding, such as `PCM_16`, or the codec's in capitals, such as `AAC`.
    """

    rate: int
    channels: int
    frames: int
    format: str
    subtype: str


def media_installed() -> bool:
    """Whether the extra `media` is there; it is not imported."""
    return importlib.util.find_spec("av") is not None


def readable_suffixes() -> tuple[str, ...]:
    """The suffixes of what can be decoded here, in lower case."""
    return (*READ_SUFFIXES, *MEDIA_SUFFIXES) if media_installed() else READ_SUFFIXES


def output_format(path: str | Path, format: str | None = None) -> str:
    """The container to write: `format` (`flac`, `.flac`, `FLAC`) or else the suffix of the path.

    Raises:
        AudioError: it is none of wav, flac, ogg, mp3.
    """
    name = (format or Path(path).suffix).lstrip(".").upper()
    if name not in DEFAULT_SUBTYPES:
        raise AudioError(f"{path}: cannot write '{name.lower()}' files; use one of .wav, .flac, .ogg, .mp3")
    return name


def kept_subtype(format: str, subtype: str) -> str:
    """The sample coding for an output whose input was coded as `subtype`.

    The same where the container has it; 24 bits where a 32-bit or float input goes into FLAC; else
    the container's default (16 bits for WAV and FLAC).
    """
    if (subtype in INTEGER_BITS or subtype in FLOAT_SUBTYPES) and sf.check_format(format, subtype):
        return subtype
    deep = subtype == "PCM_32" or subtype in FLOAT_SUBTYPES
    return "PCM_24" if format == "FLAC" and deep else DEFAULT_SUBTYPES[format]


def check_writable(path: str | Path, format: str, subtype: str, rate: int, channels: int) -> None:
    """Raise AudioError where a container cannot hold this coding, rate or number of channels."""
    if not sf.check_format(format, subtype):
        raise AudioError(f"{path}: {format} has no coding '{subtype}'; leave the subtype out")
    if format == "MP3" and rate not in MP3_RATES:
        rates = ", ".join(map(str, MP3_RATES))
        raise AudioError(f"{path}: MP3 has no sample rate {rate} Hz; use one of {rates}, or write .flac")
    limit = RATE_LIMITS.get(format, MAX_RATE)
    if not 0 < rate <= limit:
        raise AudioError(f"{path}: {format} cannot hold {rate} Hz; use 1 to {limit}")
    limit = CHANNEL_LIMITS.get(format, 1024)
    if not 0 < channels <= limit:
        raise AudioError(f"{path}: {format} holds at most {limit} channels, not {channels}; write .wav")


def find_audio(folder: str | Path, suffixes: tuple[str, ...] = AUDIO_SUFFIXES) -> list[Path]:
    """All audio files below a folder, sorted; hidden files and folders are left out.

    Args:
        folder: where to look.
        suffixes: those to take, in lower case. What a run trains on must not change with an extra, so the default
            depends on nothing; cleaning takes `readable_suffixes`.

    Raises:
        AudioError: the folder is missing or is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AudioError(f"{folder}: is not a folder; check the path")
    return [folder / name for name in file_names(folder, suffixes)]
