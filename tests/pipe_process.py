"""`parivox` with a model that changes nothing and prints what it likes, as libraries do.

`python -m tests.pipe_process ARGUMENTS` takes the arguments of `parivox`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from parivox import cleaner, cli


class Unchanged:
    """Stands for a loaded model."""

    def __str__(self) -> str:
        return "nothing"

    def denoiser(self, _batch: int | None) -> Any:
        def model(wav: Any) -> Any:
            print("a library speaks")
            os.write(1, b"and another, past Python\n")
            return wav

        return model


def load(*_words: Any, **_options: Any) -> Unchanged:
    return Unchanged()


if __name__ == "__main__":
    cleaner.load = load  # type: ignore[assignment]
    sys.exit(cli.main())
