"""What the page has done to a recording: the same as `parivox enhance` does to a file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parivox.audio_formats import AUDIO_SUFFIXES
from parivox.backend import Solver
from parivox.cleaner import Cleaner
from parivox.enhance_files import FileOptions, enhance_path
from parivox.errors import AudioError, ParivoxError
from parivox.sampling import Sampling
from parivox.serve.limits import duration, named

Task = Literal["denoise", "enhance"]
SUFFIXES: dict[Task, str] = {"denoise": "denoised", "enhance": "enhanced"}
UNEXPECTED = "Something went wrong that is not the recording's fault; the server's log says what."
LOG = logging.getLogger("parivox.serve")
DOING: dict[Task, str] = {"denoise": "Denoising", "enhance": "Enhancing"}


@dataclass(frozen=True)
class Knobs:
    """What can be chosen on the page; see `parivox.sampling.Sampling` and `parivox.enhance_files.FileOptions`.

    Attributes:
        sampling: of the enhancer.
        mono: whether the mean of the channels is cleaned.
        mix: share of the original that is kept, 0 to 1.
        format: `wav`, `flac`, `ogg`, `mp3`, or None for the recording's own.
    """

    sampling: Sampling
    mono: bool = False
    mix: float = 0.0
    format: str | None = None


def knobs(
    nfe: float | int,
    solver: Solver,
    lambd: float | int = 1.0,
    tau: float | int = 0.5,
    seed: float | int | None = 0,
    mono: bool = False,
    mix: float | int = 0.0,
    format: str | None = None,
) -> Knobs:
    """Knobs of what the page's controls give: a whole number may come as a float, a share as 1, a cleared one as None.

    Raises:
        ConfigError: a number is out of range.
    """
    sampling = Sampling(int(nfe), solver, float(lambd), float(tau), int(seed or 0))
    return Knobs(sampling, mono, float(mix), format)


def clean_recording(
    cleaner: Cleaner,
    task: Task,
    source: Path,
    folder: Path,
    knobs: Knobs,
    progress: Callable[[float, str], None],
) -> tuple[Path, list[str]]:
    """Clean one recording into a folder.

    Args:
        cleaner: the model.
        task: what is done.
        source: the recording.
        folder: gets `NAME-denoised.SUFFIX` or `NAME-enhanced.SUFFIX`.
        knobs: the options.
        progress: gets the share done and words for it after each chunk; what it raises ends the work.

    Returns:
        The file, and remarks about it.

    Raises:
        AudioError: the recording cannot be cleaned, or the result not be written in this format.
        ConfigError: an option is out of range, or the model cannot do that.
    """
    model = cleaner.denoiser() if task == "denoise" else cleaner.enhancer(knobs.sampling)
    target = folder / f"{source.stem}-{SUFFIXES[task]}{_suffix(source, knobs.format)}"
    remarks: list[str] = []

    def report(done: float, total: float) -> None:
        progress(done / total, f"{DOING[task]}: {duration(done)} of {duration(total)}")

    progress(0.0, DOING[task])
    options = FileOptions(format=knobs.format, mono=knobs.mono, mix=knobs.mix)
    summary = enhance_path(source, target, model, options, message=remarks.append, progress=report)
    if summary.failed:
        raise AudioError(named(summary.failed[0][1], source, target))
    return summary.done[0], [named(remark, target) for remark in remarks]


def _suffix(source: Path, format: str | None) -> str:
    """The recording's own where no format is asked for and it can be written."""
    if format:
        return f".{format}"
    return source.suffix if source.suffix.lower() in AUDIO_SUFFIXES else ".wav"


def sentence(error: Exception) -> str:
    """What a visitor is told of an error: its line where it can be mended. Of any other the log has the traceback."""
    if isinstance(error, ParivoxError):
        return named(error)
    LOG.error("a job failed", exc_info=error)
    return UNEXPECTED
