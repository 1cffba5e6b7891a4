"""Speed of both backends in one run, as ratios: `make bench`, or `python -m benchmarks [--json FILE]`.

Times drift between machines and hours, so what counts is the ratio to a large float32 matrix product timed in the
same process, and to the other backend. The median of several repetitions is printed with the spread.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.machine import machine, matrix_peak, timed, write_results
from parivox.backend import BACKENDS, Backend, TrainArrays, get_backend, installed
from parivox.features import SAMPLE_RATE
from parivox.hparams import DenoiserHParams
from parivox.weights import initial_denoiser

GFLOP_PER_SECOND_OF_AUDIO = 45.0
"""Arithmetic of the full-width denoiser forward; a training step takes about three times as much."""


def denoiser(backend: Backend, seconds: float) -> dict[str, float]:
    """Full-width inference of one signal."""
    hp = DenoiserHParams()
    model = backend.load_denoiser(hp, initial_denoiser(0, hp.unet_hidden_dim))
    x = np.random.default_rng(0).standard_normal((1, int(seconds * SAMPLE_RATE))).astype(np.float32)
    return timed(lambda: backend.denoise(model, x))


def training(backend: Backend, seconds: float, rows: int) -> dict[str, float]:
    """One full-width training step, the update included."""
    hp = DenoiserHParams(batch_size_per_gpu=rows)
    weights = initial_denoiser(0, hp.unet_hidden_dim)
    zeros = {name: np.zeros_like(array) for name, array in weights.items()}
    state = backend.create_state(hp, TrainArrays(weights, zeros, {k: v.copy() for k, v in zeros.items()}))
    draw = np.random.default_rng(0)
    batch = {
        key: draw.standard_normal((rows, int(seconds * SAMPLE_RATE))).astype(np.float32)
        for key in ("noisy", "target")
    }
    return timed(lambda: backend.step(state, batch))


def measure(seconds: float = 2.0, rows: int = 2, crop: float = 0.5) -> dict:
    """Everything, with the machine it was measured on."""
    found: dict = {
        "machine": machine(),
        "peak_gflops": matrix_peak(),
        "backends": {},
    }
    for name in BACKENDS:
        if not installed(name):
            print(f"{name}: not installed, left out")
            continue
        backend = get_backend(name)
        forward, step = denoiser(backend, seconds), training(backend, crop, rows)
        audio = rows * crop
        found["backends"][name] = {
            "describe": backend.describe(),
            "denoise_seconds": forward,
            "real_time_factor": forward["median"] / seconds,
            "denoise_share_of_peak": GFLOP_PER_SECOND_OF_AUDIO
            * seconds
            / forward["median"]
            / found["peak_gflops"],
            "train_step_seconds": step,
            "train_share_of_peak": 3
            * GFLOP_PER_SECOND_OF_AUDIO
            * audio
            / step["median"]
            / found["peak_gflops"],
        }
    return found


def main() -> None:
    """Print the figures, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    found = measure()
    print(f"matrix product: {found['peak_gflops']:.0f} GFLOP/s, float32, {found['machine']['cpus']} CPUs")
    for name, row in found["backends"].items():
        print(
            f"{name:6} denoise {row['real_time_factor']:.2f} of real time"
            f" ({row['denoise_share_of_peak']:.0%} of peak),"
            f" training step {row['train_step_seconds']['median']:.2f} s ({row['train_share_of_peak']:.0%} of peak)"
        )
    if set(found["backends"]) == set(BACKENDS):
        jax, torch = (found["backends"][name] for name in BACKENDS)
        forward = jax["denoise_seconds"]["median"] / torch["denoise_seconds"]["median"]
        step = jax["train_step_seconds"]["median"] / torch["train_step_seconds"]["median"]
        print(
            f"jax / torch: denoise {forward:.2f}, training step {step:.2f} (time, so below 1 jax is faster)"
        )
    if arguments.json:
        write_results(arguments.json, found)


if __name__ == "__main__":
    main()
