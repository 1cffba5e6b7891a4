"""What the benchmarks share: the machine, times taken in turn, and the machine's own peak."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "jax", "jaxlib", "torch", "deepspeed")
Times = dict[str, float]
"""Seconds: `median`, `min` and `max` of several runs."""


def machine() -> dict[str, object]:
    """Processor, system, versions, commit, and how busy the machine was just before, for a results file."""
    cpus = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", cpus.read_text(encoding="utf-8")) if cpus.exists() else None
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "cpu": named[1] if named else platform.processor(),
        "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": commit.stdout.strip() or None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def in_turn(works: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, Times]:
    """Run each once uncounted, then all of them in turn so many times, so that a slow minute meets all alike."""
    took: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            took[name].append(time.perf_counter() - begin)
    return {
        name: {"median": statistics.median(times), "min": min(times), "max": max(times)}
        for name, times in took.items()
    }


def timed(work: Callable[[], object], repeats: int = 5) -> Times:
    """The same of one alone."""
    return in_turn({"it": work}, repeats)["it"]


def matrix_peak(size: int = 2048) -> float:
    """GFLOP/s of a float32 matrix product in NumPy, the best of several."""
    a = np.ones((size, size), np.float32)
    return 2 * size**3 / timed(lambda: a @ a, 8)["min"] / 1e9


def calm_threads() -> None:
    """Have OpenMP's threads soon sleep while they wait, as the command does; call it before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def in_process(module: str, *words: str, environment: Mapping[str, str] | None = None) -> Any:
    """What `python -m module words` prints as JSON on its last line, in a fresh process.

    Args:
        module: to be run.
        words: its arguments.
        environment: variables beside those of this process.

    Raises:
        SystemExit: it failed; with what it wrote to the standard error.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(words)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def write_results(path: Path, found: Mapping[str, object]) -> None:
    """Write a results file, its folder as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
