"""Progress of long work: a live line on a terminal, plain lines now and then where there is none."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_T = TypeVar("_T")
_WINDOW = 50
_WIDE = 100
_FIRST_INTERVAL, _LAST_INTERVAL = 5.0, 60.0


class _Line:
    """One line that is redrawn on a terminal, or printed anew at an interval.

    The interval is 5 s at first and grows to a minute, so that short work can be followed and long work
    does not fill a log.
    """

    def __init__(self, total: int | None, done: int, console: Console, clock: Callable[[], float]) -> None:
        self.total, self.console, self.clock = total, console, clock
        self._begun = clock()
        self._printed: float | None = None
        self._progress: Progress | None = None
        # Not console.is_terminal: environment variables that force colours would put a live line into a file.
        if console.file.isatty() and not console.is_dumb_terminal:
            bar = [BarColumn(bar_width=20)] if console.width >= _WIDE else []
            self._progress = Progress(*bar, TextColumn("{task.description}", markup=False), console=console)
            self._task: TaskID = self._progress.add_task("starting", total=total, completed=done)
            self._progress.start()

    def show(self, done: int, text: str) -> None:
        if self._progress is not None:
            if self.console.width < _WIDE:
                text = text.removeprefix("step ").replace("audio ", "").replace("  ", " ")
            self._progress.update(self._task, completed=done, description=text)
        elif self._due() or done == self.total:
            self._printed = self.clock()
            self.message(text)

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _due(self) -> bool:
        if self._printed is None:
            return True
        interval = min(max(_FIRST_INTERVAL, (self._printed - self._begun) / 20), _LAST_INTERVAL)
        return self.clock() - self._printed >= interval


class TrainProgress:
    """The progress of training; use it as a context manager.

    A line says step, loss, learning rate, gradient norm, seconds of audio trained on per second, share of
    time spent waiting for data, and time left. Rates are over the last 50 steps, so that the slow first
    step is soon forgotten.

    Args:
        total_steps: the step at which training ends.
        start_step: the step it goes on from.
        console: where to write; standard output by default.
        clock: seconds from any origin.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=_WINDOW)
        self._total = total_steps
        self._line = _Line(total_steps, start_step, console or Console(), clock)
        self._before = clock()

    def update(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float,
        grad_norm: float,
        audio_seconds: float,
        wait_seconds: float,
    ) -> None:
        """Report one step that has just ended.

        Args:
            step: updates made so far.
            loss: its training loss.
            learning_rate: the rate it used.
            grad_norm: L2 norm of all gradients before clipping.
            audio_seconds: seconds of audio in its batch, all items together.
            wait_seconds: seconds this step waited for its batch.
        """
        now = self._clock()
        self._recent.append((now - self._before, audio_seconds, wait_seconds))
        self._before = now
        took, audio, wait = (max(sum(column), 1e-9) for column in zip(*self._recent, strict=True))
        left = (self._total - step) * took / len(self._recent)
        self._line.show(
            step,
            f"step {step}/{self._total}  loss {loss:.4g}  lr {learning_rate:.2g}  grad {grad_norm:.3g}  "
            f"{audio / took:.1f} audio s/s  wait {min(wait / took, 1):.0%}  left {_duration(left)}",
        )

    def message(self, text: str) -> None:
        """Print a line above the progress line."""
        self._line.message(text)

    def __enter__(self) -> TrainProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._line.close()


class EnhanceProgress:
    """The progress of cleaning recordings; use it as a context manager.

    A line says seconds of audio done and in total, how many times faster than real time, and time left.

    Args:
        console: where to write; standard output by default.
        clock: seconds from any origin.

    Attributes:
        audio_seconds: seconds of audio done so far.
    """

    def __init__(
        self, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.audio_seconds = 0.0
        self._console, self._clock, self._begun = console or Console(), clock, clock()
        self._line: _Line | None = None
        self._shown: tuple[float, float] | None = None

    def update(self, done: float, total: float) -> None:
        """Report seconds of audio done and in total."""
        if self._shown == (done, total):
            return
        if self._line is None:
            self._line = _Line(round(1000 * total), 0, self._console, self._clock)
        self._shown, self.audio_seconds = (done, total), done
        took = max(self._clock() - self._begun, 1e-9)
        left = (total - done) * took / max(done, 1e-9)
        text = f"audio {done:.1f}/{total:.1f} s  {done / took:.3g} x real time  left {_duration(left)}"
        self._line.show(round(1000 * done), text)

    def __enter__(self) -> EnhanceProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._line is not None:
            self._line.close()


def track(
    items: Iterable[_T],
    description: str,
    *,
    total: int | None = None,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[_T]:
    """Hand on each item and show how far the work is, with a rate and the time left.

    Args:
        items: what is worked on.
        description: what is done, such as `enhancing`.
        total: how many items there are; by default their length, where they have one.
        console: where to write; standard output by default.
        clock: seconds from any origin.

    Yields:
        The items, in order.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    begun = clock()
    line = _Line(total, 0, console or Console(), clock)
    try:
        for done, item in enumerate(items, start=1):
            yield item
            took = max(clock() - begun, 1e-9)
            of_all = "" if total is None else f"/{total}"
            left = "" if total is None else f"  left {_duration((total - done) * took / done)}"
            line.show(done, f"{description}  {done}{of_all}  {done / took:.3g}/s{left}")
    finally:
        line.close()


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=max(round(seconds), 0)))
