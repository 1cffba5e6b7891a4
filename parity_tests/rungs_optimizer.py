"""The rung of clipping and Adam: a thousand updates through the real engine and through both backends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from parity_tests import deepspeed_oracle, seeded
from parity_tests.ladder import Finding, Ladder
from parity_tests.result import Row, Skipped
from parity_tests.rungs_exact import ENGINE_UPDATES, rate_faults
from parity_tests.rungs_signal import distance
from parity_tests.sides import AdamTrace, Side
from parivox.backend import NamedArrays
from parivox.hparams import HParams

SHAPES = {"conv": (16, 8, 3, 3), "bias": (16,), "matrix": (5, 7)}

MAX_NORM = 1e-3
"""Small, so that the 1e-6 beside the norm is worth a thousandth and its absence shows."""


@lru_cache(maxsize=2)
def problem(seed: int) -> tuple[NamedArrays, list[NamedArrays], dict[str, Any]]:
    """Start weights, a gradient for each update, and the config. Gradient norms lie on both sides of `MAX_NORM`."""
    start = {name: seeded.noise(seed, f"start:{name}", shape) for name, shape in SHAPES.items()}
    scales = MAX_NORM * 10 ** (2 * seeded.noise(seed, "scale", (ENGINE_UPDATES,), "uniform") - 1.5)
    grads = []
    for k in range(ENGINE_UPDATES):
        raw = {name: seeded.noise(seed, f"grad:{k}:{name}", shape) for name, shape in SHAPES.items()}
        factor = scales[k] / norm(raw)
        grads.append({name: (g * factor).astype(np.float32) for name, g in raw.items()})
    return start, grads, {**HParams().deepspeed_config, "gradient_clipping": MAX_NORM}


def norm(tree: NamedArrays) -> float:
    """L2 norm over all tensors, in float64."""
    return float(np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in tree.values())))


@lru_cache(maxsize=2)
def engine(seed: int) -> deepspeed_oracle.EngineTrace:
    """The real engine's way through the problem."""
    return deepspeed_oracle.run_engine(*problem(seed))


def worst(found: AdamTrace, wanted: AdamTrace) -> float:
    """Largest relative distance of any weight or moment tensor."""
    pairs = (
        (found.weights, wanted.weights),
        (found.exp_avg, wanted.exp_avg),
        (found.exp_avg_sq, wanted.exp_avg_sq),
    )
    return max(distance(a[name], b[name]) for a, b in pairs for name in b)


def engine_row(ladder: Ladder, side: Side) -> Row:
    """One backend against the engine; the largest relative distance of any weight or moment."""
    start, grads, config = problem(ladder.options.seed)
    error = worst(side.adam(start, grads, config), engine(ladder.options.seed).adam)
    case = f"clip + Adam, {len(grads):,} updates, {side.name}"
    return Row(
        "optimizer", case, "DeepSpeed's engine", error, ladder.bound("optimizer", "float32"), "float32"
    )


def optimizer(ladder: Ladder) -> Iterator[Finding]:
    """Clipping and Adam over many updates, clipping firing and not."""
    start, grads, config = problem(ladder.options.seed)
    if deepspeed_oracle.available():
        trace = engine(ladder.options.seed)
        share = float(np.mean([norm(grad) > MAX_NORM for grad in grads]))
        note = f"clipping fires at {share:.0%} of the updates"
        for side in ladder.sides("float32"):
            row = engine_row(ladder, side)
            yield replace(row, note=note, feature="gradient_clipping")
            rates = side.learning_rates(config, np.arange(len(grads)))
            wrong = rate_faults(rates, trace.rates)
            yield Row(
                "learning rate",
                f"{len(grads):,} updates, {side.name}",
                "DeepSpeed's engine",
                wrong,
                0.0,
                "float32",
            )
    else:
        yield Skipped("optimizer", "DeepSpeed is not installed (pip install 'parivox[deepspeed]')")
    if len(ladder.backends) == 2:
        jax, torch = (side.adam(start, grads, config) for side in ladder.sides("float64"))
        yield Row(
            "optimizer",
            f"clip + Adam, {len(grads):,} updates, jax",
            "torch",
            worst(jax, torch),
            ladder.bound("optimizer", "float64"),
            "float64",
        )
