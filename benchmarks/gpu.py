"""Everything to measure on a GPU in one command: `python -m benchmarks.gpu [--json FILE] [--minutes 10] [--resume]`.

Real-time factors, training steps, shares of the device's own peak, memory, rows until the memory is full, and what
bounds each, for both backends and the three kinds of arithmetic. Each backend works in a process of its own
(`benchmarks.gpu_cells`), and the file is written after every cell: a run that is cut off loses nothing, and `--resume`
goes on with the cells that are missing. `--device cpu --quick` walks the whole way on a CPU with tiny models.
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cost import cleaning_tasks, positive, training_tasks
from benchmarks.machine import machine, write_results
from parivox.backend import BACKENDS, BackendName, installed

PRECISIONS = ("tf32", "bf16", "highest")
CLEANING = ("denoise", "enhance")
TRAINING = ("denoiser", "enhancer_stage1", "enhancer_stage2")
SWEPT = ("denoise", "enhance", "denoiser")
NO_GPU = "no GPU found; run this where `parivox doctor` lists one, or try the way with --device cpu --quick"
GRACE = 20.0
"""Seconds that a cell may go on beyond the time before its process is ended."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """Seconds for the whole, given to the backends in turn: each gets its part of what is left."""

    seconds: float
    begin: float

    def left(self, now: float) -> float:
        """Until the end; 0 after it."""
        return max(0.0, self.begin + self.seconds - now)

    def share(self, now: float, backends: int) -> float:
        """Of the next of so many backends that are still to come."""
        return self.left(now) / max(1, backends)


def cells(device: str, quick: bool = False) -> list[str]:
    """Names of all cells, `kind/task/precision`, the most wanted first; the quickest where it has to be quick."""
    # A CPU has no TF32: what is measured in one arithmetic alone is then measured in float32.
    order = PRECISIONS if device == "gpu" else ("highest", "bf16", "tf32")
    found = [f"peak/matrix/{precision}" for precision in order]
    tasks = (*CLEANING, *TRAINING)
    found += [f"speed/{task}/{precision}" for precision, task in itertools.product(order, tasks)]
    found += [f"profile/{task}/{order[0]}" for task in tasks]
    found += [f"rows/{task}/{order[0]}" for task in SWEPT]
    # The discriminator has its full size at all times, and its step is the slowest to compile.
    return sorted(found, key=lambda key: "stage1" in key) if quick else found


def model_gflop(task: str) -> float:
    """Counted arithmetic for a second of sound at full size; see `benchmarks.flops`."""
    cleaning = {"enhance": cleaning_tasks()[0].gflop, "denoise": cleaning_tasks()[2].gflop}
    return (cleaning | {name: one.gflop for name, one in zip(TRAINING, training_tasks(), strict=True)})[task]


def share_of_peak(gflop: float, audio: float, seconds: float, peak_gflops: float) -> float:
    """Model FLOPs utilisation: counted arithmetic of so much sound against what the peak does in the time."""
    return gflop * audio / (seconds * peak_gflops)


def speed_rows(backends: Mapping[str, Found], quick: bool) -> Iterator[list[str]]:
    """Cells of the table of speeds; a refusal or an error stands where the figures would."""
    for name, side in backends.items():
        for key, found in side["cells"].items():
            kind, task, precision = key.split("/")
            if kind != "speed":
                continue
            head = [name, task, precision]
            if "seconds" not in found:
                yield [*head, reason(found), "", "", ""]
                continue
            peak = side["cells"].get(f"peak/matrix/{precision}", {}).get("gflops")
            share = ""
            if peak and not quick:
                share = f"{share_of_peak(model_gflop(task), found['audio'], found['seconds'], peak):.0%}"
            memory = found.get("memory")
            yield [
                *head,
                f"{1e3 * found['seconds']:,.1f} ms",
                f"{found['audio'] / found['seconds']:,.4g} x",
                share,
                f"{memory / 2**30:.2f} GiB" if memory else "",
            ]


def reason(found: Found) -> str:
    """Why a cell has no figures."""
    return found.get("refused") or found.get("error") or "not measured"


def tables(found: Found) -> list[str]:
    """The whole report, as Markdown."""
    backends, quick = found["backends"], found["quick"]
    lines = [f"- {name}: {side['device']}" for name, side in backends.items()]
    lines += [
        "",
        "| backend | task | arithmetic | a call | real time | share of peak | peak memory |",
        "|---" * 7 + "|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in speed_rows(backends, quick)]
    for name, side in backends.items():
        for key, cell in side["cells"].items():
            told = _details(f"{name}, {key}", key.split("/")[0], cell)
            lines += ["", *told] if told else []
    left = {name: side["left"] for name, side in backends.items() if side.get("left")}
    lines += ["", *(f"{name}: not begun for want of time: {', '.join(keys)}" for name, keys in left.items())]
    return lines


def _details(head: str, kind: str, cell: Found) -> list[str]:
    if kind == "speed":
        return []
    if kind == "peak" and "gflops" in cell:
        told = f"{cell['gflops'] / 1e3:,.3g} TFLOP/s, memory {cell['gb_a_second']:,.4g} GB/s"
        return [f"{head}: {told}"]
    if kind == "rows":
        rows = [
            f"{one['rows']} rows {one['audio'] / one['seconds']:,.4g} x"
            + (f" {one['memory'] / 2**30:.1f} GiB" if one.get("memory") else "")
            for one in cell.get("sweep", [])
        ]
        ended = cell.get("ended") or reason(cell)
        return [f"{head}: {'; '.join([*rows, ended])}"]
    return [f"{head}: {cell['told'] if 'told' in cell else reason(cell)}"]


class Worker:
    """A process of one backend that measures cells and tells of each as it goes."""

    def __init__(self, request: Found):
        """Start it."""
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  open for as long as the process
        command = [sys.executable, "-m", "benchmarks.gpu_cells"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.events: queue.Queue[Found | None] = queue.Queue()
        if self.process.stdin is None:
            raise RuntimeError("the process has no input")
        self.process.stdin.write(json.dumps(request))
        self.process.stdin.close()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.events.put(json.loads(line))
        self.events.put(None)

    def next(self, seconds: float) -> Found | None:
        """What it tells next; None when it has ended.

        Raises:
            TimeoutError: nothing came, and the process has been ended.
        """
        try:
            return self.events.get(timeout=max(0.1, seconds))
        except queue.Empty:
            self.process.kill()
            raise TimeoutError from None

    def last_words(self) -> str:
        """How it ended, and the last line that it complained in."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = [line for line in self.errors.read().splitlines() if line.strip()]
        return f"the process ended with {code}: {lines[-1][:300] if lines else 'no word'}"

    def close(self) -> None:
        """End it where it still runs, and let go of what it held."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.errors.close()


def measure_backend(side: Found, request: Found, seconds: float, save: Any, start: Any = Worker) -> None:
    """Let a backend measure the cells of a request until the time is over; a process that dies costs its cell alone.

    Args:
        side: what is known of the backend; cells are added to it.
        request: what the process is told, with the names of the cells.
        seconds: for all of it.
        save: called without arguments after every change.
        start: request -> worker.
    """
    end = time.monotonic() + seconds
    todo = [key for key in request["cells"] if key not in side["cells"]]
    while todo and time.monotonic() < end:
        worker, running = start({**request, "cells": todo, "seconds": end - time.monotonic()}), None
        try:
            while (event := worker.next(end + GRACE - time.monotonic())) is not None:
                running = _take(side, event, running)
                save()
            if running is None:
                # It said that it is done, or fell at once, which it would do again.
                if not side.get("device"):
                    side["failed"] = worker.last_words()
                break
            side["cells"].setdefault(running, {})["error"] = worker.last_words()
        except TimeoutError:
            if running is not None:
                side["cells"].setdefault(running, {})["error"] = "cut off: the time was over"
        finally:
            worker.close()
        save()
        todo = [key for key in todo if key not in side["cells"]]
    side["left"] = [key for key in request["cells"] if key not in side["cells"]]
    save()


def _take(side: Found, event: Found, running: str | None) -> str | None:
    """Keep what a process told; returns the cell that it works on."""
    if "device" in event or "none" in event:
        side.update(event)
        return running
    if "begin" in event:
        return event["begin"]
    side["cells"][event["cell"]] = event["found"]
    return running if event.get("partial") else None


def run(given: argparse.Namespace) -> int:
    """Measure, print and write; returns the exit status."""
    chosen: list[BackendName] = [name for name in BACKENDS[::-1] if installed(name)]
    chosen = [name for name in chosen if given.backend in (None, name)]
    if not chosen:
        print(
            "no backend is installed; run: pip install 'parivox[jax]' or 'parivox[torch,deepspeed]'",
            file=sys.stderr,
        )
        return 2
    found: Found = {"machine": machine(), "quick": given.quick, "device": given.device, "backends": {}}
    if given.resume and given.json and given.json.exists():
        found["backends"] = json.loads(given.json.read_text(encoding="utf-8"))["backends"]
    budget = Budget(60 * given.minutes, time.monotonic())

    def save() -> None:
        if given.json and any(side.get("device") for side in found["backends"].values()):
            write_results(given.json, found)

    for k, name in enumerate(chosen):
        side = found["backends"].setdefault(name, {"cells": {}})
        # A cell that broke off, or that had too little time, is tried again.
        side["cells"] = {key: cell for key, cell in side["cells"].items() if "error" not in cell}
        request = {
            "backend": name,
            "device": given.device,
            "quick": given.quick,
            "cells": cells(given.device),
        }
        measure_backend(side, request, budget.share(time.monotonic(), len(chosen) - k), save)
        if not side.get("device"):
            print(f"{name}: {side.get('none') or side.get('failed') or 'no time'}", file=sys.stderr)
            del found["backends"][name]
    if not found["backends"]:
        print(NO_GPU if given.device == "gpu" else "nothing could be measured", file=sys.stderr)
        return 2
    print("\n".join(tables(found)))
    save()
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here, after every cell")
    parser.add_argument("--minutes", type=positive, default=10.0, help="for everything (%(default)s)")
    parser.add_argument("--backend", choices=BACKENDS, help="this one alone")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="(%(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny models: shows that it runs, times mean nothing"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what the file of --json has not")
    return run(parser.parse_args(words))


if __name__ == "__main__":
    sys.exit(main())
