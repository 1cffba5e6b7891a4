"""`parivox prepare`: decode a folder of recordings once, for training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from parivox.commands.lines import Lines
from parivox.commands.options import CountOption


@dataclass(frozen=True)
class PrepareCommand:
    """Decode a folder of speech or noise once, so that training reads samples and decodes nothing.

    The folder that it writes is given to parivox train as --fg-dir or --bg-dir. What is there already is kept: the same
    command goes on where it was stopped, and follows files that were added, changed or removed.

    Attributes:
        source: Folder of wav, flac, ogg and mp3 files.
        target: Folder for the samples, mono at 44,100 Hz.
        dtype: int16 rounds every sample to 16 bits; float32 rounds nothing, and takes no more room where 16 bits are
            enough.
        jobs: Processes; by default one for each CPU.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    dtype: Literal["float32", "int16"] = "float32"
    jobs: CountOption = None

    def run(self) -> int:
        """Prepare; returns the exit status."""
        from parivox.data.prepare import prepare
        from parivox.progress import track

        done = prepare(
            self.source,
            self.target,
            self.dtype,
            self.jobs,
            message=Lines(),
            track=lambda items, total: track(items, "preparing", total=total),
        )
        skipped = f", {len(done.skipped)} files did not decode" if done.skipped else ""
        print(
            f"{self.target}: {done.clips} clips, {done.seconds / 3600:.2f} hours, {done.made} decoded now{skipped}",
            flush=True,
        )
        return 0
