"""Loss curves of three whole runs: `python -m parity_tests.curves RUN OTHER FLOAT64`.

Two float32 runs part in time (`parity_tests.replay` says why), so a bound on their distance would be a bound on the
training and not on the port. What can be asked is the second proof of the ladder: with the float64 run of the same
settings as the truth, RUN may lie at most twice (6 dB) as far from it as OTHER does, which computes as the published
program does. Up to the bound of the rung "training" it may lie anywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from parity_tests.report import print_table
from parity_tests.result import Report, Row
from parity_tests.tolerances import bound
from parivox.errors import ConfigError
from parivox.hparams import DenoiserHParams, check_same_run
from parivox.runlog import read_metrics

EVERY = 25
"""Updates between rows."""


def curves(run: Path, other: Path, truth: Path) -> list[Row]:
    """Rows for every 25th update; the error is how many times as far from TRUTH as OTHER it has been at worst.

    Raises:
        ConfigError: the runs have different settings, or one lacks updates that another has.
    """
    hp = DenoiserHParams.load(truth / "hparams.yaml")
    for folder in (run, other):
        check_same_run(hp, DenoiserHParams.load(folder / "hparams.yaml"), folder)
    found, known, true = (losses(folder) for folder in (run, other, truth))
    steps = sorted(true)
    for folder, have in ((run, found), (other, known)):
        missing = sorted(set(steps) ^ set(have))
        if missing:
            raise ConfigError(f"{folder} and {truth}: only one has update {missing[0]}; compare whole runs")
    wanted = np.array([true[step] for step in steps])
    own, published = (worst_so_far([have[step] for step in steps], wanted) for have in (found, known))
    times = bound("whole run", "float32")
    floor = bound("training", "float32") / times
    ratio = np.maximum.accumulate(own / np.maximum(published, floor))
    return [
        Row(
            "training",
            f"updates 1 to {steps[k]}, {run.name}",
            f"{truth.name} in float64",
            float(ratio[k]),
            times,
            "float32",
            f"worst loss {own[k]:.1e} away; {other.name} {published[k]:.1e}",
        )
        for k in sorted({*range(EVERY - 1, len(steps), EVERY), len(steps) - 1})
    ]


def losses(folder: Path) -> Mapping[int, float]:
    """Update -> loss, as the run logged it."""
    return {line["step"]: line["loss"] for line in read_metrics(folder, "train")}


def worst_so_far(found: Sequence[float], wanted: np.ndarray) -> np.ndarray:
    """Largest relative difference of this update and those before; NaN from the first that is NaN."""
    return np.maximum.accumulate(np.abs(np.array(found) / wanted - 1))


def main() -> int:
    """Compare the runs that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("run", "other", "float64"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    given = parser.parse_args()
    report = Report(curves(given.run, given.other, given.float64))
    print_table(report)
    return 0 if report.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
