"""How large a recording the page takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from parivox.audio import probe
from parivox.errors import AudioError, ConfigError

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    """What is refused, and how many may wait.

    Attributes:
        megabytes: largest file, in millions of bytes.
        seconds: longest recording.
        queue: most recordings that wait while one is worked on.

    Raises:
        ConfigError: one of them is not positive and finite.
    """

    megabytes: float = 120.0
    seconds: float = 600.0
    queue: int = 8

    def __post_init__(self) -> None:
        """Check the numbers."""
        for option, value in (("max-megabytes", self.megabytes), ("max-seconds", self.seconds)):
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"--{option} is {value}; use a number above 0")
        if self.queue < 1:
            raise ConfigError(f"--max-queue is {self.queue}; use 1 or more")

    @property
    def bytes(self) -> int:
        """Largest file, in bytes."""
        return max(1, round(self.megabytes * MEGABYTE))

    def __str__(self) -> str:
        return f"Up to {duration(self.seconds)} and {self.megabytes:g} MB"


def check_recording(path: Path, limits: Limits) -> None:
    """Refuse a recording that is too large, too long or not audio, by its header.

    Raises:
        AudioError: one sentence that names the file, by its name alone, and the limit.
    """
    size = path.stat().st_size
    if size > limits.bytes:
        raise AudioError(
            f"{path.name}: has {size / MEGABYTE:.1f} MB, and this page takes up to {limits.megabytes:g} MB; send a"
            " smaller file"
        )
    try:
        info = probe(path)
    except AudioError as error:
        raise AudioError(named(error, path)) from error
    seconds = info.frames / info.rate
    if seconds > limits.seconds:
        raise AudioError(
            f"{path.name}: lasts {duration(seconds)}, and this page takes up to {duration(limits.seconds)}; send a"
            " part of it"
        )


def named(error: object, *paths: Path) -> str:
    """What an error says, without the server's folders and the dashes of options."""
    text = str(error)
    for path in paths:
        text = text.replace(str(path), path.name)
    return text.replace("--", "")


def duration(seconds: float | int) -> str:
    """Seconds in words: `8.5 s`, `2 min`, `2:05 min`."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if rest else f"{minutes} min"
