"""The subcommands of `parivox`: dataclasses of options whose method `run` gives the exit status.

Importing them is cheap, so that `parivox --help` answers at once; what computes is imported in `run`.
"""

from __future__ import annotations

from parivox.commands.convert import ConvertCommand
from parivox.commands.enhance import EnhanceCommand
from parivox.commands.evaluate import EvaluateCommand
from parivox.commands.export import ExportCommand
from parivox.commands.others import DemoCommand, DoctorCommand
from parivox.commands.parity import ParityCommand
from parivox.commands.serve import ServeCommand
from parivox.commands.train import TrainDenoiserCommand, TrainStage1Command, TrainStage2Command

__all__ = [
    "ConvertCommand",
    "DemoCommand",
    "DoctorCommand",
    "EnhanceCommand",
    "EvaluateCommand",
    "ExportCommand",
    "ParityCommand",
    "ServeCommand",
    "TrainDenoiserCommand",
    "TrainStage1Command",
    "TrainStage2Command",
]
