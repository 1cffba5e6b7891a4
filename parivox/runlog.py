"""What a run writes down: one JSON line a step, TensorBoard events, and a summary at the end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from parivox.atomic import replacing, write_text
from parivox.errors import ConfigError
from parivox.tensorboard import Board

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
TENSORBOARD = "tensorboard"

Scalar = float | int | bool | str | None
"""What a metric may be."""

# JSON has no such numbers, and a run that meets one is the run whose log must be readable.
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class RunLog:
    """Appends to a run's `metrics.jsonl` and TensorBoard folder; use it as a context manager.

    A run that goes on from step k drops every line beyond k first, so that the curve has each step once.
    A line is `{"step": 7, "event": "train", ...}`. Numbers that are not finite are written as the
    strings "NaN", "Infinity" and "-Infinity", which `read_metrics` turns back.

    Args:
        run_dir: the run folder; made when needed.
        resume_step: the step of the checkpoint the run goes on from; 0 starts both logs anew.

    Raises:
        ConfigError: the folder cannot be written, or the log has a damaged line that is not its last.
    """

    def __init__(self, run_dir: str | Path, resume_step: int = 0) -> None:
        self.path = Path(run_dir) / METRICS
        self._last: dict[str, int] = {}
        try:
            self._cut(resume_step)
            self._board = Board(Path(run_dir) / TENSORBOARD, resume_step + 1)
            self._file = open(self.path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed in close)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def write(self, step: int, values: Mapping[str, Any], event: str = "train") -> None:
        """Log the numbers of one step.

        Args:
            step: updates made so far; each event logs a step once, in rising order.
            values: metric name to a number, a bool, a text or None; NumPy scalars count as numbers.
            event: what the numbers are of, such as `train` or `valid`.

        Raises:
            ValueError: this event has logged this step, or a later one.
            TypeError: a value is none of the above.
            ConfigError: the file cannot be written.
        """
        if step <= self._last.get(event, -1):
            raise ValueError(f"{event} of step {step} after that of step {self._last[event]}")
        plain = {name: _scalar(name, value) for name, value in values.items()}
        line = {"step": step, "event": event} | {name: _to_json(value) for name, value in plain.items()}
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            numeric = {name: float(v) for name, v in plain.items() if isinstance(v, (int, float))}
            self._board.scalars(step, {f"{event}/{name}": value for name, value in numeric.items()})
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._last[event] = step

    def audio(self, step: int, name: str, wav: Float[np.ndarray, " t"], rate: int) -> None:
        """Put a sound, (t,) float in [-1, 1] at `rate` Hz, into TensorBoard; louder samples are clipped."""
        self._board.audio(step, name, wav, rate)

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Put a picture, (h, w, 3) in RGB, into TensorBoard."""
        self._board.image(step, name, pixels)

    def sync(self) -> None:
        """Wait until all lines are on the disk; call it before a checkpoint of the same step is saved.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        """Write out what is left and close both logs."""
        self._file.close()
        self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _cut(self, resume_step: int) -> None:
        """Keep the lines up to `resume_step`; none where the run starts anew."""
        with replacing(self.path) as temporary, open(temporary, "w", encoding="utf-8") as kept:
            if resume_step > 0 and self.path.exists():
                for text, line in _lines(self.path):
                    if line["step"] <= resume_step:
                        kept.write(text)
                        self._last[line["event"]] = line["step"]


def read_metrics(run_dir: str | Path, event: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's log, oldest first; a torn last line is left out.

    Args:
        run_dir: the run folder.
        event: only lines of this event, such as `train`; None gives all.

    Raises:
        ConfigError: there is no log, it cannot be read, or a line that is not the last is damaged.
    """
    path = Path(run_dir) / METRICS
    try:
        lines = [line for _, line in _lines(path)]
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the folder of a run") from error
    return [_from_json(line) for line in lines if event is None or line["event"] == event]


def write_summary(run_dir: str | Path, summary: Mapping[str, Any]) -> Path:
    """Write a run's `summary.json` whole or not at all.

    Args:
        run_dir: the run folder.
        summary: JSON values; numbers that are not finite at the top level become strings.

    Returns:
        The file.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = Path(run_dir) / SUMMARY
    plain = {name: _to_json(value) for name, value in summary.items()}
    try:
        write_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each whole line as text and as a dict. A last line without its line end is torn, even if it parses."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith("\n"):
                return
            try:
                line = json.loads(text)
                _ = line["step"] + 0, line["event"] + ""
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigError(f"{path}: line {number} is damaged; delete that line") from error
            yield text, line


def _scalar(name: str, value: object) -> Scalar:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"metric {name} is a {type(value).__name__}; give a number, a bool, a text or None")


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _from_json(line: dict[str, Any]) -> dict[str, Any]:
    return {name: _SPECIAL.get(v, v) if isinstance(v, str) else v for name, v in line.items()}


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder"
    )
