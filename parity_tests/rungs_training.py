"""The rungs of training: the same losses, and a run that changes backend."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from parity_tests import deepspeed_oracle, seeded
from parity_tests.ladder import Finding, Ladder
from parity_tests.result import Figure, Row, Skipped
from parity_tests.rungs_model import worst_leaf
from parity_tests.sides import Side
from parivox.backend import Backend, TrainArrays
from parivox.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from parivox.data import mix
from parivox.hparams import DenoiserHParams
from parivox.plots import curves_png
from parivox.run import meta_of
from parivox.weights import initial_denoiser

STEPS = 100
EXCHANGE_STEPS = 12
ROWS, SAMPLES = 2, 4200

HPARAMS = DenoiserHParams(
    unet_hidden_dim=2, batch_size_per_gpu=ROWS, warmup_steps=20, max_steps=STEPS, min_lr=1e-5, max_lr=1e-3
)
"""A narrow model at a rate that moves it, so that an error has a hundred updates to grow in."""


def batches(seed: int, count: int) -> list[dict[str, np.ndarray]]:
    """Mixtures of seeded signals and noise, float32."""
    made = []
    for k in range(count):
        target = seeded.signal(seed + 1000 + k, ROWS, SAMPLES)
        noise = seeded.noise(seed, f"batch:{k}", (ROWS, SAMPLES))
        made.append({"noisy": mix(target, noise, 0.6), "target": target})
    return made


def start(seed: int) -> TrainArrays:
    """The state that every run here begins from."""
    weights = initial_denoiser(seed, HPARAMS.unet_hidden_dim)
    zeros = {name: np.zeros_like(array) for name, array in weights.items()}
    return TrainArrays(weights, zeros, {name: array.copy() for name, array in zeros.items()}, 0)


def train(
    backend: Backend, arrays: TrainArrays, data: Sequence[dict[str, np.ndarray]]
) -> tuple[np.ndarray, TrainArrays]:
    """One update for each batch; losses and the state at the end."""
    state = backend.create_state(HPARAMS, arrays)
    losses = []
    for batch in data:
        state, result = backend.step(state, batch)
        losses.append(result.loss)
    return np.array(losses), backend.export_state(state)


def worst_loss(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest relative difference of the losses of one update."""
    return float((np.abs(found - wanted) / np.abs(wanted)).max())


def can_train(side: Side) -> bool:
    """Float32 training on torch needs DeepSpeed."""
    return side.name != "torch" or side.dtype == "float64" or deepspeed_oracle.available()


def training(ladder: Ladder) -> Iterator[Finding]:
    """The losses of a hundred updates on the same batches."""
    if len(ladder.backends) < 2:
        yield Skipped("training", "compares two backends; one is here")
        return
    data = batches(ladder.options.seed, STEPS)
    curves = {}
    for dtype in ("float32", "float64"):
        sides = ladder.sides(dtype)
        if not all(can_train(side) for side in sides):
            yield Skipped("training", "DeepSpeed is not installed (pip install 'parivox[deepspeed]')")
            continue
        ends = {}
        for side in sides:
            losses, ends[side.name] = train(side.backend, start(ladder.options.seed), data)
            curves[f"{side.name} {dtype}"] = (np.arange(1, STEPS + 1), losses)
        error = worst_loss(curves[f"jax {dtype}"][1], curves[f"torch {dtype}"][1])
        limit, label = ladder.bound("training", dtype), ladder.label(dtype)
        how = "through DeepSpeed's engine" if dtype == "float32" else "through the plain optimizer"
        drift = worst_leaf(ends["jax"].weights, ends["torch"].weights)
        note = f"torch {how}; worst weight tensor at the end {drift:.1e}"
        yield Row("training", f"worst loss of {STEPS} updates, jax", "torch", error, limit, label, note)
    caption = "The losses of both backends lie on each other; each is drawn dashed over the one before."
    yield Figure(
        "A hundred updates on the same batches",
        caption,
        curves_png(curves, "Training loss", "update", "L1 loss"),
    )


def exchange(ladder: Ladder) -> Iterator[Finding]:
    """Save on one backend, go on with the other, through a checkpoint file."""
    if len(ladder.backends) < 2:
        yield Skipped("checkpoint exchange", "compares two backends; one is here")
        return
    for dtype in ("float32", "float64"):
        first, second = ladder.sides(dtype)
        if not (can_train(first) and can_train(second)):
            yield Skipped(
                "checkpoint exchange", "DeepSpeed is not installed (pip install 'parivox[deepspeed]')"
            )
            continue
        for one, other in ((first, second), (second, first)):
            yield exchange_row(ladder, one, other)


def exchange_row(ladder: Ladder, one: Side, other: Side) -> Row:
    """Half on one backend, half on the other, against all on the first; worst loss of the second half."""
    seed, half = ladder.options.seed, EXCHANGE_STEPS // 2
    data = batches(seed, EXCHANGE_STEPS)
    whole, _ = train(one.backend, start(seed), data)
    _, middle = train(one.backend, start(seed), data[:half])
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, Checkpoint(middle, meta_of(HPARAMS, middle.step, half * ROWS, seed)))
        found = latest_checkpoint(Path(folder))
    rest, _ = train(other.backend, found.arrays if found else middle, data[half:])
    error = worst_loss(rest, whole[half:])
    case = f"{one.name} to {other.name}, {half} + {half} updates"
    return Row(
        "checkpoint exchange",
        case,
        f"{one.name} alone",
        error,
        ladder.bound("checkpoint exchange", one.dtype),
        ladder.label(one.dtype),
    )
