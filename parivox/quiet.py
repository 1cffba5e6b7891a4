"""Silence for libraries that write to the standard error past Python."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_stderr_lock = threading.RLock()


@contextmanager
def stderr_closed() -> Iterator[None]:
    """Send file descriptor 2 to nowhere: libmpg123 writes its remarks there, past Python."""
    with _stderr_lock:
        try:
            saved = os.dup(2)
        except OSError:  # a process without standard error: nothing to protect
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nowhere)


@contextmanager
def stderr_open() -> Iterator[None]:
    """Wait until the standard error is open, and keep it so: what another thread silences would swallow a message."""
    with _stderr_lock:
        yield
