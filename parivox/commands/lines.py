"""Diagnostics of a command, one line each."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Lines:
    """Prints diagnostics, one line each, on the standard error."""

    def __init__(self, named: Callable[[str], str] = str) -> None:
        """Remember the standard error; `named` puts the names that the user knows into a line."""
        self._named = named
        # On a terminal the live progress line takes over sys.stderr and puts lines above itself. What goes
        # into a file must stay there, so that stream is remembered from before.
        self._stream = sys.stderr

    def __call__(self, text: str) -> None:
        """Print a line."""
        from parivox.quiet import stderr_open

        stream = sys.stderr if self._stream.isatty() else self._stream
        with stderr_open():  # a thread may be reading an MP3
            print(f"parivox: {self._named(text)}", file=stream, flush=True)
