"""The rungs of a DeepSpeed config's batch and precision: accumulation, bfloat16, float16 and its loss scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from parity_tests import deepspeed_oracle, rungs_training
from parity_tests.ladder import Finding, Ladder
from parity_tests.result import Row, Skipped
from parity_tests.rungs_model import worst_leaf
from parity_tests.rungs_optimizer import MAX_NORM, problem
from parity_tests.rungs_optimizers import worst
from parity_tests.sides import Side
from parivox import loss_scale
from parivox.backend import NamedArrays, TrainArrays, first_arrays, moments_of
from parivox.deepspeed_config import TrainConfig, resolve
from parivox.weights import initial_denoiser

if TYPE_CHECKING:
    from parity_tests.side_jax import JaxSide

UPDATES = 50
"""Updates at a fixed global batch, however it is cut."""

HALF_UPDATES = 30
"""Updates in bfloat16."""

GLOBAL_ROWS = 4
STEPS = (1, 2, 4)
"""Micro batches that the global batch is cut into."""

SCALE = {
    "enabled": True,
    "initial_scale_power": 10,
    "loss_scale_window": 5,
    "hysteresis": 2,
}
OVERFLOWS = (2, 3, 9, 10, 11, 12, 13, 14, 30, 40, 41)
"""Updates whose gradients are planted to overflow."""

SCALE_UPDATES = 60

SMALL_UPDATES = 200
"""Updates of a few tensors in half precision."""

FACTOR = 1e3
"""Gradients of `rungs_optimizer.problem` times this: at a scale of 2^16 and above some of them overflow float16."""

ADAMW = {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.1}}
SGD = {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}}
HALF_SCALE = {**SCALE, "initial_scale_power": 16}
HALVES: dict[str, dict[str, Any]] = {
    "AdamW in fp16, ZeRO 0": {"optimizer": ADAMW, "fp16": HALF_SCALE},
    "AdamW in fp16, ZeRO 1": {"optimizer": ADAMW, "fp16": HALF_SCALE, "zero_optimization": {"stage": 1}},
    "AdamW in fp16, ZeRO 3": {"optimizer": ADAMW, "fp16": HALF_SCALE, "zero_optimization": {"stage": 3}},
    "SGD in fp16, ZeRO 0": {"optimizer": SGD, "fp16": HALF_SCALE},
    "AdamW in bf16, ZeRO 0": {"optimizer": ADAMW, "bf16": {"enabled": True}},
    "AdamW in bf16, ZeRO 2": {
        "optimizer": ADAMW,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
    },
}
"""Case -> what its config has beside the batch and clipping."""

SHORT = ("AdamW in fp16, ZeRO 0", "AdamW in fp16, ZeRO 1", "AdamW in bf16, ZeRO 2")
"""Cases of a climb that is not followed to its end."""


def config_of(steps: int = 1, **entries: Any) -> TrainConfig:
    """The narrow model's own config at the global batch, with some entries changed."""
    written = {k: v for k, v in rungs_training.HPARAMS.deepspeed_config.items() if not k.startswith("train_")}
    return resolve(
        {**written, "train_batch_size": GLOBAL_ROWS, "gradient_accumulation_steps": steps, **entries}
    )


def data(seed: int, count: int) -> list[dict[str, np.ndarray]]:
    """Global batches: two of the training rung's each."""
    halves = rungs_training.batches(seed, 2 * count)
    return [
        {name: np.concatenate([one[name], other[name]]) for name in one}
        for one, other in zip(halves[::2], halves[1::2], strict=True)
    ]


def train(
    side: Side, config: TrainConfig, batches: Sequence[dict[str, np.ndarray]], seed: int
) -> tuple[np.ndarray, TrainArrays]:
    """One update for each batch; losses and the state at the end."""
    hp = rungs_training.HPARAMS
    begin = first_arrays(initial_denoiser(seed, hp.unet_hidden_dim), config.optimizer)
    state, losses = side.backend.create_state(hp, begin, config), []
    for batch in batches:
        state, result = side.backend.step(state, batch)
        losses.append(result.loss)
    return np.array(losses), side.backend.export_state(state)


def accumulation(ladder: Ladder) -> Iterator[Finding]:
    """The same global batch in one, two and four passes, on both backends, against one pass on each."""
    batches = data(ladder.options.seed, ladder.updates(UPDATES))
    for side in ladder.sides("float32"):
        if not rungs_training.can_train(side):
            yield Skipped("training", "DeepSpeed is not installed (pip install 'parivox[deepspeed]')")
            continue
        whole = train(side, config_of(1), batches, ladder.options.seed)
        for steps in STEPS[1:]:
            yield accumulation_row(ladder, side, steps, batches, whole)


def accumulation_row(
    ladder: Ladder,
    side: Side,
    steps: int,
    batches: Sequence[dict[str, np.ndarray]],
    whole: tuple[np.ndarray, TrainArrays],
) -> Row:
    """The worst loss of one way of cutting the batch, against the batch in one pass."""
    losses, end = train(side, config_of(steps), batches, ladder.options.seed)
    error = rungs_training.worst_loss(losses, whole[0])
    note = f"worst weight tensor at the end {worst_leaf(end.weights, whole[1].weights):.1e}"
    label = f"{len(batches)} updates in {steps} passes, {side.name}"
    bound, dtype = ladder.bound("training", side.dtype), ladder.label(side.dtype)
    feature = "gradient_accumulation_steps"
    return Row("training", label, f"{side.name}, 1 pass", error, bound, dtype, note, feature)


def bfloat16(ladder: Ladder) -> Iterator[Finding]:
    """Networks in bfloat16 with float32 master weights: JAX against the real engine."""
    if len(ladder.backends) < 2 or not deepspeed_oracle.available():
        yield Skipped("training", "bf16 compares JAX with DeepSpeed's engine; one of them is not here")
        return
    updates = ladder.updates(HALF_UPDATES)
    config, batches = config_of(bf16={"enabled": True}), data(ladder.options.seed, updates)
    found = {side.name: train(side, config, batches, ladder.options.seed) for side in ladder.sides("float32")}
    error = rungs_training.worst_loss(found["jax"][0], found["torch"][0])
    drift = worst_leaf(found["jax"][1].weights, found["torch"][1].weights)
    note = f"the config's bf16; torch through DeepSpeed's engine; worst weight tensor at the end {drift:.1e}"
    bound = ladder_bound("bf16 master weights")
    case = f"worst loss of {updates} updates, jax"
    yield Row("training", case, "torch", error, bound, "bfloat16", note, "bf16")


def ladder_bound(name: str) -> float:
    """The bound of a kind of half-precision training; the arithmetic of the rest does not matter to it."""
    from parity_tests.tolerances import bound

    return bound("training", name)


def loss_scales(ladder: Ladder) -> Iterator[Finding]:
    """The scale before every update, with overflows planted, against the engine's float16 optimizers."""
    if not deepspeed_oracle.available():
        yield Skipped("optimizer", "DeepSpeed is not installed (pip install 'parivox[deepspeed]')")
        return
    for stage in (0, 1):
        yield loss_scale_row(ladder, stage)


def loss_scale_row(ladder: Ladder, stage: int) -> Row:
    """Updates whose scale, or whose being skipped, differs from the engine's."""
    real = deepspeed_oracle.run_loss_scale(SCALE, stage, SCALE_UPDATES, OVERFLOWS)
    config = config_of(fp16=SCALE, zero_optimization={"stage": stage}).loss_scale
    assert config is not None
    state, wrong = loss_scale.first_scale(config), 0
    for update, (scale, skipped) in enumerate(real):
        overflow = update in OVERFLOWS
        wrong += (state.scale, overflow) != (scale, skipped)
        after = (
            loss_scale.after_overflow(state, config, stage)
            if overflow
            else loss_scale.after_update(state, config)
        )
        state = after or state
    label = f"loss scale of float16, {SCALE_UPDATES} updates, ZeRO {stage}"
    bound = ladder.bound("settings", "exact")
    return Row("optimizer", label, "DeepSpeed's engine", wrong, bound, "", "updates that differ", "fp16")


def half(ladder: Ladder) -> Iterator[Finding]:
    """A few tensors in float16 and bfloat16, float32 master weights: JAX against the real engine."""
    if "jax" not in ladder.backends or not deepspeed_oracle.available():
        yield Skipped(
            "optimizer", "fp16 and bf16 compare JAX with DeepSpeed's engine; one of them is not here"
        )
        return
    for side in ladder.sides("float32"):
        if side.name == "jax":
            for case in HALVES if ladder.options.long else SHORT:
                yield from half_rows(ladder, side, case)


def half_rows(ladder: Ladder, side: Side, case: str) -> Iterator[Row]:
    """One config: updates whose loss scale differs, and the largest relative distance of a weight or moment."""
    config, real = half_config(case), half_engine(case, ladder.options.seed)
    # Torch has no half precision of its own here: it is the engine.
    found = cast("JaxSide", side).train_half(*half_problem(ladder.options.seed), resolve(config))
    kind = "fp16" if "fp16" in config else "bf16"
    skipped = sum(skip for _, skip in real.scales)
    label = f"{case}, {SMALL_UPDATES} updates, {side.name}"
    if kind == "fp16":
        wrong = sum(own != wanted for own, wanted in zip(found.scales, real.scales, strict=True))
        highest = max(scale for scale, _ in real.scales)
        note = f"updates that differ in loss scale or in being skipped; {skipped} are skipped, scale to {highest:g}"
        exact = ladder.bound("settings", "exact")
        yield Row("optimizer", label, "DeepSpeed's engine", wrong, exact, "", note, "fp16")
    error = worst(found.adam, real.adam)
    bound = ladder.bound("optimizer", "float32")
    yield Row("optimizer", label, "DeepSpeed's engine", error, bound, "float32", "worst tensor", kind)


def half_config(case: str) -> dict[str, Any]:
    """The DeepSpeed config of a case."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": MAX_NORM * FACTOR,
        "zero_allow_untested_optimizer": True,
        **HALVES[case],
    }


@lru_cache(maxsize=2)
def half_problem(seed: int) -> tuple[NamedArrays, list[NamedArrays]]:
    """Start weights and a gradient for each update, in float32."""
    start, grads, _ = problem(seed)
    return start, [
        {name: g * np.float32(FACTOR) for name, g in grad.items()} for grad in grads[:SMALL_UPDATES]
    ]


@lru_cache(maxsize=len(HALVES))
def half_engine(case: str, seed: int) -> deepspeed_oracle.HalfTrace:
    """The real engine's way through the problem."""
    config = half_config(case)
    kept = moments_of(resolve(config).optimizer)
    names = [{"SGD": "momentum_buffer"}.get(config["optimizer"]["type"], group) for group in kept]
    return deepspeed_oracle.run_half(*half_problem(seed), config, names)
