"""Cleans damaged files with a model that changes nothing, in a process of its own that a damage could end or hang.

`python -m tests.damage_process FOLDER SEED FIRST LAST` draws the files from (SEED, number) and prints, for each, its
number before it begins, then `done`, `refused`, or what went wrong. Nothing else may reach its standard error.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np

from parivox.audio import probe
from parivox.enhance_files import enhance_path
from parivox.errors import AudioError, printable
from tests.sound_files import damaged


def outcome(source: Path, target: Path) -> str:
    """`done`, `refused`, or what is wrong with the way it ended."""
    try:
        summary = enhance_path(source, target, lambda wav: wav)
        lines = [reason for _, reason in summary.failed]
    except AudioError as error:
        summary, lines = None, [str(error)]
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    files = [path for path in target.parent.rglob("*") if path.is_file()]
    if any(printable(source) not in line or "\n" in line for line in lines) or len(lines) > 1:
        return f"bad message {lines}"
    if not lines:
        whole = source.is_dir() or (files == [target] and probe(target).frames > 0)
        return "done" if summary and whole else f"no whole output: {files}"
    return f"left behind {files}" if files else f"refused {lines[0]}"


def main(folder: Path, seed: int, first: int, last: int) -> None:
    warnings.simplefilter("error")
    for number in range(first, last):
        print(number, end=" ", flush=True)
        place = folder / str(number)
        (place / "in").mkdir(parents=True)
        source = damaged(place / "in", number, np.random.default_rng([seed, number]))
        before = os.fstat(2).st_size
        answer = outcome(source, place / "out" / "x.wav")
        if os.fstat(2).st_size != before:
            answer = f"wrote to the standard error after: {answer}"
        print(answer, flush=True)
        if answer.startswith(("done", "refused")):
            shutil.rmtree(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
