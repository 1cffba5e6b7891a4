"""The benchmarks, meant for a quarter of an hour: `make bench`, or `python -m benchmarks [--only PART] [--quick]`.

Each part runs in a process of its own, one after the other, and writes `benchmarks/results/PART.json`; a part may be
run alone too, as `python -m benchmarks.PART`. Times drift between machines and hours, so what counts are the ratios
that each part tells of one run. A part that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.machine import RESULTS

PARTS: dict[str, tuple[str, ...]] = {
    "inference": (),
    "training": (),
    "startup": (),
    "features": (),
    "data": ("--items", "16", "--workers", "0"),
}
"""Module -> arguments that keep it short."""

QUICK: dict[str, tuple[str, ...]] = {
    "inference": ("--quick",),
    "training": ("--quick",),
    "startup": ("--quick",),
    "data": ("--items", "2", "--workers", "0"),
}
"""Module -> arguments with which it shows that it works; those that are absent have no such thing."""


def available() -> list[str]:
    """The parts whose modules are here."""
    return [part for part in PARTS if find_spec(f"benchmarks.{part}")]


def commands(only: Sequence[str], quick: bool, folder: Path) -> dict[str, list[str]]:
    """The command of each part that is asked for, in order; all that can be run where none is named."""
    arguments = QUICK if quick else PARTS

    def to(part: str) -> list[str]:
        return ["--json", str(folder / f"{part}.json")]

    return {
        part: [sys.executable, "-m", f"benchmarks.{part}", *arguments[part], *to(part)]
        for part in available()
        if part in arguments and (not only or part in only)
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; returns 1 when one failed, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=available(), action="append", help="run this part alone")
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go")
    given = parser.parse_args(argv)
    # What means nothing must not replace what was measured.
    folder = given.out or (RESULTS / "quick" if given.quick else RESULTS)
    failed, begun = [], time.monotonic()
    for part, command in commands(given.only or (), given.quick, folder).items():
        print(f"== {part}", flush=True)
        started = time.monotonic()
        if subprocess.run(command, check=False).returncode:
            failed.append(part)
        print(f"   {time.monotonic() - started:.0f} s", flush=True)
    print(f"{time.monotonic() - begun:.0f} s in all; the figures: {folder}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
