"""Starting, killing and hearing the processes of a run of several ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATIENCE = 300
"""Seconds for a program to begin on a busy machine."""

DEATH_SECONDS = 60
"""A run that has lost a process must have ended after so long."""


def environment(**values: str) -> dict[str, str]:
    quiet = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return os.environ | quiet | {"PYTHONPATH": str(ROOT)} | values


def run_program(module: str, *arguments: str, **values: str) -> str:
    """Run a program of one process to its end; its standard output."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, env=environment(**values), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def ranks(module: str, what: str, folder: Path, size: int = 2) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of a program, the JAX one told by arguments and the torch one by a launcher's variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    try:
        for rank in range(size):
            if "torch" in module:
                arguments = [str(folder)]
                told = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
                told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            else:
                arguments, told = [str(rank), str(size), port, str(folder)], {"JAX_NUM_CPU_DEVICES": "2"}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, what, *arguments],
                    env=environment(**told),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finish(processes: list[subprocess.Popen[str]]) -> None:
    """Wait until all have ended well."""
    told = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(told)


def last_words(module: str, folder: Path, victim: int) -> str:
    """Kill one of two processes that sum without end; what the other says when it ends with status 1."""
    with ranks(module, "wait", folder) as processes:
        deadline = time.monotonic() + PATIENCE
        while not all((folder / str(rank)).exists() for rank in range(2)):
            assert all(process.poll() is None for process in processes), processes[0].communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        processes[victim].kill()
        other = processes[1 - victim]
        said = other.communicate(timeout=DEATH_SECONDS)[1]
        assert other.returncode == 1, said
        return said
