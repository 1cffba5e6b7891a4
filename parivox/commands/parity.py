"""`parivox parity`: run the ladder on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from parivox.commands.options import (
    NO_HINT,
    CountOption,
    DeviceOption,
    FileOption,
    FolderOption,
    PrecisionOption,
)
from parivox.errors import ConfigError

if TYPE_CHECKING:
    from parity_tests.result import Report


@dataclass(frozen=True)
class ParityCommand:
    """Show, number by number, that both backends compute the same on this machine.

    Every comparison has a bound; the exit status is 0 when all lie inside.

    Attributes:
        backend: Which backends; by default what is installed.
        device: Where the float32 comparisons compute.
        precision: Their arithmetic: shows what the hardware's faster kinds do to the model.
        reference: Folder of recorded outputs to compare with; by default a small set that Parivox has.
        seed: The seed they were recorded with.
        report: Write everything with pictures as one HTML page.
        json_file: Write the table as JSON.
        jobs: Processes that share the work; by default one for each CPU, or one alone on a GPU or TPU.
        quick: Leave out the planted faults, which show that the comparisons notice an error.
        replay: Compare by a run in place of made-up signals: the other backend takes each of its checkpoints to the
            next one, and every loss is compared. Train with --checkpoint-every 10 --keep 1000 for instance.
    """

    backend: Annotated[Literal["both", "jax", "torch"] | None, NO_HINT] = None
    device: DeviceOption = "auto"
    precision: PrecisionOption = "highest"
    reference: FolderOption = None
    seed: int = 20
    report: FileOption = None
    json_file: Annotated[FileOption, tyro.conf.arg(name="json")] = None
    jobs: CountOption = None
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff, NO_HINT] = False
    replay: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None

    def run(self) -> int:
        """Run the ladder; returns the exit status."""
        for path in (self.report, self.json_file):
            if path is not None:
                check_output(path)
        from parity_tests.report import print_table, write_html, write_json

        report = self._climb() if self.replay is None else self._replay(self.replay)
        print_table(report)
        if self.json_file is not None:
            write_json(report, self.json_file)
        if self.report is not None:
            write_html(report, self.report)
            print(f"the report is in {self.report}", flush=True)
        return 0 if report.passed else 1

    def _climb(self) -> Report:
        from parity_tests.ladder import LadderOptions, run_ladder

        options = LadderOptions(
            backends=None if self.backend is None else _BACKENDS[self.backend],
            device=self.device,
            precision=self.precision,
            reference=self.reference,
            seed=self.seed,
            faults=not self.quick,
            jobs=self.jobs,
        )
        return run_ladder(options, partial(print, flush=True))

    def _replay(self, folder: Path) -> Report:
        if self.backend == "both":
            raise ConfigError("--replay compares one backend with the run; use --backend jax or torch")
        from parity_tests.replay import replay

        return replay(folder, self.backend, self.device, self.precision, partial(print, flush=True))


_BACKENDS: dict[str, tuple[Literal["jax", "torch"], ...]] = {
    "jax": ("jax",),
    "torch": ("torch",),
    "both": ("jax", "torch"),
}


def check_output(path: Path) -> None:
    """Refuse a file that could not be written, before minutes are spent on its content.

    Raises:
        ConfigError: it is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file")
    folder = next(parent for parent in (path.parent, *path.resolve().parents) if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(f"{path}: cannot be written, {folder} is not a writable folder; name another file")
