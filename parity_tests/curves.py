"""Loss curves of three whole runs: `python -m parity_tests.curves RUN OTHER FLOAT64`.

Two float32 runs part in time (`parity_tests.replay` says why), so a bound on their distance would be a bound on the
training and not on the port. What can be asked is the second proof of the ladder: with the float64 run of the same
settings as the truth, RUN may lie at most twice (6 dB) as far from it as OTHER does, which computes as the published
program does. Up to the bound of the rung "training" it may lie anywhere. Of the losses that have names, the one that is
farthest away counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from parity_tests.report import print_table
from parity_tests.result import Report, Row
from parity_tests.rungs_training import farthest_loss, logged_losses
from parity_tests.tolerances import bound
from parivox.errors import ConfigError
from parivox.hparams import check_same_run
from parivox.stages import load_hparams

EVERY = 25
"""Updates between rows."""


def curves(run: Path, other: Path, truth: Path) -> list[Row]:
    """Rows for every 25th update; the error is how many times as far from TRUTH as OTHER it has been at worst.

    Raises:
        ConfigError: the runs have different settings, or one lacks updates that another has.
    """
    hp = load_hparams(truth / "hparams.yaml")
    for folder in (run, other):
        check_same_run(hp, load_hparams(folder / "hparams.yaml"), folder)
    found, known, true = (logged_losses(folder) for folder in (run, other, truth))
    steps = sorted(true)
    for folder, have in ((run, found), (other, known)):
        missing = sorted(set(steps) ^ set(have))
        if missing:
            raise ConfigError(f"{folder} and {truth}: only one has update {missing[0]}; compare whole runs")
    own, published = (
        np.maximum.accumulate([farthest_loss(have[step], true[step]) for step in steps])
        for have in (found, known)
    )
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
