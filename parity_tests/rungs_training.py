"""The rungs of training: the same losses, and a run that changes backend."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity_tests import deepspeed_oracle, seeded
from parity_tests.ladder import Finding, Ladder
from parity_tests.result import Figure, Row, Skipped
from parity_tests.rungs_model import worst_leaf
from parity_tests.sides import Side
from parivox.backend import Backend, Dtype, TrainArrays
from parivox.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from parivox.data import mix
from parivox.hparams import DenoiserHParams
from parivox.plots import curves_png
from parivox.run import meta_of
from parivox.runlog import read_metrics
from parivox.weights import initial_denoiser

STEPS = 100
HALF = 6
"""Updates before a run changes the backend, and after."""

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


LOSSES = (
    "loss",
    *("mse", "sc", "mag", "cfm_l1", "denoiser_l1"),
    *("g_mpd", "g_mrd", "d_mpd_fake", "d_mpd_real", "d_mrd_fake", "d_mrd_real"),
)
"""Losses by the names that they are logged under."""

SCORES = ("g_mpd", "g_mrd")
"""Mean scores, which pass through 0: they are measured against the hinge's margin, which is 1."""


def logged_losses(folder: Path) -> dict[int, dict[str, float]]:
    """Update -> every loss by name, as a run logged them."""
    lines = read_metrics(folder, "train")
    return {line["step"]: {name: line[name] for name in LOSSES if name in line} for line in lines}


def farthest_loss(found: Mapping[str, float], wanted: Mapping[str, float]) -> float:
    """The largest relative difference of any named loss of an update; NaN where one is not a number or lacking."""
    if not wanted.keys() <= found.keys():
        return math.nan
    differences = [
        abs(found[name] - value) / (max(abs(value), 1.0) if name in SCORES else abs(value))
        for name, value in wanted.items()
    ]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def worst_loss(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest relative difference of the losses of one update."""
    return float((np.abs(found - wanted) / np.abs(wanted)).max())


def can_train(side: Side) -> bool:
    """Float32 training on torch needs DeepSpeed."""
    return side.name != "torch" or side.dtype == "float64" or deepspeed_oracle.available()


@dataclass(frozen=True)
class Course:
    """A sound training of one side.

    Attributes:
        losses: of each update.
        middle: the state after `HALF` updates.
        end: the state after all.
    """

    losses: np.ndarray
    middle: TrainArrays
    end: TrainArrays


def course(ladder: Ladder, side: Side, updates: int) -> Course:
    """A training of at least so many updates, made once for a climb."""
    key = (side.name, side.dtype)
    found = ladder.courses.get(key)
    if found is None or len(found.losses) < updates:
        first = start(ladder.options.seed)
        state, losses, middle = side.backend.create_state(HPARAMS, first), [], first
        for batch in batches(ladder.options.seed, updates):
            state, result = side.backend.step(state, batch)
            losses.append(result.loss)
            if len(losses) == HALF:
                middle = side.backend.export_state(state)
        found = Course(np.array(losses), middle, side.backend.export_state(state))
        ladder.courses[key] = found
    return found


def training(ladder: Ladder) -> Iterator[Finding]:
    """The losses of a hundred updates on the same batches, in float32."""
    yield from _training(ladder, "float32")


def training_float64(ladder: Ladder) -> Iterator[Finding]:
    """The same in float64."""
    yield from _training(ladder, "float64")


def exchange(ladder: Ladder) -> Iterator[Finding]:
    """Save on one backend, go on with the other, through a checkpoint file; float32."""
    yield from _exchange(ladder, "float32")


def exchange_float64(ladder: Ladder) -> Iterator[Finding]:
    """The same in float64."""
    yield from _exchange(ladder, "float64")


def _impossible(ladder: Ladder, rung: str, dtype: Dtype) -> Skipped | None:
    if len(ladder.backends) < 2:
        return Skipped(rung, "compares two backends; one is here")
    if not all(can_train(side) for side in ladder.sides(dtype)):
        return Skipped(rung, "DeepSpeed is not installed (pip install 'parivox[deepspeed]')")
    return None


def _training(ladder: Ladder, dtype: Dtype) -> Iterator[Finding]:
    skipped = _impossible(ladder, "training", dtype)
    if skipped:
        yield skipped
        return
    found = {side.name: course(ladder, side, STEPS) for side in ladder.sides(dtype)}
    error = worst_loss(found["jax"].losses, found["torch"].losses)
    limit, label = ladder.bound("training", dtype), ladder.label(dtype)
    how = "through DeepSpeed's engine" if dtype == "float32" else "through the plain optimizer"
    drift = worst_leaf(found["jax"].end.weights, found["torch"].end.weights)
    note = f"torch {how}; worst weight tensor at the end {drift:.1e}"
    yield Row("training", f"worst loss of {STEPS} updates, jax", "torch", error, limit, label, note)
    curves = {f"{name} {dtype}": (np.arange(1, STEPS + 1), part.losses) for name, part in found.items()}
    yield Figure(
        f"A hundred updates on the same batches, {dtype}",
        "The losses of both backends lie on each other; the second is drawn dashed over the first.",
        curves_png(curves, "Training loss", "update", "L1 loss"),
    )


def _exchange(ladder: Ladder, dtype: Dtype) -> Iterator[Finding]:
    skipped = _impossible(ladder, "checkpoint exchange", dtype)
    if skipped:
        yield skipped
        return
    first, second = ladder.sides(dtype)
    for one, other in ((first, second), (second, first)):
        yield exchange_row(ladder, one, other)


def exchange_row(ladder: Ladder, one: Side, other: Side) -> Row:
    """Half on one backend, half on the other, against all on the first; worst loss of the second half."""
    seed = ladder.options.seed
    whole = course(ladder, one, 2 * HALF)
    with tempfile.TemporaryDirectory() as folder:
        middle = whole.middle
        save_checkpoint(folder, Checkpoint(middle, meta_of(HPARAMS, middle.step, HALF * ROWS, seed)))
        found = latest_checkpoint(Path(folder))
    data = batches(seed, 2 * HALF)[HALF:]
    rest, _ = train(other.backend, found.arrays if found else middle, data)
    error = worst_loss(rest, whole.losses[HALF : 2 * HALF])
    case = f"{one.name} to {other.name}, {HALF} + {HALF} updates"
    return Row(
        "checkpoint exchange",
        case,
        f"{one.name} alone",
        error,
        ladder.bound("checkpoint exchange", one.dtype),
        ladder.label(one.dtype),
    )
