"""How many worker processes make the data, how they start, and how they end."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection, parent_process
from typing import Any

from parivox.errors import ConfigError

PARENT_CHECK = 2.0
"""Seconds between looks at the parent where its end is not signalled."""


def available_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_count(nj: int, message: Callable[[str], None]) -> int:
    """Worker processes for an upper bound `nj`: no more than there are CPUs, and none on a single CPU.

    0 means that a thread of this process makes the data.

    Raises:
        ConfigError: `nj` is negative.
    """
    if nj < 0:
        raise ConfigError(f"nj is {nj}; set it to 0 (no worker process) or more")
    cpus = available_cpus()
    count = min(nj, cpus) if cpus > 1 else 0
    if count < nj:
        message(f"nj={nj} is more than this machine can use ({cpus} CPUs): {count} data workers")
    return count


def settle_flags() -> None:
    """Give grain's flags their defaults, when this is not an absl program that has parsed its own."""
    from absl import flags  # grain brings it

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def start_worker(index: int, count: int) -> None:
    """First call in a worker process: leave Ctrl-C to the parent, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True, name=f"parivox-parent-watch-{index}").start()


def _end_with_parent() -> None:
    """Wait for the parent to die, then end this process at once.

    A worker that waits for room in its queue would otherwise wait for ever after `kill -9` of the parent.
    """
    parent = parent_process()
    if parent is None:
        return
    while not connection.wait([parent.sentinel], timeout=PARENT_CHECK):
        # The sentinel is a pipe; a fork of the parent could hold its other end open.
        if os.name != "nt" and os.getppid() != parent.pid:
            break
    os._exit(1)


@contextmanager
def hidden_main_module() -> Iterator[None]:
    """Let spawned processes start without importing this program's `__main__` again.

    That import would cost each worker whatever the program imports (a whole deep-learning framework), and
    run a script that has no `if __name__ == "__main__"` guard a second time. No worker needs it.
    """
    main = sys.modules["__main__"]
    kept = {name: main.__dict__.pop(name) for name in ("__spec__", "__file__") if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(kept)


def drain(iterator: Any) -> None:
    """Begin to throw away what the workers of a grain iterator still send, until each has ended.

    Call it right before `iterator.close()`. A worker ends when its last record is in the pipe, a pipe holds less
    than a record, and grain empties it only once: without this it waits 25 seconds for each worker and kills it.
    Grain has no public way to its queues; where they are named otherwise, closing is slow and nothing else.
    """
    pairs = []
    for part in getattr(iterator, "_iterators_in_use", ()):
        worker = getattr(part, "_maybe_nonnative_parent", part)
        process, buffer = getattr(worker, "_prefetch_process", None), getattr(worker, "_buffer", None)
        if process is not None and buffer is not None:
            pairs.append((process, buffer))
    for pair in pairs:
        threading.Thread(target=_discard, args=pair, daemon=True, name="parivox-drain").start()


def _discard(process: Any, buffer: Any) -> None:
    # The pipe of a worker that was killed in the middle of a record is left alone: it would never be whole.
    while process.exitcode is None:
        with suppress(queue.Empty):
            buffer.get(timeout=0.1)
