"""What cleaning files takes: memory against length, and many short files against a long one.

`python -m benchmarks.cleaning` measures two things for each backend, with untrained weights of the small preset.
Memory: the peak of a whole process that cleans a file of 2 minutes, and of one that cleans 2 hours. Time: a folder of
40 files of 40 lengths against one file as long as all of them; each in one process, after a first pass in which JAX
compiles, so that the second is the pace of all later ones; the programs compiled in the first pass are counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import RESULTS as FOLDER
from benchmarks.machine import machine, write_results
from benchmarks.vocoder_memory import resident
from parivox.audio import write_blocks
from parivox.backend import BACKENDS, BackendName, get_backend, installed
from parivox.chunks import WAV_RATE
from parivox.cleaner import Cleaner
from parivox.enhance import chunk_sizes, full_row
from parivox.enhance_files import enhance_path
from parivox.heap import return_large_blocks
from parivox.hparams import EnhancerHParams
from parivox.loading import Loaded
from parivox.presets import preset
from parivox.rows import RowModel, bucket_lengths
from parivox.sampling import Sampling
from parivox.weights_enhancer import initial_enhancer

RESULTS = FOLDER / "cleaning.json"
TASKS = ("denoise", "enhance")
SHORT, LONG = 120.0, 7200.0
FILES, LONGEST = 40, 20.0
NFE = 2
"""Evaluations of the flow; it is a loop, so that more take more time and the same memory."""


def model_of(name: BackendName, task: str) -> RowModel:
    """An untrained model of the small preset."""
    hp = preset("enhancer_stage2_small")
    if not isinstance(hp, EnhancerHParams):
        raise TypeError("the preset is no enhancer's")
    loaded = Loaded(hp, initial_enhancer(0, hp), "untrained")
    cleaner = Cleaner(loaded, get_backend(name, device="cpu"), "the small preset")
    return cleaner.denoiser() if task == "denoise" else cleaner.enhancer(Sampling(nfe=NFE))


def write_sound(path: Path, seconds: float, seed: int = 0) -> None:
    """Noise that swells and fades, of any length."""
    rng, frames = np.random.default_rng(seed), round(seconds * WAV_RATE)

    def blocks():
        for begin in range(0, frames, WAV_RATE):
            size = min(WAV_RATE, frames - begin)
            yield np.float32(0.1 + 0.4 * rng.random()) * rng.uniform(-1, 1, (1, size)).astype(np.float32)

    write_blocks(path, blocks(), 1, frames, WAV_RATE)


def peak_here(name: BackendName, task: str, source: Path) -> dict[str, float]:
    """Peak memory in MB and wall seconds of cleaning one file in this process, as the command does it."""
    return_large_blocks()
    model, begun = model_of(name, task), time.monotonic()
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        enhance_path(source, Path(folder) / "out.wav", model)
    return {"peak_mb": resident("VmHWM"), "seconds": time.monotonic() - begun}


class Programs(logging.Handler):
    """Counts the model's programs that JAX compiles, from its own log."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.count += bool(re.match(r"Compiling (jit\()?forward", record.getMessage()))


def folder_here(name: BackendName, task: str, folder: Path) -> dict[str, float]:
    """Seconds for a folder and for one file as long, each after a first pass, and programs compiled."""
    return_large_blocks()
    model, counter = model_of(name, task), Programs()
    if name == "jax":
        import jax

        jax.config.update("jax_log_compiles", True)
        logger = logging.getLogger("jax")
        logger.addHandler(counter)
        logger.propagate = False
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        for turn in ("first", "second"):
            for what in ("many", "one"):
                begun = time.monotonic()
                enhance_path(folder / what, Path(out) / turn / what, model)
                found[f"{what}_{turn}"] = time.monotonic() - begun
            found[f"programs_{turn}"] = counter.count
    return found


def in_process(*words: str) -> dict[str, float]:
    """What a fresh process prints as JSON on its last line."""
    command = [sys.executable, "-m", "benchmarks.cleaning", "--here", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def memory(name: BackendName, task: str, folder: Path) -> dict[str, object]:
    """The peaks of both lengths, and their ratio."""
    rows = {}
    for seconds in (SHORT, LONG):
        path = folder / f"{seconds:g}.wav"
        if not path.exists():
            write_sound(path, seconds)
        rows[f"{seconds:g}"] = row = in_process("memory", name, task, str(path))
        print(
            f"{name:6}{task:8} {seconds:6.0f} s: peak {row['peak_mb']:.0f} MB, {row['seconds']:.0f} s",
            flush=True,
        )
    ratio = rows[f"{LONG:g}"]["peak_mb"] / rows[f"{SHORT:g}"]["peak_mb"]
    print(f"{name:6}{task:8} memory of the long one: {ratio:.3f} times that of the short one", flush=True)
    return {"lengths": rows, "ratio": ratio}


def folder(name: BackendName, task: str, place: Path) -> dict[str, float]:
    """Many files against one."""
    lengths = np.random.default_rng(0).uniform(0.2, LONGEST, FILES)
    if not (place / "many").exists():
        for k, seconds in enumerate(lengths):
            write_sound(place / "many" / f"{k:02}.wav", seconds, k)
        write_sound(place / "one" / "one.wav", lengths.sum())
    row = in_process("folder", name, task, str(place))
    row["ratio"] = row["many_second"] / row["one_second"]
    row["buckets"] = len(bucket_lengths(full_row(*chunk_sizes(30.0, 1.0)))) + 1
    print(
        f"{name:6}{task:8} {FILES} files of {lengths.sum():.0f} s: {row['many_second']:.1f} s; one file "
        f"{row['one_second']:.1f} s; ratio {row['ratio']:.3f}; {row['programs_first']:.0f} programs compiled for "
        f"{row['buckets']} buckets, {row['programs_second'] - row['programs_first']:.0f} in the second pass",
        flush=True,
    )
    return row


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=RESULTS, help="write the figures here")
    parser.add_argument("--only", choices=("memory", "folder"), help="measure this alone")
    parser.add_argument("--backend", choices=BACKENDS, help="measure this one alone")
    parser.add_argument("--task", choices=TASKS, help="measure this one alone")
    parser.add_argument("--here", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        what, name, task, path = given.here
        print(json.dumps((peak_here if what == "memory" else folder_here)(name, task, Path(path))))
        return
    found: dict = json.loads(given.json.read_text()) if given.json.exists() else {}
    found["machine"] = machine()
    with tempfile.TemporaryDirectory() as place:
        for name in filter(installed, BACKENDS):
            for task in TASKS:
                if given.backend in (None, name) and given.task in (None, task):
                    row = found.setdefault(name, {}).setdefault(task, {})
                    for what, measure in (("folder", folder), ("memory", memory)):
                        if given.only in (None, what):
                            row[what] = measure(name, task, Path(place))
                            write_results(given.json, found)


if __name__ == "__main__":
    main()
