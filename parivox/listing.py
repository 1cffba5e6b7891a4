"""The files below a folder: found in one pass, and held in little memory."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import overload


def file_names(folder: str | Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Names below a folder, with / between their parts, in the order of `Path`: part by part, by code points.

    A folder is read once, when its turn comes, and what the system says of an entry there is enough for a file that
    is no link. Hidden files and folders are left out, and folders that are links; so are folders that may not be read,
    such as a disk's `lost+found`.

    Args:
        folder: where to look; it may be a link.
        suffixes: those to take, in lower case.
    """
    yield from _below(os.fspath(folder), "", suffixes)


def _below(folder: str, prefix: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
    except (PermissionError, FileNotFoundError):  # removed while its neighbours were listed
        return
    for entry in sorted(entries, key=lambda entry: entry.name):
        name = entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, f"{prefix}{name}/", suffixes)
        elif name[name.rfind(".") :].lower() in suffixes and _is_file(entry):
            yield prefix + name


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads round in a circle, or through a file
        return Path(entry.path).is_file()


class PathList(Sequence[Path]):
    """Sorted paths below one folder, as a sequence that makes each path when it is asked for.

    The names lie in one string of bytes: about 50 bytes for a path where a `Path` takes several hundred, and what goes
    to a worker process is one object, not one for each file. A slice is a tuple of paths.
    """

    def __init__(self, folder: Path, names: Iterable[str | bytes]) -> None:
        """Take names in the order of `file_names`; bytes are UTF-8, with what is none of it kept as it is."""
        self.folder = folder
        held, ends = bytearray(), array("Q")
        for name in names:
            held += name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
            ends.append(len(held))
        self._held, self._ends = bytes(held), ends

    def name(self, index: int) -> bytes:
        """The name of the path at `index`, from 0, below the folder; UTF-8."""
        return self._held[self._ends[index - 1] if index else 0 : self._ends[index]]

    def names(self) -> Iterator[bytes]:
        """Every name, in order."""
        begin = 0
        for end in self._ends:
            yield self._held[begin:end]
            begin = end

    def _text(self, index: int) -> str:
        return self.name(index).decode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Path, ...]: ...
    def __getitem__(self, index: int | slice) -> Path | tuple[Path, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"index {index} of {len(self)} paths")
        return self.folder / self._text(place)

    def find(self, path: Path) -> int | None:
        """The index of a path; None where it is not one of these."""
        with suppress(ValueError):  # not below the folder
            parts = list(path.relative_to(self.folder).parts)
            place = bisect_left(range(len(self)), parts, key=lambda index: self._text(index).split("/"))
            return place if place < len(self) and self._text(place).split("/") == parts else None
        return None

    def __contains__(self, path: object) -> bool:
        return isinstance(path, Path) and self.find(path) is not None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PathList):
            return NotImplemented
        return (self.folder, self._held, self._ends) == (other.folder, other._held, other._ends)

    def __hash__(self) -> int:
        return hash((self.folder, self._held))
