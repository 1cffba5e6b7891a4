"""The rung of the schedulers: DeepSpeed's five, both warm-ups, and none, against the class and the engine."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from parity_tests import deepspeed_oracle
from parity_tests.ladder import Finding, Ladder
from parity_tests.result import Row, Skipped
from parity_tests.rungs_exact import rate_faults
from parity_tests.sides import Side

OPTIMIZER_RATE = 3e-4
"""The optimizer's own learning rate."""

OPTIMIZER_BETAS = (0.9, 0.999)
"""Adam's own betas, which all schedulers but OneCycle leave alone."""

ENGINE_UPDATES = 100
"""Updates driven through the real engine."""

ON_SGD = " on SGD"

PAST_THE_END = 500
"""Updates after the last one that a scheduler says anything of."""

_ENDS = {"warmup_min_lr": 1e-5, "warmup_max_lr": 7e-4}
_MOMENTA = {"cycle_min_mom": 0.85, "cycle_max_mom": 0.95}
_STAIRS = {"cycle_first_stair_count": 7, "cycle_second_stair_count": 5}
_DECAY = {"decay_step_size": 0.1, "decay_lr_rate": 0.3, "decay_mom_rate": 0.001}
_WARM_UPS = ("linear", "log")

# Lengths are shares of a run; `scheduler` makes numbers of updates of them.
CASES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "no scheduler": (None, {}),
    **{
        f"{kind}, {warm_up}{note}": (kind, {**params, "warmup_num_steps": 0.2, "warmup_type": warm_up})
        for warm_up in _WARM_UPS
        for kind, note, params in (
            ("WarmupLR", "", _ENDS),
            ("WarmupLR", ", to the optimizer's rate", {}),
            ("WarmupDecayLR", "", {**_ENDS, "total_num_steps": 0.8}),
            ("WarmupCosineLR", "", {"total_num_steps": 0.8}),
            (
                "WarmupCosineLR",
                ", own ratios",
                {"total_num_steps": 0.8, "warmup_min_ratio": 0.1, "cos_min_ratio": 0.05},
            ),
        )
    },
    **{
        f"OneCycle{note}": ("OneCycle", {"cycle_min_lr": 1e-5, "cycle_max_lr": 7e-4, **params})
        for note, params in (
            ("", {"cycle_first_step_size": 0.4}),
            (", decay", {"cycle_first_step_size": 0.3, **_DECAY, **_MOMENTA}),
            (", uneven halves", {"cycle_first_step_size": 0.2, "cycle_second_step_size": 0.55, **_MOMENTA}),
            (
                ", stairs and decay",
                {"cycle_first_step_size": 0.2, "cycle_second_step_size": 0.55, **_STAIRS, **_DECAY},
            ),
            (", no second half", {"cycle_first_step_size": 0.6, "cycle_second_step_size": 0.0, **_DECAY}),
            (", momentum left alone", {"cycle_first_step_size": 0.4, "cycle_momentum": False}),
        )
    },
    **{
        f"LRRangeTest, {note}": (
            "LRRangeTest",
            {
                "lr_range_test_min_lr": 1e-5,
                "lr_range_test_step_size": 0.1,
                "lr_range_test_step_rate": 1.7,
                "lr_range_test_staircase": note == "staircase",
            },
        )
        for note in ("continuous", "staircase")
    },
}
"""Name -> DeepSpeed's class and its parameters."""

_LENGTHS = {
    "warmup_num_steps",
    "total_num_steps",
    "cycle_first_step_size",
    "cycle_second_step_size",
    "decay_step_size",
    "lr_range_test_step_size",
}


def config_of(case: str, updates: int, optimizer: str = "Adam") -> dict[str, Any]:
    """The DeepSpeed config of a case whose scheduler has its say within this many updates."""
    kind, params = CASES[case]
    made: dict[str, Any] = {"optimizer": {"type": optimizer, "params": {"lr": OPTIMIZER_RATE}}}
    if kind is not None:
        counted = {k: round(v * updates) if k in _LENGTHS else v for k, v in params.items()}
        made["scheduler"] = {"type": kind, "params": counted}
    return made


def schedulers(ladder: Ladder, updates: int = 3001) -> Iterator[Finding]:
    """Every scheduler over its whole length and past its end; errors count the updates that differ."""
    if not deepspeed_oracle.available():
        yield Skipped("learning rate", "DeepSpeed is not installed (pip install 'parivox[deepspeed]')")
        return
    sides = ladder.sides("float32")
    for case, (kind, _) in CASES.items():
        if kind is not None:
            yield from (class_row(ladder, side, case, updates) for side in sides)
    for case in CASES:
        yield from _engine_rows(ladder, sides, case, config_of(case, ENGINE_UPDATES * 9 // 10))
    # An optimizer without betas: the engine then moves the learning rate alone.
    yield from _engine_rows(ladder, sides, "OneCycle", config_of("OneCycle", ENGINE_UPDATES, "SGD"), ON_SGD)


def class_row(ladder: Ladder, side: Side, case: str, updates: int) -> Row:
    """A scheduler in one backend against its class, over this many updates and past its end."""
    config = config_of(case, updates)
    real = deepspeed_oracle.class_rates(config["scheduler"], updates + PAST_THE_END, OPTIMIZER_RATE)
    return row(ladder, side, case, config, real, "DeepSpeed's scheduler")


def _engine_rows(
    ladder: Ladder, sides: list[Side], case: str, config: Mapping[str, Any], note: str = ""
) -> Iterator[Row]:
    real = deepspeed_oracle.engine_rates(config, ENGINE_UPDATES)
    for side in sides:
        yield row(ladder, side, case + note, config, real, "DeepSpeed's engine")


def row(
    ladder: Ladder,
    side: Side,
    case: str,
    config: Mapping[str, Any],
    real: deepspeed_oracle.RateTrace,
    against: str,
) -> Row:
    """One scheduler in one backend: the updates at which the rate or a beta differs as a float32 number."""
    counts = np.arange(len(real.rates))
    wrong = rate_faults(side.learning_rates(config, counts), real.rates)
    moved = importlib.import_module(f"{side.name}_impl.schedule").beta_schedule(config)
    if moved is not None:
        wrong += len(counts) if real.betas is None else rate_faults(np.asarray(moved(counts)), real.betas)
    elif real.betas is not None:
        wrong += rate_faults(np.broadcast_to(OPTIMIZER_BETAS, real.betas.shape), real.betas)
    label = f"{case}, {len(counts):,} updates, {side.name}"
    bound, kind = ladder.bound("learning rate", "exact"), CASES[case.removesuffix(ON_SGD)][0]
    feature = f"scheduler: {kind}" if kind else ""
    return Row("learning rate", label, against, wrong, bound, "float32", "updates that differ", feature)
