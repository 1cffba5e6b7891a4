"""The rung of all optimizers: each through the real engine, or its kernel in NumPy, and through both backends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from parity_tests import deepspeed_oracle, optimizer_oracle, rungs_optimizer
from parity_tests.ladder import Finding, Ladder
from parity_tests.result import Row, Skipped
from parity_tests.rungs_optimizer import MAX_NORM, norm
from parity_tests.rungs_signal import distance
from parity_tests.sides import AdamTrace, Side, UpdatePlan
from parivox.backend import NamedArrays
from parivox.deepspeed_config import OptimizerConfig, resolve

UPDATES = 200
"""Updates of each optimizer; clipping fires at some of them."""

KERNELS = {"lion": optimizer_oracle.lion, "lamb": optimizer_oracle.lamb}
"""Optimizers that DeepSpeed has for CUDA only; these stand for its kernels."""


OPTIMIZER_FEATURES = {
    "adam": "optimizer: Adam, AdamW",
    "adamw": "optimizer: Adam, AdamW",
    "sgd": "optimizer: SGD",
    "lion": "optimizer: Lion",
    "lamb": "optimizer: LAMB",
}
"""Kind of an optimizer -> the entry of a config that its rows are about."""


@dataclass(frozen=True)
class Variant:
    """An optimizer with its settings.

    Attributes:
        label: what the row says.
        optimizer: the `optimizer` entry of a DeepSpeed config.
        scheduler: the `scheduler` entry; empty for a constant rate.
        group_of: parameter group of the names that are not in the group `all`.
        overrides: what a group sets for itself.
        frozen: names that get no gradient.
    """

    label: str
    optimizer: Mapping[str, Any]
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    group_of: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()

    @property
    def config(self) -> dict[str, Any]:
        """The DeepSpeed config."""
        scheduler = {"scheduler": self.scheduler} if self.scheduler else {}
        batch = {"train_micro_batch_size_per_gpu": 1}
        return {**batch, "gradient_clipping": MAX_NORM, "optimizer": self.optimizer, **scheduler}

    @property
    def groups(self) -> dict[str, str]:
        """Parameter group of each name."""
        return {name: self.group_of.get(name, "all") for name in rungs_optimizer.SHAPES}

    @property
    def kind(self) -> str:
        """Which optimizer."""
        return resolve(self.config).optimizer.kind


def _variant(label: str, kind: str, lr: float, **params: Any) -> Variant:
    return Variant(label, {"type": kind, "params": {"lr": lr, **params}})


ONE_CYCLE = {
    "type": "OneCycle",
    "params": {
        "cycle_min_lr": 1e-4,
        "cycle_max_lr": 1e-3,
        "cycle_first_step_size": 60,
        "cycle_second_step_size": 60,
        "decay_step_size": 10,
        "decay_lr_rate": 0.1,
        "cycle_min_mom": 0.8,
        "cycle_max_mom": 0.95,
    },
}

# Rates of SGD are large because the gradients are small: with them the weights move as much as with the others.
VARIANTS = (
    _variant("Adam (decoupled decay)", "Adam", 1e-3, weight_decay=0.1),
    _variant("Adam (L2)", "Adam", 1e-3, weight_decay=1e-5, adam_w_mode=False),
    _variant("AdamW, other betas and eps", "AdamW", 1e-3, betas=[0.8, 0.99], eps=1e-6, weight_decay=0.01),
    _variant("AdamW, no bias correction", "AdamW", 1e-3, weight_decay=0.01, bias_correction=False),
    Variant("AdamW under OneCycle", {"type": "AdamW", "params": {"weight_decay": 0.01}}, ONE_CYCLE),
    Variant(
        "AdamW, two groups, one tensor frozen",
        {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.1}},
        group_of={"bias": "plain"},
        overrides={"plain": {"weight_decay": 0.0, "lr": 3e-4}},
        frozen=frozenset({"matrix"}),
    ),
    _variant("SGD", "SGD", 1000.0),
    _variant("SGD, momentum, decay", "SGD", 50.0, momentum=0.9, weight_decay=1e-5),
    _variant("SGD, momentum, dampening", "SGD", 50.0, momentum=0.9, dampening=0.5, weight_decay=1e-5),
    _variant("SGD, Nesterov", "SGD", 50.0, momentum=0.9, weight_decay=1e-5, nesterov=True),
    _variant("Lion", "Lion", 1e-3),
    _variant("Lion, decay", "Lion", 1e-3, betas=[0.95, 0.98], weight_decay=0.1),
    _variant("LAMB", "Lamb", 1e-2),
    _variant(
        "LAMB, decay, coefficient bounded", "Lamb", 1e-2, weight_decay=0.1, max_coeff=0.5, min_coeff=0.2
    ),
    _variant("LAMB, eps under the root", "Lamb", 1e-2, eps=1e-9, eps_inside_sqrt=True, bias_correction=False),
)


def gradients(variant: Variant, seed: int) -> tuple[NamedArrays, list[NamedArrays]]:
    """Start weights and a gradient for each update."""
    start, grads, _ = rungs_optimizer.problem(seed)
    return start, [{k: g for k, g in grad.items() if k not in variant.frozen} for grad in grads[:UPDATES]]


@lru_cache(maxsize=len(VARIANTS))
def _engine(label: str, seed: int) -> AdamTrace:
    variant = next(v for v in VARIANTS if v.label == label)
    start, grads = gradients(variant, seed)
    return deepspeed_oracle.run_optimizer(start, grads, variant.config, variant.groups, variant.overrides)


def plan(variant: Variant) -> UpdatePlan:
    """What a backend is told: what Parivox makes of the config, and what each group sets for itself."""
    base = UpdatePlan.of(resolve(variant.config), rungs_optimizer.SHAPES, UPDATES)
    common, groups = base.optimizers["all"], dict.fromkeys(variant.groups.values())
    own = {group: variant.overrides.get(group, {}) for group in groups}
    optimizers = {g: OptimizerConfig(common.kind, {**common.params, **own[g]}) for g in groups}
    rates = {g: np.full(UPDATES, own[g]["lr"]) if "lr" in own[g] else base.rates["all"] for g in groups}
    betas = base.betas and dict.fromkeys(groups, base.betas["all"])
    return UpdatePlan(optimizers, variant.groups, MAX_NORM, rates, betas)


def reference(variant: Variant, seed: int, dtype: str) -> tuple[str, AdamTrace] | None:
    """What to compare with in this dtype: its name and its way; None where there is nothing."""
    start, grads = gradients(variant, seed)
    if variant.kind in KERNELS:
        start = {name: array.astype(dtype) for name, array in start.items()}
        grads = [{name: array.astype(dtype) for name, array in grad.items()} for grad in grads]
        told = plan(variant)
        constants = told.optimizers["all"].params
        found = KERNELS[variant.kind](start, grads, MAX_NORM, told.rates["all"], **constants)
        return "DeepSpeed's kernel in NumPy", found
    if dtype == "float32" and deepspeed_oracle.available():
        return "DeepSpeed's engine", _engine(variant.label, seed)
    return None


def worst(found: AdamTrace, wanted: AdamTrace) -> float:
    """Largest relative distance of any tensor that both keep; a frozen one has moments of 0 on both sides or none."""
    pairs = [(getattr(found, kind), getattr(wanted, kind)) for kind in ("weights", "exp_avg", "exp_avg_sq")]
    distances = [
        0.0 if np.array_equal(a[name], b[name]) else distance(a[name], b[name])
        for a, b in pairs
        for name in b
    ]
    return float(np.max(distances))


def optimized(ladder: Ladder, variant: Variant, side: Side) -> AdamTrace:
    """A backend's way through the gradients of a variant."""
    seed = ladder.options.seed
    return side.optimize(*gradients(variant, seed), plan(variant))


def variant_row(ladder: Ladder, variant: Variant, side: Side, found: AdamTrace) -> Row | None:
    """One optimizer on one backend; the largest relative distance of any weight or moment."""
    wanted = reference(variant, ladder.options.seed, side.dtype)
    if wanted is None:
        return None
    case = f"{variant.label}, {UPDATES} updates, {side.name}"
    share = np.mean([norm(grad) > MAX_NORM for grad in gradients(variant, ladder.options.seed)[1]])
    return Row(
        "optimizer",
        case,
        wanted[0],
        worst(found, wanted[1]),
        ladder.bound("optimizer", side.dtype),
        side.dtype,
        f"clipping fires at {share:.0%} of the updates",
        OPTIMIZER_FEATURES[variant.kind],
    )


def optimizers(ladder: Ladder) -> Iterator[Finding]:
    """Every optimizer against the engine or its kernel, and the backends against each other."""
    if not deepspeed_oracle.available():
        yield Skipped("optimizer", "DeepSpeed is not installed (pip install 'parivox[deepspeed]')")
    for variant in VARIANTS:
        found = {}
        for side in (*ladder.sides("float32"), *ladder.sides("float64")):
            if side.dtype == "float64" or reference(variant, ladder.options.seed, side.dtype) is not None:
                found[side.name, side.dtype] = trace = optimized(ladder, variant, side)
                row = variant_row(ladder, variant, side, trace)
                if row is not None:
                    yield row
        if len(ladder.backends) == 2:
            case, bound = f"{variant.label}, {UPDATES} updates, jax", ladder.bound("optimizer", "float64")
            error = worst(found["jax", "float64"], found["torch", "float64"])
            yield Row("optimizer", case, "torch", error, bound, "float64")
