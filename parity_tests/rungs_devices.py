"""The rung of many devices: one training over several devices or processes against the same on one.

Every run is made in processes of its own, on CPUs: JAX splits one into as many devices as are wanted.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests import deepspeed_oracle, rungs_training
from parity_tests.ladder import Finding, Ladder
from parity_tests.rank_run import PARTS
from parity_tests.result import Row, Skipped
from parity_tests.rungs_model import worst_leaf
from parity_tests.tolerances import bound
from parivox.backend import BackendName

ROOT = Path(__file__).parent.parent
UPDATES = 50
JAX_DEVICES = 8
SECONDS = 1800
"""Time for the processes of a run on a busy machine."""


@dataclass(frozen=True)
class Run:
    """One training, of the narrow model at a fixed global batch.

    Attributes:
        stage: of ZeRO.
        devices: JAX in one process: devices to use; 0 takes one, or those of all processes.
        passes: micro batches of an update on each device.
        updates: how many.
        seed: of weights and data.
        dtype: `float64` on JAX alone.
        entries: of the DeepSpeed config, beside the model's own.
        fault: put in on purpose; the same in all runs of one call.
        weigh: whether to weigh what a device holds.
    """

    stage: int = 0
    devices: int = 0
    passes: int = 1
    updates: int = UPDATES
    seed: int = 20
    dtype: str = "float32"
    entries: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None
    weigh: bool = True


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        losses: of each update.
        norms: of each update's gradient.
        weights: at the end, by name.
        held: bytes on a device of `parameters`, `gradients` and `optimizer`; None where they were not weighed.
        finite: whether every update was made.
    """

    losses: np.ndarray
    norms: np.ndarray
    weights: dict[str, np.ndarray]
    held: dict[str, int] | None
    finite: bool


def make(name: BackendName, runs: Sequence[Run], processes: int = 1) -> list[Outcome]:
    """Make runs in so many processes, which each make all of them.

    Raises:
        RuntimeError: a process has failed, with what it said.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        job = Path(folder, "job.json")
        job.write_text(json.dumps({"backend": name, "runs": [asdict(run) for run in runs]}), encoding="utf-8")
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        started = [_start(name, job, rank, processes, port) for rank in range(processes)]
        try:
            told = [process.communicate(timeout=SECONDS)[0] for process in started]
        finally:
            for process in started:
                process.kill()
        if any(process.returncode for process in started):
            raise RuntimeError(f"{processes} processes of {name} did not end well:\n" + "\n".join(told))
        return [_outcome(job, number) for number in range(len(runs))]


def _start(name: BackendName, job: Path, rank: int, size: int, port: int) -> subprocess.Popen[str]:
    told = {
        "JAX_PLATFORMS": "cpu",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    told |= {"OMP_WAIT_POLICY": "passive", "JAX_NUM_CPU_DEVICES": str(JAX_DEVICES if size == 1 else 1)}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    told["PYTHONPATH"] = os.pathsep.join(paths)
    if name == "torch" and size > 1:
        told |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-m", "parity_tests.rank_run", str(job), str(rank), str(size), str(port)],
        env=os.environ | told,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _outcome(job: Path, number: int) -> Outcome:
    told = json.loads(job.with_name(f"{job.stem}-{number}.json").read_text(encoding="utf-8"))
    with np.load(job.with_name(f"{job.stem}-{number}.npz"), allow_pickle=False) as file:
        return Outcome(
            np.array(told["losses"]), np.array(told["norms"]), dict(file), told["bytes"], told["finite"]
        )


def row(name: BackendName, where: str, run: Run, found: Outcome, wanted: Outcome) -> Row:
    """The worst loss or gradient norm of a run against one device; Adam and clipping hide a factor from the loss."""
    case = f"{run.updates} updates, {name} on {where}, ZeRO {run.stage}"
    if run.passes > 1:
        case += f", {run.passes} passes"
    drift = worst_leaf(found.weights, wanted.weights)
    note = f"worst weight tensor at the end {drift:.1e}"
    if found.held is not None:
        parts = ", ".join(f"{part} {found.held[part]:,}" for part in PARTS)
        note += f"; bytes on a device: {parts}"
    error = max(
        rungs_training.worst_loss(found.losses, wanted.losses),
        rungs_training.worst_loss(found.norms, wanted.norms),
    )
    limit = bound("training", run.dtype)
    return Row("devices", case, f"{name}, 1 device", error, limit, run.dtype, note, "zero_optimization")


_ALONE: dict[str, Outcome] = {}
"""Runs on one device that were made before; the planted faults have theirs in common."""


def alone(name: BackendName, run: Run) -> Outcome:
    """The same training on one device, without fault."""
    single = replace(run, devices=1 if name == "jax" else 0, stage=0, passes=1, fault=None)
    key = f"{name}: {single}"
    if key not in _ALONE:
        (_ALONE[key],) = make(name, [single])
    return _ALONE[key]


def jax_rows(runs: Sequence[Run]) -> Iterator[Row]:
    """Runs of JAX in one process against one device."""
    wanted = alone("jax", runs[0])
    for run, outcome in zip(runs, make("jax", runs), strict=True):
        yield row("jax", f"{run.devices} devices", run, outcome, wanted)


def process_rows(name: BackendName, runs: Sequence[Run], size: int = 2) -> Iterator[Row]:
    """Runs over several processes of one device each against one process."""
    wanted = alone(name, runs[0])
    for run, outcome in zip(runs, make(name, runs, size), strict=True):
        yield row(name, f"{size} processes", run, outcome, wanted)


def devices(ladder: Ladder) -> Iterator[Finding]:
    """Eight devices of JAX (two in a short climb) and two processes of PyTorch, each against one.

    The slow tests have all the others.
    """
    seed, updates, long = ladder.options.seed, ladder.updates(UPDATES), ladder.options.long
    if "jax" in ladder.backends:
        yield from jax_rows([Run(3, JAX_DEVICES if long else 2, seed=seed, updates=updates)])
    if "torch" not in ladder.backends:
        return
    if not deepspeed_oracle.available():
        yield Skipped("devices", "DeepSpeed is not installed (pip install 'parivox[deepspeed]')")
        return
    yield from process_rows(
        "torch", [Run(stage, seed=seed, updates=updates) for stage in ((1, 3) if long else (3,))]
    )
