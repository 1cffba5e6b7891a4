"""`parivox evaluate`: score recordings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from parivox.commands.lines import Lines
from parivox.commands.options import NO_HINT, FileOption
from parivox.commands.parity import check_output
from parivox.errors import ConfigError

# The names of parivox.scores.METRICS, which imports NumPy; a test compares them.
MetricOption = Literal["si_sdr", "pesq", "stoi", "lsd", "mcd", "dnsmos", "wer", "speaker"]


@dataclass(frozen=True)
class EvaluateCommand:
    """Score recordings: how good they are, how near to a reference, and how much was changed.

    Two files, or two folders whose files have the same paths but for the suffix. With --no-reference only ESTIMATE
    is named. Channels are scored one by one and averaged. A file that cannot be scored is named on a line of its own
    and does not stop the others; the exit status is 0 when all were scored.

    Attributes:
        reference: What the sound should be, or was before; a file or a folder.
        estimate: The sound to score; a file or a folder.
        no_reference: Score a sound by itself, with DNSMOS.
        metrics: What to measure; by default everything that is installed. si_sdr, lsd and mcd need nothing; pesq, stoi
            and dnsmos come with parivox[metrics], wer and speaker with parivox[changed].
        csv: Write the scores as CSV.
        json_file: Write the scores as JSON.
        page: Write one HTML page with plots, and spectrograms of the worst and best file.
    """

    reference: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="REFERENCE")]
    estimate: Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="ESTIMATE", help_behavior_hint="")
    ] = None
    no_reference: Annotated[bool, tyro.conf.FlagCreatePairsOff, NO_HINT] = False
    metrics: Annotated[tuple[MetricOption, ...] | None, NO_HINT] = None
    csv: FileOption = None
    json_file: Annotated[FileOption, tyro.conf.arg(name="json")] = None
    page: FileOption = None

    def run(self) -> int:
        """Score; returns the exit status."""
        from parivox.evaluate_files import evaluate_path
        from parivox.evaluate_page import write_page
        from parivox.evaluate_report import print_table, write_csv, write_json
        from parivox.progress import track
        from parivox.scores import choose

        reference, estimate = self._paths()
        outputs = ((self.csv, write_csv), (self.json_file, write_json), (self.page, write_page))
        for path, _ in outputs:
            if path is not None:
                check_output(path)
        tell = Lines()
        metrics, missing = choose(self.metrics, reference is not None)
        for line in missing:
            tell(line)
        scores = evaluate_path(
            reference, estimate, metrics, message=tell, track=partial(track, description="scoring")
        )
        print_table(scores)
        for path, write in outputs:
            if path is not None:
                write(scores, path)
                print(f"written: {path}", flush=True)
        print(_summary_line(len(scores.files), len(scores.failed)), flush=True)
        return 1 if scores.failed else 0

    def _paths(self) -> tuple[Path | None, Path]:
        """Reference and estimate; a single path is the estimate."""
        if self.no_reference and self.estimate is None:
            return None, self.reference
        if self.no_reference:
            raise ConfigError(
                "--no-reference scores ESTIMATE alone; name one path, or leave out --no-reference"
            )
        if self.estimate is None:
            raise ConfigError(
                "evaluate compares two paths, REFERENCE and ESTIMATE; name both, or score one with --no-reference"
            )
        return self.reference, self.estimate


def _summary_line(done: int, failed: int) -> str:
    return f"{done} file{'' if done == 1 else 's'} scored" + (f", {failed} failed" if failed else "")
