"""Sound files of many kinds, and damage done to them; all of it drawn from one generator."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile as sf
from scipy.fft import irfft, next_fast_len, rfft

from parivox.audio import BLOCK
from parivox.audio_formats import media_installed

CODECS = {
    ".m4a": "aac",
    ".mp4": "aac",
    ".mov": "alac",
    ".mkv": "flac",
    ".caf": "alac",
    ".webm": "libopus",
    ".wma": "wmav2",
    ".aac": "aac",
}
"""Suffix -> FFmpeg's encoder; these need the extra `media`."""

LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
RATES = {
    ".webm": (48_000,),
    ".aac": (8000, 16_000, 22_050, 44_100, 48_000, 96_000),
    ".wma": (16_000, 22_050, 44_100, 48_000),
}
SNDFILE = (".wav", ".flac", ".ogg", ".mp3", ".aiff")
DAMAGED = (*SNDFILE, *((".m4a", ".webm", ".mkv", ".wma", ".aac", ".caf") if media_installed() else ()))


def lag(wav: np.ndarray, other: np.ndarray) -> int:
    """Samples by which `other` is late, from the largest cross-correlation."""
    size = next_fast_len(2 * max(wav.size, other.size), real=True)
    product = irfft(rfft(other, size) * np.conj(rfft(wav, size)), size)
    found = int(np.argmax(product))
    return found - size if found > size // 2 else found


def speechlike(rng: np.random.Generator, channels: int, length: int, rate: int) -> np.ndarray:
    """Noise below 3 kHz with a moving loudness, other in each channel, peak below 0.5; (c, t) float32."""
    size = next_fast_len(length, real=True)
    frequency = np.fft.rfftfreq(size, 1 / rate)
    shape = (channels, frequency.size)
    spectrum = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    spectrum *= (frequency > 100) * np.exp(-((frequency / 1500) ** 2))
    wav = irfft(spectrum, size)[:, :length]
    wav *= 0.3 + 0.7 * np.abs(np.sin(2 * np.pi * rng.uniform(0.5, 3) * np.arange(length) / rate))
    peak = np.abs(wav).max()
    return (0.45 * wav / peak if peak > 0 else wav).astype(np.float32)


def write_media(path: Path, wav: np.ndarray, rate: int, codec: str, **options: str) -> None:
    """Encode (c, t) with FFmpeg; options are the container's.

    FFmpeg notes where a movie ends in milliseconds by default; here in samples.
    """
    import av

    if path.suffix in (".m4a", ".mp4", ".mov"):
        options = {"movie_timescale": str(rate)} | options

    layout = LAYOUTS[len(wav)]
    if layout == "4.0" and codec in ("libopus", "flac"):
        layout = "quad"
    container = av.open(str(path), "w", format="asf" if path.suffix == ".wma" else None, options=options)
    with container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 64_000 * len(wav)
        form = stream.codec_context.format.name
        for begin in range(0, wav.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(_samples(wav[:, begin : begin + 1024], form), form, layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _samples(block: np.ndarray, form: str) -> np.ndarray:
    """(c, n) in the layout and type of FFmpeg's sample format."""
    types = {"s16": (np.int16, 2**15), "s32": (np.int32, 2**31), "flt": (np.float32, 1)}
    kind, scale = types[form.removesuffix("p")]
    out = (block.astype(np.float64) * scale).astype(kind)
    return np.ascontiguousarray(out if form.endswith("p") else out.T.reshape(1, -1))


def write_sound(path: Path, wav: np.ndarray, rate: int, subtype: str | None = None) -> None:
    """Write (c, t) in the format of the suffix."""
    if path.suffix in CODECS:
        write_media(path, wav, rate, CODECS[path.suffix])
    else:
        with sf.SoundFile(path, "w", rate, len(wav), subtype) as file:
            for begin in range(0, wav.shape[1], BLOCK):
                file.write(np.ascontiguousarray(wav[:, begin : begin + BLOCK].T))


def _cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def _flip(data: bytearray, rng: np.random.Generator) -> None:
    for at in rng.integers(len(data), size=int(rng.integers(1, 40))):
        data[at] ^= 1 << int(rng.integers(8))


def _flip_header(data: bytearray, rng: np.random.Generator) -> None:
    for at in rng.integers(min(len(data), 200), size=int(rng.integers(1, 6))):
        data[at] = int(rng.integers(256))


def _absurd(data: bytearray, rng: np.random.Generator) -> None:
    """Put an extreme number somewhere into the beginning."""
    value = (0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000)[int(rng.integers(5))]
    at = int(rng.integers(4, max(5, min(len(data) - 4, 120))))
    data[at : at + 4] = struct.pack("<I", value)


def _hole(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    size = min(int(rng.integers(1, 2000)), len(data) - at)
    data[at : at + size] = bytes(size)


def _missing(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    del data[at : at + int(rng.integers(1, 500))]


def _appended(data: bytearray, rng: np.random.Generator) -> None:
    data += rng.bytes(int(rng.integers(1, 5000)))


def _random(data: bytearray, rng: np.random.Generator) -> None:
    data[int(rng.integers(4, 40)) :] = rng.bytes(4000)


BYTES: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    *(_cut, _cut, _flip, _flip, _flip_header, _flip_header, _absurd, _absurd),
    *(_hole, _missing, _appended, _random),
)
PLACES = (
    "empty",
    "text",
    "suffix",
    "nan",
    "zero rate",
    "one",
    "folder",
    "dangling",
    "fifo",
    "loop",
    "closed",
)


NAMES = ("", "", "", "", " a\nb", "\x1b[31m", " %s {x} é", "\udcff" if sys.platform == "linux" else "")
"""What a name may hold besides; macOS takes no bytes that are no text."""


def damaged(folder: Path, number: int, rng: np.random.Generator) -> Path:
    """Make one file, or something in its place, that is probably no sound file; returns its path."""
    suffix = DAMAGED[int(rng.integers(len(DAMAGED)))]
    path = folder / f"{number}{NAMES[int(rng.integers(len(NAMES)))]}{suffix}"
    if rng.random() < 0.2:
        _misplaced(path, PLACES[int(rng.integers(len(PLACES)))], rng)
        return path
    data = bytearray(_whole(path, rng))
    BYTES[int(rng.integers(len(BYTES)))](data, rng)
    path.write_bytes(data)
    return path


def _whole(path: Path, rng: np.random.Generator) -> bytes:
    """A sound file's bytes, of up to half a second; made under a plain name, which FFmpeg's muxers ask for."""
    rates = [r for r in RATES.get(path.suffix, (8000, 22_050, 44_100, 48_000)) if r <= 48_000]
    rate, channels = rates[int(rng.integers(len(rates)))], int(rng.integers(1, 3))
    wav = speechlike(rng, channels, int(rng.integers(rate // 20, rate // 2)), rate)
    subtypes = {".wav": (None, "FLOAT", "PCM_24", "PCM_U8", "MS_ADPCM", "ALAW"), ".aiff": (None, "FLOAT")}
    choices = subtypes.get(path.suffix, (None,))
    plain = path.with_name(f"whole{path.suffix}")
    write_sound(plain, wav, rate, choices[int(rng.integers(len(choices)))])
    data = plain.read_bytes()
    plain.unlink()
    return data


def _misplaced(path: Path, kind: str, rng: np.random.Generator) -> None:
    """Something else than a damaged file under the name."""
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("Dear diary, today it rained.\n" * int(rng.integers(1, 500)))
    elif kind == "suffix":
        path.write_bytes(_whole(path.with_suffix(DAMAGED[int(rng.integers(len(DAMAGED)))]), rng))
    elif kind == "nan":
        wav = speechlike(rng, 1, 2000, 16_000)
        wav[0, int(rng.integers(2000))] = rng.choice([np.nan, np.inf, -np.inf])
        sf.write(os.fsencode(path), wav.T, 16_000, subtype="FLOAT", format="WAV")
    elif kind == "zero rate":
        sf.write(os.fsencode(path), speechlike(rng, 1, 500, 16_000).T, 16_000, format="WAV")
        data = bytearray(path.read_bytes())
        data[24:28] = bytes(4)
        path.write_bytes(data)
    elif kind == "one":
        sf.write(os.fsencode(path), np.full((1, 1), 0.5), 44_100, format="WAV")
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to(path.with_name("gone"))
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(_whole(path, rng))
        path.chmod(0)  # for root it stays readable, and is cleaned
