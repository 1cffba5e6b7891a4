"""The subcommands that have few options: `parivox doctor` and `parivox demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from parivox.commands.options import FolderOption


@dataclass(frozen=True)
class DoctorCommand:
    """Say which backends, devices and extras work here, and which command installs what is missing."""

    def run(self) -> int:
        """Print the diagnosis; returns the exit status, 0 when at least one backend works."""
        from parivox.doctor import print_doctor

        return print_doctor()


@dataclass(frozen=True)
class DemoCommand:
    """Train a small denoiser on each backend, clean a recording with both, and compare them in a report.

    Attributes:
        out: Folder for everything it makes.
        data: Folder with fg (speech), bg (noise) and rir (rooms); by default the demo makes its own.
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("demo-out")
    data: FolderOption = None

    def run(self) -> int:
        """Run the demo; returns the exit status, 0 when every comparison lies inside its bound."""
        from parivox.demo import run_demo

        return run_demo(self.out, self.data)
