"""Scores as a table for the terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from parivox.atomic import write_text
from parivox.errors import ConfigError
from parivox.evaluate_files import FileScores, Scores
from parivox.scores import Column

PIPE_WIDTH = 140
"""Columns of the table where the output is not a terminal."""

NAME_WIDTH = 28
"""Characters of a file's name that a table leaves room for; a longer one is folded."""

GAP = 2
MEAN = "mean"
ARROWS = {"higher": "↑", "lower": "↓"}


def heading(column: Column) -> str:
    """Title and unit, with an arrow towards the good."""
    return f"{column.title}{f' {column.unit}' if column.unit else ''} {ARROWS[column.better]}"


def number(column: Column, values: dict[str, float]) -> str:
    """A number as it is printed; empty where it is undefined."""
    return f"{values[column.name]:.{column.digits}f}" if column.name in values else ""


def print_table(scores: Scores, console: Any = None) -> None:
    """Print a line for each file and one for the means; of a single file a line for each number.

    Args:
        scores: what was measured.
        console: a `rich.console.Console`; None prints to the standard output. One that is no terminal is widened
            to `PIPE_WIDTH` columns. Numbers that do not fit side by side go into a second table.
    """
    from rich.console import Console

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    if len(scores.files) == 1:
        console.print(_single(scores.files[0], scores.columns))
    elif scores.files:
        for columns in _fitting(scores, console.width):
            console.print(_table(scores, columns))


def _single(file: FileScores, columns: tuple[Column, ...]) -> Any:
    table, text = _empty(("score", "unit", "better"))
    table.add_column(file.pair.name, justify="right", no_wrap=True)
    for column in columns:
        table.add_row(
            column.title, column.unit, column.better, number(column, file.values) or text("-", "dim")
        )
    return table


def _table(scores: Scores, columns: list[Column]) -> Any:
    table, text = _empty(("file",))
    for column in columns:
        table.add_column(text(heading(column)), justify="right", no_wrap=True)
    for file in scores.files:
        cells = (number(column, file.values) or text("-", "dim") for column in columns)
        table.add_row(text(file.pair.name), *cells)
    means = scores.means()
    table.add_section()
    table.add_row(text(f"{MEAN} of {len(scores.files)}"), *(number(c, means) for c in columns), style="bold")
    return table


def _empty(headings: tuple[str, ...]) -> tuple[Any, Any]:
    """A table without rows, and what makes text that is not read as markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for title in headings:
        table.add_column(title, overflow="fold")
    return table, Text


def _fitting(scores: Scores, width: int) -> list[list[Column]]:
    """The columns of each table, so many that they fit beside the names."""
    longest = max(len(file.pair.name) for file in scores.files)
    left = width - min(longest, NAME_WIDTH) - GAP
    tables: list[list[Column]] = [[]]
    room = left
    for column in scores.columns:
        needed = max(len(heading(column)), 6) + GAP
        if needed > room and tables[-1]:
            tables.append([])
            room = left
        tables[-1].append(column)
        room -= needed
    return tables


def write_csv(scores: Scores, path: Path) -> None:
    """Write a line for each file, empty where a number is undefined, and the means as the last line.

    Raises:
        ConfigError: the file cannot be written.
    """
    stream, names = io.StringIO(), [column.name for column in scores.columns]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["file", "reference", "seconds", *names])
    for file in scores.files:
        values = [file.values.get(name, "") for name in names]
        writer.writerow([file.pair.name, file.pair.reference or "", round(file.seconds, 6), *values])
    means = scores.means()
    if scores.files:
        writer.writerow([MEAN, "", "", *(means.get(name, "") for name in names)])
    write_report(path, stream.getvalue())


def write_json(scores: Scores, path: Path) -> None:
    """Write everything that was measured, with what the numbers are; null where one is undefined.

    Raises:
        ConfigError: the file cannot be written.
    """
    means = scores.means()
    content = {
        "columns": [
            {"name": c.name, "title": c.title, "unit": c.unit, "better": c.better} for c in scores.columns
        ],
        "mean": {c.name: means.get(c.name) for c in scores.columns},
        "counted": {c.name: len(scores.of(c)) for c in scores.columns},
        "files": [_entry(file, scores.columns) for file in scores.files],
        "failed": [{"file": str(source), "reason": reason} for source, reason in scores.failed],
    }
    write_report(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _entry(file: FileScores, columns: tuple[Column, ...]) -> dict[str, Any]:
    return {
        "file": file.pair.name,
        "estimate": str(file.pair.estimate),
        "reference": None if file.pair.reference is None else str(file.pair.reference),
        "seconds": file.seconds,
        "scores": {column.name: file.values.get(column.name) for column in columns},
        "notes": list(file.notes),
    }


def write_report(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_text(path, text)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{path}: cannot be written ({reason}); name another file") from error
