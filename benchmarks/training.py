"""Speed and memory of training steps on both backends: `python -m benchmarks.training [--json FILE] [--quick]`.

The denoiser, the first stage with its discriminator and the second stage in full width, with few rows and short crops
so that it takes minutes; a process for each case and backend, in which DeepSpeed and XLA meet nobody else's memory.
What is told: a step's time and the ratio of the backends, the denoiser's share of the matrix peak, programs that JAX
compiles after the first step (there must be none), and what computing activations again in the backward pass costs and
saves. JAX begins with an empty cache, so that its first step holds the whole compilation. `--quick` shows with narrow
models that it works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.flops import STEP_FACTOR, denoiser_flops
from benchmarks.machine import calm_threads, in_process, machine, matrix_peak, timed, write_results
from benchmarks.vocoder_memory import resident
from parivox.backend import BACKENDS, Backend, BackendName, Batch, get_backend, installed
from parivox.data.draws import flow_draws, vocoder_noise
from parivox.deepspeed_config import TrainConfig, resolve
from parivox.features import SAMPLE_RATE
from parivox.heap import return_large_blocks
from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams
from parivox.presets import preset
from parivox.run_start import arrays_of
from parivox.weights import initial_denoiser
from parivox.weights_enhancer import initial_enhancer

AGAIN = {"activation_checkpointing": {}}
"""What a DeepSpeed config holds for activations to be computed again."""


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        preset: hyperparameters.
        small: the same for `--quick`.
        rows: of a batch.
        frames: of a row, 420 samples each.
        config: keys of the DeepSpeed config beside the hyperparameters' own.
    """

    preset: str
    small: str
    rows: int
    frames: int
    config: dict[str, Any] | None = None

    def hparams(self, quick: bool) -> HParams:
        """The hyperparameters, the discriminator taking part from the first update where there is one."""
        hp = preset(self.small if quick else self.preset).replace(batch_size_per_gpu=self.rows)
        if isinstance(hp, EnhancerHParams) and hp.gan_training_start_step is not None:
            hp = hp.replace(gan_training_start_step=0)
        return hp


CASES = {
    "denoiser": Case("denoiser", "denoiser_demo", 2, 105),
    "denoiser, activations again": Case("denoiser", "denoiser_demo", 2, 105, AGAIN),
    "stage 1, GAN on": Case("enhancer_stage1", "enhancer_stage1_small", 1, 26),
    "stage 2": Case("enhancer_stage2", "enhancer_stage2_small", 2, 52),
}
QUICK_FRAMES = 20


class Programs(logging.Handler):
    """Counts everything that JAX compiles, from its own log."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.count += record.getMessage().startswith("Compiling ")

    def attach(self) -> None:
        """Have JAX log what it compiles, and keep that from the terminal."""
        import jax

        jax.config.update("jax_log_compiles", True)
        logger = logging.getLogger("jax")
        logger.addHandler(self)
        logger.propagate = False


def config_of(case: Case, hp: HParams) -> TrainConfig:
    """The hyperparameters' own DeepSpeed config, and what the case adds."""
    return resolve({**hp.deepspeed_config, **(case.config or {})}, hparams=hp)


def batch_of(hp: HParams, rows: int, frames: int) -> Batch:
    """Noise, with all that a stage draws."""
    draw = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {
        name: draw.uniform(-1, 1, (rows, 420 * frames)).astype(np.float32)
        for name in ("noisy", "target", "distorted")
    }
    if isinstance(hp, EnhancerHParams):
        found["vocoder_noise"] = np.stack([vocoder_noise(frames, draw) for _ in range(rows)])
        drawn = [flow_draws(hp, frames, draw) for _ in range(rows)]
        found |= {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}
    return found


def state_of(backend: Backend, hp: HParams, config: TrainConfig) -> Any:
    """A state of initial weights."""
    if isinstance(hp, EnhancerHParams):
        weights = initial_enhancer(0, hp)
    else:
        weights = initial_denoiser(0, hp.unet_hidden_dim if isinstance(hp, DenoiserHParams) else 0)
    return backend.create_state(hp, arrays_of(hp, weights, 0, config.optimizer), config)


def measure_here(name: BackendName, which: str, quick: bool, repeats: int) -> dict[str, Any]:
    """One case on one backend, in this process."""
    case, counter = CASES[which], Programs()
    frames = QUICK_FRAMES if quick else case.frames
    hp = case.hparams(quick)
    return_large_blocks()
    if name == "jax":
        counter.attach()
    config, backend = config_of(case, hp), get_backend(name, device="cpu")
    state, batch = state_of(backend, hp, config), batch_of(hp, case.rows, frames)
    results = []

    def step() -> None:
        nonlocal state
        state, result = backend.step(state, batch)
        results.append(result)

    begun = time.perf_counter()
    step()
    first, programs = time.perf_counter() - begun, counter.count
    # Linux forgets the peak so far, which was the compiler's.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident("VmRSS")
    times = timed(step, repeats)
    if not all(result.finite for result in results):
        raise SystemExit(f"{which} on {name}: a loss is not finite")
    found = {
        "seconds": times,
        "first_step": first,
        "programs_first": programs,
        "programs_after": counter.count - programs,
        "peak_mb": resident("VmHWM"),
        "before_mb": before,
        "losses": sorted(results[-1].losses),
        "peak_gflops": (peak := matrix_peak()),
        "describe": backend.describe(),
    }
    if isinstance(hp, DenoiserHParams):
        flops = STEP_FACTOR * case.rows * denoiser_flops(hp.unet_hidden_dim, 420 * frames)
        found["share_of_peak"] = flops / times["median"] / 1e9 / peak
    return found


def measure(names: list[BackendName], quick: bool, repeats: int, only: list[str]) -> dict[str, Any]:
    """All cases, each backend after the other, with the machine they were measured on."""
    found: dict[str, Any] = {"machine": machine(), "repeats": repeats, "cases": {}}
    for which in only:
        case = CASES[which]
        frames = QUICK_FRAMES if quick else case.frames
        row: dict[str, Any] = {"rows": case.rows, "crop_seconds": frames * 420 / SAMPLE_RATE}
        found["cases"][which] = row
        for name in names:
            with tempfile.TemporaryDirectory() as cache:
                words = ["--here", name, which, str(repeats), *(["--quick"] if quick else [])]
                row[name] = in_process(
                    "benchmarks.training", *words, environment={"JAX_COMPILATION_CACHE_DIR": cache}
                )
            show(which, name, row[name])
        if set(names) == set(BACKENDS):
            jax, torch = (row[name]["seconds"]["median"] for name in BACKENDS)
            row["jax_over_torch"] = jax / torch
            print(f"jax / torch, {which}: {jax / torch:.2f} of the time", flush=True)
    return found


def show(which: str, name: str, row: dict[str, Any]) -> None:
    """Print what was found."""
    share = f", {row['share_of_peak']:.0%} of peak" if "share_of_peak" in row else ""
    compiled = f" ({row['programs_after']} programs compiled later)" if name == "jax" else ""
    above = row["peak_mb"] - row["before_mb"]
    print(
        f"{name:6} {which}: {row['seconds']['median']:.2f} s a step{share}, the first {row['first_step']:.1f} s"
        f"{compiled}, peak {row['peak_mb']:.0f} MB, {above:.0f} MB above what lies between steps",
        flush=True,
    )


def main() -> None:
    """Measure, print, and write the figures where asked; fails where JAX compiles after the first step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="narrow models, to see that it works")
    parser.add_argument("--only", choices=CASES, action="append", help="measure this case alone")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each, after two untimed ones")
    parser.add_argument("--here", nargs=3, metavar=("BACKEND", "CASE", "REPEATS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    calm_threads()
    if given.here:
        name, which, repeats = given.here
        print(json.dumps(measure_here(name, which, given.quick, int(repeats))))
        return
    names: list[BackendName] = [name for name in BACKENDS if installed(name)]
    repeats = 1 if given.quick else given.repeats
    found = measure(names, given.quick, repeats, given.only or list(CASES))
    if given.json:
        write_results(given.json, found)
    late = [which for which, row in found["cases"].items() if row.get("jax", {}).get("programs_after")]
    if late:
        raise SystemExit(f"JAX compiled after the first step: {', '.join(late)}")


if __name__ == "__main__":
    main()
