"""The subcommands of `parivox`: dataclasses of options whose method `run` gives the exit status.

Importing them is cheap, so that `parivox --help` answers at once; what computes is imported in `run`.
"""

from __future__ import annotations

from parivox.commands.enhance import EnhanceCommand
from parivox.commands.others import DemoCommand, DoctorCommand
from parivox.commands.parity import ParityCommand
from parivox.commands.train import TrainDenoiserCommand

__all__ = ["DemoCommand", "DoctorCommand", "EnhanceCommand", "ParityCommand", "TrainDenoiserCommand"]
