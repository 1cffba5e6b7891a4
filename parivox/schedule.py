"""DeepSpeed's schedulers in float64: learning rates, and the betas that OneCycle moves.

The numbers are computed on the host and enter a step as arguments. In float32 on the device the same formulas
miss the engine's values in the last bit at a good part of the steps; on the host both backends use the
engine's own arithmetic, and the values are equal.

Each function below is named after DeepSpeed's class, takes its parameters and gives a schedule over the
scheduler's iterations: iteration -1 is what the constructor leaves in the optimizer, iteration k what the k-th
`step()` (from 0) writes. The engine steps the optimizer and then the scheduler, so update k (from 0) runs with
iteration k - 1. An update that fp16 skips for an overflow moves neither: it is not counted.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from parivox.errors import ConfigError
from parivox.schedule_check import SCHEDULERS, names_fault, registered, value_fault

if TYPE_CHECKING:
    from parivox.deepspeed_config import OptimizerConfig, SchedulerConfig

Schedule = Callable[[Any], Float[np.ndarray, "*k"]]
"""Whole numbers of any shape (a plain one too): iterations from -1, or updates from 0 -> learning rates, float64."""

BetaSchedule = Callable[[Any], Float[np.ndarray, "*k 2"]]
"""The same numbers -> Adam's two betas, float64."""

Number = float | int

CYCLED = frozenset({"adam", "adamw", "lamb", "lion"})
"""Optimizers with betas, which OneCycle moves. DeepSpeed leaves SGD and Muon their own momentum."""

ONE_CYCLE_BETA2 = 0.99
"""OneCycle sets the second beta to this, whatever the optimizer was given."""

DEFAULT_RATE = 1e-3
"""Learning rate of DeepSpeed's Adam, AdamW, LAMB and Lion and torch's SGD where the config names none."""

_log = logging.getLogger("parivox.schedule")


@dataclass(frozen=True)
class Rates:
    """What a run's scheduler writes into its optimizer.

    Attributes:
        learning_rate: updates (from 0), of any shape -> learning rates, float64.
        betas: updates -> (..., 2) betas, float64; None where the optimizer keeps its own.
    """

    learning_rate: Schedule
    betas: BetaSchedule | None = None


# The schedulers


@registered("WarmupLR")
def warmup_lr(
    *,
    lr: Number | None = None,
    warmup_min_lr: Number = 0.0,
    warmup_max_lr: Number | None = None,
    warmup_num_steps: int = 1000,
    warmup_type: str = "log",
) -> Schedule:
    """From the minimum to the maximum, then constant.

    Args:
        lr: the optimizer's own learning rate.
        warmup_min_lr: rate at iterations -1 and 0.
        warmup_max_lr: rate at the end of the warm-up; None takes `lr`.
        warmup_num_steps: length of the warm-up; at least 2, as in DeepSpeed.
        warmup_type: `linear` or `log`.

    Raises:
        ConfigError: a value makes no sense, or there is neither `lr` nor `warmup_max_lr`.
    """
    steps, delta = max(2, warmup_num_steps), _top(warmup_max_lr, lr) - warmup_min_lr

    def schedule(iteration: Any) -> np.ndarray:
        iteration = np.asarray(iteration)
        gamma = np.where(iteration < steps, _rising(iteration, steps, warmup_type), 1.0)
        return np.asarray(warmup_min_lr + delta * gamma)

    return schedule


@registered("WarmupDecayLR")
def warmup_decay_lr(
    *,
    total_num_steps: Number,
    lr: Number | None = None,
    warmup_min_lr: Number = 0.0,
    warmup_max_lr: Number | None = 0.001,
    warmup_num_steps: int = 1000,
    warmup_type: str = "log",
) -> Schedule:
    """From the minimum to the maximum, then linearly back to the minimum, not to 0.

    Args:
        total_num_steps: iteration at which the minimum is reached again, and held.
        lr: the optimizer's own learning rate.
        warmup_min_lr: rate at iterations -1 and 0.
        warmup_max_lr: rate at the end of the warm-up; None takes `lr`.
        warmup_num_steps: length of the warm-up; at least 2, as in DeepSpeed.
        warmup_type: `linear` or `log`.

    Raises:
        ConfigError: a value makes no sense, or there is neither `lr` nor `warmup_max_lr`.
    """
    steps, delta = max(2, warmup_num_steps), _top(warmup_max_lr, lr) - warmup_min_lr
    decay = float(max(1.0, total_num_steps - steps))

    def schedule(iteration: Any) -> np.ndarray:
        iteration = np.asarray(iteration)
        falling = np.maximum(0.0, (total_num_steps - iteration) / decay)
        gamma = np.where(iteration < steps, _rising(iteration, steps, warmup_type), falling)
        # asarray: arithmetic turns an array without axes into a NumPy scalar.
        return np.asarray(warmup_min_lr + delta * gamma)

    return schedule


@registered("WarmupCosineLR")
def warmup_cosine_lr(
    *,
    lr: Number,
    total_num_steps: Number,
    warmup_min_ratio: Number = 0.0,
    warmup_num_steps: int = 1000,
    cos_min_ratio: Number = 0.0001,
    warmup_type: str = "log",
) -> Schedule:
    """A share of the optimizer's rate: up to 1, then down half a cosine. It is 0 at iteration -1.

    I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, without restarts.

    Args:
        lr: the optimizer's own learning rate, which is scaled.
        total_num_steps: end of the cosine; `cos_min_ratio` is reached an iteration before, and held.
        warmup_min_ratio: share at iteration 0.
        warmup_num_steps: length of the warm-up; at least 2, as in DeepSpeed.
        cos_min_ratio: share at the end.
        warmup_type: `linear` or `log`.

    Raises:
        ConfigError: a value makes no sense.
    """
    steps = max(2, warmup_num_steps)
    length = max(1, total_num_steps - steps)

    def schedule(iteration: Any) -> np.ndarray:
        iteration = np.asarray(iteration)
        rising = warmup_min_ratio + _rising(iteration, steps, warmup_type) * (1.0 - warmup_min_ratio)
        progress = np.minimum(1.0, (iteration - steps + 1) / length)
        share = (1 + _each(math.cos, math.pi * progress)) / 2
        falling = np.maximum(0.0, cos_min_ratio + (1.0 - cos_min_ratio) * share)
        ratio = np.where(iteration < steps, rising, falling)
        return np.asarray(np.where(iteration < 0, 0.0, lr * ratio))

    return schedule


@registered("LRRangeTest")
def lr_range_test(
    *,
    lr_range_test_min_lr: Number = 1e-3,
    lr_range_test_step_size: int = 2000,
    lr_range_test_step_rate: Number = 1.0,
    lr_range_test_staircase: bool | int = False,
) -> Schedule:
    """A rate that grows without end, to find where training breaks.

    L. Smith, "A disciplined approach to neural network hyper-parameters: part 1", 2018.

    Args:
        lr_range_test_min_lr: rate at iteration -1.
        lr_range_test_step_size: iterations in which the rate grows by `lr_range_test_step_rate` times the minimum.
        lr_range_test_step_rate: growth, see above.
        lr_range_test_staircase: grow in jumps, one each `lr_range_test_step_size` iterations.

    Raises:
        ConfigError: a value makes no sense.
    """

    def schedule(iteration: Any) -> np.ndarray:
        interval = (np.asarray(iteration) + 1) / lr_range_test_step_size
        interval = np.floor(interval) if lr_range_test_staircase else interval
        return np.asarray(lr_range_test_min_lr * (1 + lr_range_test_step_rate * interval), np.float64)

    return schedule


@registered("OneCycle")
def one_cycle(
    *,
    cycle_min_lr: Number,
    cycle_max_lr: Number,
    decay_lr_rate: Number = 0.0,
    cycle_first_step_size: Number = 2000,
    cycle_second_step_size: Number | None = None,
    cycle_first_stair_count: Number = 0,
    cycle_second_stair_count: Number | None = None,
    decay_step_size: Number = 0,
    cycle_momentum: bool | int = True,
    cycle_min_mom: Number = 0.8,
    cycle_max_mom: Number = 0.9,
    decay_mom_rate: Number = 0.0,
) -> tuple[Schedule, BetaSchedule | None]:
    """One rise and fall of the rate with the momentum mirrored, then a decay. Gives rates and betas.

    L. Smith, "A disciplined approach to neural network hyper-parameters: part 1", 2018.

    At iteration -1 rate and momentum are both at their minimum; from iteration 0 on the momentum is high where
    the rate is low. In the decay the rate falls as 1 / (1 + rate * intervals), and DeepSpeed lets the momentum
    grow as (1 + rate * intervals), past 1 if the run is long enough.

    Args:
        cycle_min_lr: lowest rate of the cycle.
        cycle_max_lr: highest rate.
        decay_lr_rate: fall of the rate in each interval after the cycle; 0 for none.
        cycle_first_step_size: iterations of the rise.
        cycle_second_step_size: iterations of the fall; None takes those of the rise.
        cycle_first_stair_count: stairs of the rise; 0 or less for a smooth one.
        cycle_second_stair_count: stairs of the fall; None takes those of the rise.
        decay_step_size: iterations of a decay interval; 0 for no decay.
        cycle_momentum: whether the first beta moves, and the second is 0.99; without it the betas are None.
        cycle_min_mom: lowest momentum.
        cycle_max_mom: highest momentum.
        decay_mom_rate: growth of the momentum in each interval after the cycle; 0 for none.

    Raises:
        ConfigError: a value makes no sense.
    """
    first = float(cycle_first_step_size)
    second = first if cycle_second_step_size is None else float(cycle_second_step_size)
    last_stairs = cycle_first_stair_count if cycle_second_stair_count is None else cycle_second_stair_count
    total = first + second

    def intervals(iteration: np.ndarray) -> np.ndarray:
        return np.asarray((iteration - total + 1) / decay_step_size if decay_step_size else 0 * iteration)

    def rates(iteration: Any) -> np.ndarray:
        iteration = np.asarray(iteration)
        share = _cycle_share(iteration, first, second, cycle_first_stair_count, last_stairs)
        cycled = cycle_min_lr + (cycle_max_lr - cycle_min_lr) * share
        # Before its end the decay is not used, and its divisor may be anything.
        after = np.maximum(0.0, intervals(iteration))
        return np.where(iteration < total, cycled, cycle_min_lr / (1 + decay_lr_rate * after))

    def betas(iteration: Any) -> np.ndarray:
        iteration = np.asarray(iteration)
        share = _cycle_share(iteration, first, second, cycle_first_stair_count, last_stairs)
        cycled = cycle_max_mom - (cycle_max_mom - cycle_min_mom) * share
        decayed = cycle_max_mom * (1 + decay_mom_rate * intervals(iteration))
        momentum = np.where(iteration < 0, cycle_min_mom, np.where(iteration < total, cycled, decayed))
        return np.stack([momentum, np.full(momentum.shape, ONE_CYCLE_BETA2)], axis=-1)

    return rates, betas if cycle_momentum else None


def _top(warmup_max_lr: Number | None, lr: Number | None) -> Number:
    top = lr if warmup_max_lr is None else warmup_max_lr
    if top is None:
        raise ConfigError("warmup_max_lr is None and the optimizer has no learning rate; give one of them")
    return top


def _each(function: Callable[[float], float], values: Any) -> np.ndarray:
    # The functions of `math` and not those of NumPy: they differ in the last bit, and the engine uses the first.
    return np.asarray(np.vectorize(function, otypes=[np.float64])(values))


def _rising(iteration: np.ndarray, steps: int, warmup_type: str) -> np.ndarray:
    """Share of the warm-up that is done, from 0; of use below `steps`."""
    held = np.clip(iteration, 0, steps - 1)
    if warmup_type == "linear":
        return np.asarray(held / steps)
    return np.asarray((1.0 / math.log(steps)) * _each(math.log, held + 1))


def _cycle_share(
    iteration: np.ndarray, first: float, second: float, first_stairs: Number, second_stairs: Number
) -> np.ndarray:
    """Height in the cycle, from 0 at its ends to 1 at its peak; of use from iteration 0 to the end of the cycle."""
    total, done = first + second, iteration + 1
    ratio = first / total
    x = 1.0 + done / total - np.floor(1 + done / total)
    rises = x <= ratio
    # Without a second half nothing ever falls, and there would be a 0 to divide by.
    falling = (x - 1) / (ratio - 1) if ratio < 1 else np.zeros(x.shape)
    share = np.where(rises, x / ratio, falling)
    stairs = np.where(rises, first_stairs, second_stairs)
    place = done % total
    down = (total - place) * stairs / second if second > 0 else np.zeros(x.shape)
    stair = np.floor(np.where(place <= first, place * stairs / first, down))
    return np.where(stairs > 0, stair / np.where(stairs > 0, stairs, 1), share)


# From a config to updates


def update_rates(optimizer: OptimizerConfig, scheduler: SchedulerConfig | None) -> Rates:
    """Rates and betas of updates (from 0) as the engine with this optimizer and scheduler has them.

    Without a scheduler the optimizer's learning rate is constant. Where OneCycle should move the momentum of an
    optimizer that has no betas, it leaves it alone and says so in the log `parivox.schedule`, as DeepSpeed does.

    Raises:
        ConfigError: a parameter of the scheduler is unknown, missing or makes no sense.
    """
    kind, params = (None, {}) if scheduler is None else (scheduler.kind, scheduler.params)
    return _rates(optimizer.kind, optimizer.params.get("lr"), kind, params)


def rates_from_deepspeed(config: Mapping[str, Any]) -> Rates:
    """`update_rates` of a DeepSpeed config as it is written; its `scheduler` may be absent.

    Raises:
        ConfigError: the scheduler is not supported, or a value makes no sense.
    """
    optimizer, scheduler = (config.get(key) or {} for key in ("optimizer", "scheduler"))
    kind = str(optimizer.get("type", "")).lower()
    # Muon's two halves have defaults of their own.
    default = None if kind in ("", "muon") else DEFAULT_RATE
    lr = (optimizer.get("params") or {}).get("lr", default)
    return _rates(kind, lr, scheduler.get("type"), scheduler.get("params") or {})


def from_deepspeed(config: Mapping[str, Any]) -> Schedule:
    """The learning rates of updates (from 0) under a DeepSpeed config; its `scheduler` may be absent.

    Raises:
        ConfigError: the scheduler is not supported, or a value makes no sense.
    """
    return rates_from_deepspeed(config).learning_rate


def _rates(optimizer: str, lr: Any, kind: Any, params: Mapping[str, Any]) -> Rates:
    if fault := value_fault("lr", lr):
        raise ConfigError(f"optimizer: {fault}")
    if kind is None:
        rate = _needed(lr, "a run without a scheduler")
        return Rates(lambda update: np.full(np.shape(update), rate, np.float64))
    if not isinstance(kind, str) or kind not in SCHEDULERS:
        raise ConfigError(f"scheduler '{kind}' is not supported; use one of {', '.join(SCHEDULERS)}, or none")
    given = dict(params)
    if given.pop("last_batch_iteration", -1) != -1:
        raise ConfigError(
            f"scheduler {kind}: last_batch_iteration is {params['last_batch_iteration']!r}; leave it out,"
            " a run goes on from its checkpoint"
        )
    if fault := names_fault(kind, given):
        raise ConfigError(f"scheduler {kind}: {fault}")
    if kind == "WarmupCosineLR":
        _needed(lr, "WarmupCosineLR")
    takes_lr = "lr" in inspect.signature(SCHEDULERS[kind]).parameters
    made = SCHEDULERS[kind](**given, **({"lr": lr} if takes_lr else {}))
    rates, betas = made if kind == "OneCycle" else (made, None)
    if betas is not None and optimizer not in CYCLED:
        _log.warning("OneCycle leaves the momentum alone: optimizer '%s' has no betas", optimizer)
        betas = None
    return Rates(_of_updates(rates), None if betas is None else _of_updates(betas))


def _needed(lr: Any, by: str) -> Any:
    if lr is None:
        raise ConfigError(f"{by} needs the optimizer's learning rate; give optimizer.params.lr")
    return lr


def _of_updates(schedule: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    # int64: a count without a sign would turn 0 - 1 into a large number.
    return lambda update: schedule(np.asarray(update).astype(np.int64) - 1)
