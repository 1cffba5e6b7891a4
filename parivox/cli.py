"""The command `parivox`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

import parivox
from parivox.commands import COMMANDS
from parivox.errors import ParivoxError, printable

DESCRIPTION = """A speech denoiser and enhancer with two interchangeable backends, JAX and PyTorch.

`parivox COMMAND --help` explains a command, `parivox --version` prints the version.
Start with `parivox demo`."""

HELP = {"-h", "--help"}


def parse(argv: Sequence[str]) -> Any:
    """The subcommand that the arguments ask for, with its options.

    Raises:
        SystemExit: status 0 after `--help`, 2 after wrong usage; tyro has printed what to print.
    """
    import dataclasses

    import tyro

    words = _joined(argv)
    first = words[:1]
    # Who asks for help sees one command's options, or none; else each must be there: where an option is misspelt,
    # tyro says which commands have one of a similar name.
    only = first if HELP.intersection(words[:2]) else list(COMMANDS)
    choices = []
    for name, entry in COMMANDS.items():
        command = entry.load() if name in only else dataclasses.make_dataclass("Other", [])
        # The list of commands has a line for each, the help of a command its whole text.
        line = None if first == [name] else entry.about
        choices.append(Annotated[command, tyro.conf.subcommand(name=name, description=line)])
    command_type: Any = Union[tuple(choices)]  # noqa: UP007 (made of a table)
    return tyro.cli(
        command_type,
        prog="parivox",
        description=DESCRIPTION,
        args=words,
        config=(tyro.conf.DisallowNone, tyro.conf.HelptextFromCommentsOff),
    )


def _run(argv: list[str]) -> int:
    if argv == ["--version"]:
        print(f"parivox {parivox.__version__}")
        return 0
    return parse(argv).run()


def _joined(argv: Sequence[str]) -> list[str]:
    """`train denoiser` as one word: each thing that can be trained has options of its own, and can be planned.

    `train` alone, with an option or nothing after it, is the denoiser's; so `train --help` explains that one.
    """
    words = list(argv)
    if " ".join(words[:2]) in COMMANDS:
        return [" ".join(words[:2]), *words[2:]]
    if words[:1] == ["plan"] and " ".join(words[1:3]) in COMMANDS:
        return ["plan", " ".join(words[1:3]), *words[3:]]
    if words in (["train", "--help"], ["train", "-h"]):
        return ["train denoiser", "--help"]
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit status: 0 when all went well, 1 when not, 130 after Ctrl-C. A mistake of the user is one line
        on the standard error; any other error is a defect and keeps its traceback.

    Raises:
        SystemExit: as `parse`.
    """
    # Before torch loads OpenMP: threads that spin as long as they wait make a training step several times slower
    # as soon as anything else wants the cores. A few microseconds of it save waking them between short operations.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        try:
            return _run(sys.argv[1:] if argv is None else list(argv))
        finally:
            if sys.stdout is not None:  # a process may be started without one
                sys.stdout.flush()
    except ParivoxError as error:
        print(f"parivox: {printable(' '.join(str(error).splitlines()))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("parivox: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone; without this, Python complains when it flushes at its end.
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
