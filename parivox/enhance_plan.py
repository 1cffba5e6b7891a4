"""Which input goes to which output: settled, and refused where wrong, before anything is computed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from parivox.audio_formats import (
    AUDIO_SUFFIXES,
    find_audio,
    media_installed,
    output_format,
    readable_suffixes,
)
from parivox.errors import AudioError


@dataclass(frozen=True)
class Job:
    """One file to clean.

    Attributes:
        source: the file to read.
        target: the file to write.
        format: container to write, such as `WAV`.
    """

    source: Path
    target: Path
    format: str


def plan(source: Path, target: Path, format: str | None) -> list[Job]:
    """Pair inputs with outputs, and make sure that the output folder can be written.

    A file goes to the file `target`, or under its own name into the folder `target`: one that exists, or
    a name without a suffix. A folder is mirrored below `target`. Suffixes stay, unless `format` names
    another or the format can only be read, which becomes WAV; the suffix of a single output file decides its format.

    Args:
        source: a file or a folder.
        target: a file or a folder.
        format: `wav`, `flac`, `ogg`, `mp3`, or None.

    Returns:
        The jobs, in sorted order of their inputs.

    Raises:
        AudioError: there is nothing to do, an output would replace an input or another output, lies
            inside the input folder, has no known format, or cannot be written.
    """
    check_source(source)
    try:
        jobs = (
            _folder_jobs(source, target, format) if source.is_dir() else [_file_job(source, target, format)]
        )
        _refuse_collisions(jobs)
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        reason = getattr(error, "strerror", None) or "a loop of links"
        named = getattr(error, "filename", None) or target
        raise AudioError(f"{named}: cannot be looked up ({reason}); check the path") from error
    _make_folder(target if source.is_dir() else jobs[0].target.parent)
    return jobs


def check_source(source: Path) -> None:
    """Refuse an input that is not there, before a model is loaded or even downloaded for it.

    Raises:
        AudioError: it is missing, or its folder is closed.
    """
    try:
        there = source.exists()
    except OSError as error:  # a folder above it that is closed, or a name that is too long
        raise AudioError(f"{source}: cannot be looked up ({error.strerror}); check the path") from error
    if not there:
        raise AudioError(f"{source}: no such file or folder; check the path")


def _file_job(source: Path, target: Path, format: str | None) -> Job:
    """The job of a single file."""
    if target.is_dir() or not (target.exists() or target.suffix):
        return _mirrored(source, target / source.name, format)
    container = output_format(target)
    if format and output_format(target, format) != container:
        raise AudioError(f"{target}: its suffix and the format '{format}' disagree; change one of them")
    return Job(source, target, container)


def _folder_jobs(source: Path, target: Path, format: str | None) -> list[Job]:
    """The jobs of a mirrored folder."""
    if target.exists() and not target.is_dir():
        raise AudioError(f"{target}: is a file and {source} a folder; name an output folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise AudioError(f"{target}: lies inside the input {source}; name an output folder outside it")
    found = find_audio(source, readable_suffixes())
    if not found:
        more = (
            "" if media_installed() else ", or for m4a, mp4, webm and the like: pip install 'parivox[media]'"
        )
        raise AudioError(f"{source}: holds no audio (.wav, .flac, .ogg, .mp3); check the path{more}")
    return [_mirrored(path, target / path.relative_to(source), format) for path in found]


def _mirrored(source: Path, target: Path, format: str | None) -> Job:
    """A job that keeps the name and, where the format does not change, also the suffix as it is written.

    What is read and cannot be written becomes WAV.
    """
    if format is None and target.suffix.lower() not in AUDIO_SUFFIXES:
        format = "wav"
    container = output_format(target, format)
    if format and target.suffix.lower() != f".{container.lower()}":
        target = target.with_suffix(f".{container.lower()}")
    return Job(source, target, container)


def _refuse_collisions(jobs: list[Job]) -> None:
    """Raise where two inputs share an output, or an output is an input."""
    inputs = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.target.resolve() in inputs:
            raise AudioError(f"{job.target}: is itself an input; name another output")
        if job.target in taken:
            raise AudioError(
                f"{taken[job.target]} and {job.source} would both become {job.target}; rename one of them"
            )
        taken[job.target] = job.source


def _make_folder(folder: Path) -> None:
    """Make the output folder now, so that one that cannot be written costs no computing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AudioError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise AudioError(f"{folder}: is not writable; change its permissions or name another folder")
