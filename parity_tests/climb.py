"""Climbs the ladder in several processes, each on CPUs of its own.

Most of a climb is compiling and small steps, which keep one CPU busy and no more.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from parity_tests.ladder import Finding, Ladder, LadderOptions, Rung, rungs_of
from parivox.errors import ConfigError

LONGEST_FIRST = (
    "model",
    "training stages",
    "training in float64",
    "training",
    "precision",
    "schedulers",
    "optimizers",
    "discriminator",
    "enhancer",
    "signals",
)
"""Units by the time that they take, so that no long one begins last; others come after."""

_news: Any = None


def job_count(options: LadderOptions, units: int) -> int:
    """How many processes climb, for so many units of work.

    Raises:
        ConfigError: the number asked for is below 1.
    """
    if options.jobs is not None:
        if options.jobs < 1:
            raise ConfigError(f"{options.jobs} jobs cannot climb; use 1 or more")
        return min(options.jobs, units)
    # Two processes would each take most of an accelerator's memory.
    return min(len(_own_cpus()), units) if options.device == "cpu" or not _accelerated(options) else 1


def climb(
    options: LadderOptions, rungs: Sequence[Rung], jobs: int, say: Callable[[str], object]
) -> tuple[dict[str, str], list[list[Finding]]]:
    """Climb with so many processes; returns the machine and what each rung found."""
    context = multiprocessing.get_context("spawn")
    news, shares = context.SimpleQueue(), context.SimpleQueue()
    cpus = _own_cpus()
    for k in range(jobs):
        shares.put(cpus[k::jobs])
    listener = threading.Thread(target=_repeat, args=(news, say), daemon=True)
    listener.start()
    order = {unit: k for k, unit in enumerate(LONGEST_FIRST)}
    units = sorted({rung.unit for rung in rungs}, key=lambda unit: (order.get(unit, len(order)), unit))
    try:
        with ProcessPoolExecutor(jobs, context, _begin, (shares, news)) as pool:
            futures = [pool.submit(_climb_unit, options, unit) for unit in units]
            try:
                done = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        news.put(None)
        listener.join()
    found = {name: findings for _, part in done for name, findings in part.items()}
    return done[0][0], [found[rung.name] for rung in rungs]


def _climb_unit(options: LadderOptions, unit: str) -> tuple[dict[str, str], dict[str, list[Finding]]]:
    ladder = Ladder(options)
    found = {}
    for rung in rungs_of(options):
        if rung.unit == unit:
            _news.put(rung.name)
            found[rung.name] = list(rung.climb(ladder))
    return ladder.machine, found


def _begin(shares: Any, news: Any) -> None:
    """Take a share of the CPUs before JAX and torch start a thread for each that there is."""
    global _news
    _news = news
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, shares.get())


def _own_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _accelerated(options: LadderOptions) -> bool:
    """Whether a float32 rung computes on something else than a CPU."""
    ladder = Ladder(options)
    return any(not side.backend.describe()["device"].startswith("cpu") for side in ladder.sides("float32"))


def _repeat(news: Any, say: Callable[[str], object]) -> None:
    while (name := news.get()) is not None:
        say(name)
