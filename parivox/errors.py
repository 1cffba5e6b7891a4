"""The errors a user can cause; each message names the thing that is wrong and the remedy.

The command line prints `str(error)` alone, on one line, and exits with status 1. Anything else that
escapes is a defect of Parivox and keeps its traceback.
"""

from __future__ import annotations

import unicodedata

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, line and paragraph separators


def printable(text: object) -> str:
    """Text as one line: breaks, controls and bytes that are no text (in a file's name, say) as `repr` has them."""
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in _UNPRINTABLE else char for char in str(text)
    )


class ParivoxError(Exception):
    """Base of every error that a user can cause and mend."""


class ConfigError(ParivoxError):
    """A hyperparameter, option, preset or YAML file is wrong or disagrees with a run folder."""


class AudioError(ParivoxError):
    """An audio file cannot be read or written, or holds samples that make no sense."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # a file's name may hold a line break


class DataError(ParivoxError):
    """A training folder is missing, too small, or holds too many files that do not decode."""


class CheckpointError(ParivoxError):
    """A checkpoint is torn, misses tensors, or belongs to a model of another shape."""


class BackendError(ParivoxError):
    """A backend, device, precision or extra is not available here."""


class NonFiniteError(ParivoxError):
    """A loss or gradient is NaN or infinite; the update was not made."""
