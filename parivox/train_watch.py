"""What a training keeps an eye on: silence, overflows of float16, and signals."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from parivox.backend import StepResult

SILENT_RATIO = 0.01
"""Output energy over target energy below which a model counts as silent: 20 dB under the target."""

SILENT_STEPS = 10
"""Updates in a row that must be silent before a warning."""

SKIPPED_STEPS = 20
"""Updates in a row that float16 must skip before a warning; a scale of 2^16 reaches 1 within 16."""

REPEAT_SECONDS = 5.0
"""Where a launcher passes signals on, one wish may come twice; for so long the second one is not another wish."""


class SilenceWatch:
    """Warns when the output has been silent for a while, and again only after it has sounded."""

    def __init__(self, message: Callable[[str], None]):
        self._recent: deque[float] = deque(maxlen=SILENT_STEPS)
        self._message = message
        self._warned = False

    def see(self, step: int, ratio: float) -> None:
        """Look at the energy ratio of an update."""
        self._recent.append(ratio)
        silent = len(self._recent) == SILENT_STEPS and max(self._recent) < SILENT_RATIO
        if silent and not self._warned:
            self._message(
                f"warning: at step {step} the output has fallen silent (energy {ratio:.1e} of the target's for"
                f" {SILENT_STEPS} updates), as high rates do: lower max_lr or lengthen warmup_steps, and start again"
            )
        self._warned = silent


class OverflowWatch:
    """Warns when float16 has skipped many updates in a row: no loss scale then mends it."""

    def __init__(self, message: Callable[[str], None]):
        self._message, self._count = message, 0

    def see(self, step: int, result: StepResult) -> None:
        """Look at what became of an update."""
        self._count = self._count + 1 if result.skipped else 0
        if self._count and self._count % SKIPPED_STEPS == 0:
            self._message(
                f"warning: at step {step} the last {self._count} updates were skipped, since gradients overflow float16"
                f" (loss {result.loss:g}, loss scale {result.loss_scale:g}); lower max_lr, or train with bf16"
            )


@contextmanager
def signals(ask: Callable[[int], None], repeat_seconds: float = 0.0) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a wish to stop after the update at hand; a second one ends at once.

    Args:
        ask: called with the number of the signal.
        repeat_seconds: a second one that comes within so many seconds is the first one again.
    """
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    first: dict[int, float] = {}

    def handler(number: int, frame: object) -> None:
        now = time.monotonic()
        since = now - first.setdefault(number, now)
        ask(number)
        if since >= repeat_seconds:
            at_once = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, at_once)
            if since > 0:
                signal.raise_signal(number)

    try:
        for kind in kinds:
            signal.signal(kind, handler)
        yield
    finally:
        for kind, old in before.items():
            signal.signal(kind, old)
