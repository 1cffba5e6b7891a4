"""Score a file, or every file of a folder, against what it should be or by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from parivox.audio import read_audio
from parivox.audio_formats import find_audio
from parivox.enhance_plan import check_source
from parivox.errors import AudioError, ParivoxError
from parivox.scores import Channel, Column, Metric, UndefinedError

TOLERANCE = 0.010
"""Seconds by which a sound may be longer or shorter than its reference."""


@dataclass(frozen=True)
class Pair:
    """A file to score.

    Attributes:
        name: how it is called in tables: its path in the folder, or its name.
        estimate: the file.
        reference: what it should be; None where nothing is known.
    """

    name: str
    estimate: Path
    reference: Path | None


@dataclass(frozen=True)
class FileScores:
    """What was measured of a file.

    Attributes:
        pair: the file.
        seconds: its length.
        values: column to number, means over its channels; a column that is undefined is not there.
        notes: why a column is not there, or is not of all channels.
    """

    pair: Pair
    seconds: float
    values: dict[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """What was measured.

    Attributes:
        columns: what each number is.
        files: those that could be scored.
        failed: those that could not, with the reason in one line.
    """

    columns: tuple[Column, ...]
    files: list[FileScores] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)

    def of(self, column: Column) -> list[tuple[FileScores, float]]:
        """The files where a column is defined, with its numbers."""
        return [(file, file.values[column.name]) for file in self.files if column.name in file.values]

    def means(self) -> dict[str, float]:
        """Column to the mean over the files where it is defined; a column without any is not there."""
        found = {column.name: [value for _, value in self.of(column)] for column in self.columns}
        return {name: math.fsum(values) / len(values) for name, values in found.items() if values}


def pair_files(reference: Path | None, estimate: Path) -> tuple[list[Pair], list[tuple[Path, str]]]:
    """The files to score, and those that have no counterpart, with the reason.

    Args:
        reference: a file or a folder; None scores without.
        estimate: the same kind of thing. Files of two folders belong together where their paths in the folders are
            the same but for the suffix.

    Raises:
        AudioError: one is missing, one is a file and the other a folder, a folder holds no audio, or no file of one
            has a counterpart in the other.
    """
    for path in (reference, estimate):
        if path is not None:
            check_source(path)
    if reference is not None and reference.is_dir() != estimate.is_dir():
        folder, file = (reference, estimate) if reference.is_dir() else (estimate, reference)
        raise AudioError(f"{folder} is a folder and {file} a file; name two files or two folders")
    if not estimate.is_dir():
        return [Pair(estimate.name, estimate, reference)], []
    estimates = _audio(estimate)
    if reference is None:
        return [Pair(str(path.relative_to(estimate)), path, None) for path in estimates], []
    return _matched(reference, _audio(reference), estimate, estimates)


def _audio(folder: Path) -> list[Path]:
    found = find_audio(folder)
    if not found:
        raise AudioError(f"{folder}: holds no audio (.wav, .flac, .ogg, .mp3); check the path")
    return found


def _matched(
    reference: Path, references: list[Path], estimate: Path, estimates: list[Path]
) -> tuple[list[Pair], list[tuple[Path, str]]]:
    """The files of two folders that belong together."""
    tables = _by_stem(reference, references), _by_stem(estimate, estimates)
    pairs, failed = [], []
    for key in sorted(set(tables[0]) | set(tables[1])):
        there, made = (table.get(key, []) for table in tables)
        if len(there) == len(made) == 1:
            pairs.append(Pair(str(made[0].relative_to(estimate)), made[0], there[0]))
        elif len(there) > 1 or len(made) > 1:
            one, other = (there if len(there) > 1 else made)[:2]
            reason = f"{one} and {other} differ in their suffix alone; move one of them away"
            failed.append((made[0] if made else there[0], reason))
        elif made:
            failed.append((made[0], f"{made[0]}: {reference} has no file for it; its path must be the same"))
        else:
            failed.append((there[0], f"{there[0]}: {estimate} has no file for it; its path must be the same"))
    if not pairs:
        raise AudioError(f"{reference} and {estimate} share no file; the paths in them must be the same")
    return pairs, failed


def _by_stem(folder: Path, paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """Paths by what they are in a folder without their suffix."""
    table: dict[Path, list[Path]] = {}
    for path in paths:
        table.setdefault(path.relative_to(folder).with_suffix(""), []).append(path)
    return table


def evaluate_path(
    reference: str | Path | None,
    estimate: str | Path,
    metrics: Sequence[Metric],
    *,
    message: Callable[[str], None] = lambda line: None,
    track: Callable[[list[Pair]], Iterable[Pair]] = lambda pairs: pairs,
) -> Scores:
    """Score a file, or every audio file below a folder.

    Each channel is scored by itself, and the numbers of a file are means over its channels. A file that cannot be
    scored does not stop the others.

    Args:
        reference: what the sounds should be: a file or a folder; None scores without.
        estimate: the sounds to score, a file or a folder.
        metrics: what to measure, as `parivox.scores.choose` gives it.
        message: gets one line for each file that fails, and for each number that is undefined.
        track: hands the files on, and may show how far the work is.

    Raises:
        AudioError: nothing can be done at all; see `pair_files`.
        BackendError: a metric's package is there, and cannot be imported.
    """
    pairs, failed = pair_files(None if reference is None else Path(reference), Path(estimate))
    scores = Scores(tuple(column for metric in metrics for column in metric.columns), failed=failed)
    for _, reason in failed:
        message(reason)
    for pair in track(pairs):
        try:
            channels, seconds = _channels(pair)
        except ParivoxError as error:
            scores.failed.append((pair.estimate, str(error)))
            message(str(error))
            continue
        scores.files.append(_scored(pair, channels, seconds, metrics))
        for note in scores.files[-1].notes:
            message(f"{pair.estimate}: {note}")
    return scores


def _channels(pair: Pair) -> tuple[list[Channel], float]:
    """The channels of a file beside those of its reference, and its length in seconds."""
    estimate, rate = read_audio(pair.estimate)
    seconds = estimate.shape[1] / rate
    if pair.reference is None:
        return [Channel(wav, rate) for wav in estimate], seconds
    reference, reference_rate = read_audio(pair.reference)
    if len(reference) != len(estimate):
        raise AudioError(
            f"{pair.estimate} has {_counted(len(estimate))} and {pair.reference} {_counted(len(reference))}; "
            "give both the same"
        )
    wanted = reference.shape[1] / reference_rate
    if abs(seconds - wanted) > TOLERANCE:
        raise AudioError(
            f"{pair.estimate} lasts {seconds:.3f} s and {pair.reference} {wanted:.3f} s; they may differ by "
            f"{1000 * TOLERANCE:g} ms, so cut them to the same part"
        )
    return [
        Channel(wav, rate, other, reference_rate) for wav, other in zip(estimate, reference, strict=True)
    ], seconds


def _counted(channels: int) -> str:
    return f"{channels} channel{'' if channels == 1 else 's'}"


def _scored(pair: Pair, channels: list[Channel], seconds: float, metrics: Sequence[Metric]) -> FileScores:
    """Every metric of every channel."""
    values: dict[str, float] = {}
    notes = []
    for metric in metrics:
        rows, reasons = [], []
        for number, channel in enumerate(channels, start=1):
            try:
                rows.append(metric.measure(channel))
            except UndefinedError as error:
                reasons.append(f"{error}" if len(channels) == 1 else f"channel {number}: {error}")
        if rows:
            names = (column.name for column in metric.columns)
            values |= dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))
        if reasons:
            what = "only of the other channels" if rows else "undefined"
            notes.append(f"{metric.name} {what}: {'; '.join(reasons)}")
    return FileScores(pair, seconds, values, _merged(notes))


def _merged(notes: list[str]) -> tuple[str, ...]:
    """One line for all metrics that are undefined for the same reason."""
    table: dict[str, list[str]] = {}
    for note in notes:
        name, _, reason = note.partition(" ")
        table.setdefault(reason, []).append(name)
    return tuple(f"{', '.join(names)} {reason}" for reason, names in table.items())
