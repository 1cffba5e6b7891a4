"""The subcommands of `parivox`: dataclasses of options whose method `run` gives the exit status.

The list of commands needs this table alone. A command's module is imported when the command is asked for, and what
computes is imported in `run`, so that `parivox --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

__all__ = ["COMMANDS", "Entry"]


class Entry(NamedTuple):
    """A subcommand in the list of commands; a test compares it with what it stands for.

    Attributes:
        module: the module of `parivox.commands`.
        name: the class in it.
        about: the first line of the class's docstring.
    """

    module: str
    name: str
    about: str

    def load(self) -> Any:
        """Import the module; returns the class."""
        return getattr(importlib.import_module(f"parivox.commands.{self.module}"), self.name)


COMMANDS = {
    "train denoiser": Entry("train", "TrainDenoiserCommand", "Train the denoiser."),
    "train enhancer-stage1": Entry(
        "train",
        "TrainStage1Command",
        "Train the enhancer's auto-encoder and vocoder on clean speech.",
    ),
    "train enhancer-stage2": Entry(
        "train",
        "TrainStage2Command",
        "Train the enhancer's flow, and its denoiser, on distorted speech after the first stage.",
    ),
    "prepare": Entry(
        "prepare",
        "PrepareCommand",
        "Decode a folder of speech or noise once, so that training reads samples and decodes nothing.",
    ),
    "enhance": Entry(
        "enhance",
        "EnhanceCommand",
        "Clean a recording, or every recording below a folder, with a trained model.",
    ),
    "evaluate": Entry(
        "evaluate",
        "EvaluateCommand",
        "Score recordings: how good they are, how near to a reference, and how much was changed.",
    ),
    "serve": Entry(
        "serve", "ServeCommand", "Serve a web page on which recordings are cleaned, heard and seen."
    ),
    "convert": Entry(
        "convert",
        "ConvertCommand",
        "Convert a model between the published layout, a Parivox run and one safetensors file.",
    ),
    "export": Entry(
        "export",
        "ExportCommand",
        "Write the denoiser of a model as one file that runs without Parivox: ONNX or StableHLO.",
    ),
    "parity": Entry(
        "parity",
        "ParityCommand",
        "Show, number by number, that both backends compute the same on this machine.",
    ),
    "plan": Entry(
        "plan",
        "PlanCommand",
        "Compile a command for TPUs that are not here: memory, work, exchange between chips, estimated time.",
    ),
    "doctor": Entry(
        "others",
        "DoctorCommand",
        "Say which backends, devices and extras work here, and which command installs what is missing.",
    ),
    "demo": Entry(
        "others",
        "DemoCommand",
        "Train a small denoiser on each backend, clean a recording with both, and compare them in a report.",
    ),
}
"""Name on the command line -> the subcommand, in the order of the list."""
