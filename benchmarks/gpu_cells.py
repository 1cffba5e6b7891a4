"""The process in which one backend measures on a GPU; `benchmarks.gpu` starts it.

It reads a request as JSON from the standard input and tells of each cell in a line of JSON when it begins and when it
is done. What a backend refuses is told as `refused`, what fails as `error`; neither ends the others.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.works import Work, denoising, enhancing, repeat, training
from parivox.backend import Backend, Precision, get_backend
from parivox.errors import ParivoxError
from parivox.hparams import EnhancerHParams, HParams
from parivox.presets import preset

Found = dict[str, Any]
Tell = Callable[[Found], None]

TINY = {
    "lcfm_latent_dim": 4,
    "univnet_nc": 4,
    "irmae_hidden_dim": 32,
    "wn_hidden_dim": 4,
    "wn_layers": 1,
}
SECONDS, QUICK_SECONDS = 30.0, 0.25
ROWS = 4
"""Chunks that the commands compute at once on a GPU."""

NFE, SWEEP_NFE = 64, 8
"""Of the speed; rows are swept with fewer, since the flow's steps follow each other in the same memory."""


def hparams(task: str, quick: bool) -> HParams:
    """The published sizes, or tiny ones."""
    name = {"denoise": "denoiser", "enhance": "enhancer_stage2"}.get(task, task)
    hp = preset(name)
    if not quick:
        return hp
    tiny = TINY if isinstance(hp, EnhancerHParams) else {}
    return hp.replace(unet_hidden_dim=1, batch_size_per_gpu=1, training_seconds=0.1, **tiny)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of either framework says that the device's memory is full."""
    text = f"{type(error).__name__}: {error}".lower()
    return "resource_exhausted" in text or "outofmemory" in text or "out of memory" in text


def shortened(text: str, most: int = 200) -> str:
    """The first line of an error, for a cell of a table."""
    first = (text.splitlines() or ["no word"])[0]
    return first if len(first) <= most else f"{first[: most - 3]}..."


class Bench:
    """One backend in each arithmetic, and the cells that it can measure."""

    def __init__(self, request: Found, tools: Any):
        """Take the request, and what this framework can tell of its device."""
        self.name, self.device, self.quick = request["backend"], request["device"], request["quick"]
        self.end, self.tools = time.monotonic() + request["seconds"], tools
        self.backends: dict[str, Backend] = {}

    def backend(self, precision: str) -> Backend:
        """This backend in one arithmetic.

        Raises:
            BackendError: the device has not got it.
        """
        if precision not in self.backends:
            kind: Precision = precision  # pyright: ignore[reportAssignmentType]
            self.backends[precision] = get_backend(self.name, device=self.device, precision=kind)
        return self.backends[precision]

    def measure(self, key: str, tell: Tell) -> Found:
        """The figures of one cell; `tell` takes those of a part of it."""
        kind, task, precision = key.split("/")
        backend = self.backend(precision)
        if kind == "peak":
            return self.tools.peak(precision, 512 if self.quick else 8192)
        if kind == "profile":
            return self.tools.profile(self, task, precision)
        if kind == "rows":
            return self.sweep(backend, task, tell)
        return self.speed(*self.work(backend, task, self.rows(task), NFE))

    def rows(self, task: str) -> int:
        """Rows of a call: the commands' for cleaning, the presets' for training."""
        if task in ("denoise", "enhance"):
            return 1 if self.quick else ROWS
        return hparams(task, self.quick).batch_size_per_gpu

    def work(self, backend: Backend, task: str, rows: int, nfe: int) -> tuple[Work, float]:
        """What a call does, and how many seconds of sound it takes."""
        hp, seconds = hparams(task, self.quick), QUICK_SECONDS if self.quick else SECONDS
        if task == "denoise":
            return denoising(backend, hp, rows, seconds), rows * seconds
        if task == "enhance" and isinstance(hp, EnhancerHParams):
            return enhancing(backend, hp, rows, seconds, 2 if self.quick else nfe), rows * seconds
        hp = hp.replace(batch_size_per_gpu=rows)
        return training(backend, hp)[0], rows * hp.training_seconds

    def speed(self, work: Work, audio: float) -> Found:
        """Seconds of a call, and the device's memory at its fullest."""
        self.tools.forget_peak()
        took = repeat(work, at_least=1, seconds=0.0) if self.quick else repeat(work, seconds=3.0)
        told = {"seconds": took["min"], "slowest": took["max"], "first": took["first"], "audio": audio}
        return told | self.tools.memory()

    def sweep(self, backend: Backend, task: str, tell: Tell) -> Found:
        """Twice as many rows again and again, until the memory is full or the time over."""
        found: Found = {"sweep": []}
        rows, most = 1, 2 if self.quick else 512
        while rows <= most:
            if time.monotonic() > self.end:
                return found | {"ended": f"{rows} rows not tried, the time was over"}
            try:
                measured = self.speed(*self.work(backend, task, rows, SWEEP_NFE))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                return found | {"ended": f"out of memory at {rows} rows"}
            finally:
                gc.collect()
                self.tools.free()
            found["sweep"].append({"rows": rows, **measured})
            tell(found)
            rows *= 2
        return found | {"ended": f"{most} rows are the most that is tried"}


def bench_cell(bench: Bench, key: str, tell: Tell) -> Found:
    """The figures of a cell, or why there are none; parts of it are told on the way."""
    try:
        return bench.measure(key, lambda part: tell({"cell": key, "found": part, "partial": True}))
    except ParivoxError as error:
        return {"refused": shortened(str(error))}
    except Exception as error:
        full = "out of memory: " if out_of_memory(error) else ""
        return {"error": f"{full}{type(error).__name__}: {shortened(str(error))}"}
    finally:
        gc.collect()
        bench.tools.free()


def main() -> None:
    """Answer the request on the standard input."""
    request = json.loads(sys.stdin.read())
    # What libraries print must not come between the lines that the other process reads.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(event: Found) -> None:
        print(json.dumps(event), file=lines, flush=True)

    if request["backend"] == "jax":
        # Not three quarters of the memory, which is JAX's own choice: this process has the device alone.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
        from benchmarks.gpu_jax import Tools
    else:
        from benchmarks.gpu_torch import Tools
    try:
        backend = get_backend(request["backend"], device=request["device"])
    except ParivoxError as error:
        tell({"none": str(error)})
        return
    tell({"device": ", ".join(f"{name} {value}" for name, value in backend.describe().items())})
    bench = Bench(request, Tools(request["device"]))
    for key in request["cells"]:
        if time.monotonic() > bench.end:
            return
        tell({"begin": key})
        tell({"cell": key, "found": bench_cell(bench, key, tell)})


if __name__ == "__main__":
    main()
