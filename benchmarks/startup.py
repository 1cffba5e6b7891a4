"""How soon something happens: `python -m benchmarks.startup [--json FILE] [--quick]`.

The command line's help and version; and the first second of denoised sound on each backend, through `parivox enhance
--denoise-only` with an untrained denoiser of full width, a process each. With JAX that is told with an empty cache of
compiled programs and with a full one, and what each program took to compile or to read, from JAX's own log. Times are
by the clock and of the processor: the clock counts whatever else the machine does. `--quick` runs everything once.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import calm_threads, machine, write_results
from parivox.audio import write_audio
from parivox.backend import BACKENDS, BackendName, installed
from parivox.checkpoint import Checkpoint, save_checkpoint
from parivox.convert import convert
from parivox.features import SAMPLE_RATE
from parivox.hparams import DenoiserHParams
from parivox.run import meta_of
from parivox.run_config import config_of
from parivox.run_start import arrays_of
from parivox.weights import initial_denoiser

TARGETS = {"help": 0.5, "jax": 5.0, "torch": 3.0}
"""Seconds by the clock on an idle CPU of two cores: for the help, and for the first second of sound."""

COMPILED = re.compile(r"Finished XLA compilation of (?:jit\()?([^ )]+)\)? in ([\d.e+-]+) sec")
"""A line of JAX's log; a program that comes from the cache has one too."""


class Took(NamedTuple):
    """Seconds of a process by the clock and of the processor, and what it wrote to the standard error."""

    wall: float
    cpu: float
    errors: str


def run(words: list[str], environment: Mapping[str, str] | None = None) -> Took:
    """Run Python to its end.

    Raises:
        SystemExit: it failed; with what it wrote to the standard error.
    """
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(wall, cpu, done.stderr)


def several(work: Callable[[], Took], repeats: int) -> dict[str, float]:
    """The medians of some runs, and the quickest by the clock."""
    runs = [work() for _ in range(repeats)]
    walls = [one.wall for one in runs]
    cpu = statistics.median(one.cpu for one in runs)
    return {"wall": statistics.median(walls), "wall_min": min(walls), "cpu": cpu}


def programs(log: str) -> dict[str, float]:
    """Seconds that each program of a log took to compile or to read; those of one name together."""
    found: dict[str, float] = {}
    for name, seconds in COMPILED.findall(log):
        found[name] = found.get(name, 0.0) + float(seconds)
    return found


def make_model(root: Path) -> Path:
    """An untrained denoiser of full width, as one safetensors file."""
    hp, folder = DenoiserHParams(), root / "run"
    weights = initial_denoiser(0, hp.unet_hidden_dim)
    arrays = arrays_of(hp, weights, 0, config_of(hp, None).optimizer)
    hp.save(folder / "hparams.yaml")
    save_checkpoint(folder, Checkpoint(arrays, meta_of(hp, 0, 0, 0)))
    convert(folder, root / "model.safetensors", message=lambda line: None)
    return root / "model.safetensors"


def first_second(name: BackendName, root: Path, repeats: int) -> dict[str, Any]:
    """One second of sound through the command, in fresh processes."""
    words = ["-m", "parivox", "enhance", str(root / "second.wav"), str(root / f"{name}.wav")]
    words += [
        "--denoise-only",
        "--run",
        str(root / "model.safetensors"),
        "--backend",
        name,
        "--device",
        "cpu",
    ]

    def once() -> Took:
        return run(words, {"JAX_COMPILATION_CACHE_DIR": str(root / "cache"), "JAX_LOG_COMPILES": "1"})

    # The first of them fills JAX's cache, and the system's cache of files for both.
    cold = once()
    found: dict[str, Any] = {"cold": {"wall": cold.wall, "cpu": cold.cpu}}
    if name == "jax":
        found["cold"]["programs"] = programs(cold.errors)
        warm = once()
        found["warm_programs"] = programs(warm.errors)
    return {**found, "warm": several(once, repeats)}


def measure(repeats: int, names: list[BackendName]) -> dict[str, Any]:
    """Everything, with the machine it was measured on."""
    found: dict[str, Any] = {"machine": machine(), "targets": TARGETS, "commands": {}, "first_second": {}}
    commands = {
        "python": ["-c", "pass"],
        "parivox --version": ["-m", "parivox", "--version"],
        "parivox --help": ["-m", "parivox", "--help"],
    }
    for name, words in commands.items():
        run(words)
        row = found["commands"][name] = several(lambda words=words: run(words), repeats)
        print(f"{name:18} {row['wall']:.2f} s by the clock, {row['cpu']:.2f} s of processor time", flush=True)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        make_model(root)
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, SAMPLE_RATE)).astype(np.float32)
        write_audio(root / "second.wav", noise, SAMPLE_RATE)
        for name in names:
            row = found["first_second"][name] = first_second(name, root, repeats)
            cold, warm = row["cold"], row["warm"]
            print(
                f"{name:6} first second of sound: {cold['wall']:.1f} s ({cold['cpu']:.1f} s of processor time), then"
                f" {warm['wall']:.1f} s ({warm['cpu']:.1f} s); the target is {TARGETS[name]:g} s",
                flush=True,
            )
            for when, listed in (("compiled", cold.get("programs")), ("read", row.get("warm_programs"))):
                if listed:
                    told = ", ".join(f"{what} {seconds:.2f} s" for what, seconds in listed.items())
                    print(f"       {when}: {told}", flush=True)
    return found


def main() -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="run everything once")
    given = parser.parse_args()
    calm_threads()
    names: list[BackendName] = [name for name in BACKENDS if installed(name)]
    found = measure(1 if given.quick else 5, names)
    if given.json:
        write_results(given.json, found)


if __name__ == "__main__":
    main()
