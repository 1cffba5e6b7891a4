"""Sound from the standard input and to the standard output, for `parivox enhance - -`.

Decoders go back and forth in a file, and a WAV header says a length that is known at the end, so both ends are files
on the way: the input without a name where the system allows it, the output in a folder of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from parivox.errors import AudioError

DASH = Path("-")
"""Stands for the standard input or output; a file of that name is reached by its whole path."""

_INPUT, _OUTPUT = "standard input", "standard output"
_SEND = 2**20
_FD_FOLDER = Path("/proc/self/fd")


@dataclass
class Ends:
    """What to read and what to write.

    Attributes:
        source: a file or folder.
        target: a file or folder.
    """

    source: Path
    target: Path
    _names: dict[str, str] = field(default_factory=dict)
    _handle: int | None = None

    def named(self, text: str) -> str:
        """A message, with the name that the user knows for each end."""
        for path, name in self._names.items():
            text = text.replace(path, name)
        return text

    def deliver(self) -> None:
        """Send what was written to the standard output, where that is the target and it was written.

        Raises:
            AudioError: its reader has gone, or the disk that it is written to is full.
        """
        if self._handle is None or not self.target.exists():
            return
        try:
            with self.target.open("rb") as file:
                while block := file.read(_SEND):
                    view = memoryview(block)
                    while view:
                        view = view[os.write(self._handle, view) :]
        except BrokenPipeError as error:
            raise AudioError(
                f"{_OUTPUT}: was closed before all of the sound was written; let its reader read to the end"
            ) from error
        except OSError as error:
            raise AudioError(
                f"{_OUTPUT}: cannot be written ({error.strerror}); check that the disk has space"
            ) from error


@contextmanager
def standard_ends(source: Path, target: Path, format: str | None) -> Iterator[Ends]:
    """Files that stand for `-`, for the time of the block.

    While the target is the standard output, whatever is printed goes to the standard error.

    Args:
        source: a file, a folder or `-`.
        target: a file, a folder or `-`.
        format: of the standard output; None writes WAV.

    Yields:
        The two ends; other paths than `-` as they are.

    Raises:
        AudioError: an end is closed, a terminal, or of a kind that does not go with the other; the input is empty, or
            there is no space to keep it. One that is raised in the block gets the names of the ends.
    """
    _check(source, target)
    ends = Ends(source, target)
    with ExitStack() as stack:
        if target == DASH:
            ends._handle = stack.enter_context(_claimed_output())
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="parivox-"))
            ends.target = Path(folder) / f"sound.{(format or 'wav').lower()}"
            ends._names[str(ends.target)] = _OUTPUT
        if source == DASH:
            ends.source = stack.enter_context(_spooled_input())
            ends._names[str(ends.source)] = _INPUT
        try:
            yield ends
        except AudioError as error:
            raise AudioError(ends.named(str(error))) from error


def _check(source: Path, target: Path) -> None:
    """Refuse ends that do not go together."""
    if source == DASH and target != DASH and (target.is_dir() or not target.suffix):
        raise AudioError(
            f"{target}: {_INPUT} has no name of its own; name the output file, such as clean.wav"
        )
    if target == DASH and source.is_dir():
        raise AudioError(f"{source}: is a folder, and {_OUTPUT} takes one file; name an output folder")
    if source == DASH and (sys.stdin is None or sys.stdin.isatty()):
        state = "is closed" if sys.stdin is None else "is a terminal"
        raise AudioError(f"{_INPUT}: {state}; send a sound file into it: parivox enhance - OUT <FILE")
    if target == DASH and (sys.stdout is None or sys.stdout.isatty()):
        state = "is closed" if sys.stdout is None else "is a terminal"
        raise AudioError(f"{_OUTPUT}: {state}; send it into a file or a program: parivox enhance IN - >FILE")


@contextmanager
def _claimed_output() -> Iterator[int]:
    """A handle of the standard output that nothing else writes to: what is printed goes to the standard error."""
    sys.stdout.flush()
    place = sys.stdout.fileno()
    handle = os.dup(place)
    try:
        try:
            os.dup2(2, place)
        except OSError:  # there is no standard error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, place)
            os.close(nowhere)
        yield handle
    finally:
        sys.stdout.flush()
        os.dup2(handle, place)
        os.close(handle)


@contextmanager
def _spooled_input() -> Iterator[Path]:
    """A file with all that the standard input gives."""
    with ExitStack() as stack:
        try:
            path, file = _temporary(stack)
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
            size = file.tell()
        except OSError as error:
            raise AudioError(
                f"{_INPUT}: cannot be kept in {tempfile.gettempdir()} ({error.strerror}); check that the disk has "
                "space, or name a folder in TMPDIR"
            ) from error
        if not size:
            raise AudioError(f"{_INPUT}: is empty (0 bytes); send a whole sound file into it")
        yield path


def _temporary(stack: ExitStack) -> tuple[Path, IO[bytes]]:
    """An empty file that ends with the stack.

    Where a nameless file can be opened again, as on Linux, not even a killed process leaves it behind.
    """
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    path = _FD_FOLDER / str(file.fileno())
    if path.exists():
        return path, file
    file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="parivox-"))  # noqa: SIM115 (as above)
    return Path(file.name), file
