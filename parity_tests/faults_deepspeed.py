"""Planted faults of what a DeepSpeed config asks for: schedules, optimizers, accumulation, loss scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

from parity_tests import rungs_devices, rungs_optimizers, rungs_precision, rungs_schedule, rungs_training
from parity_tests.faults import Fault, both, swap
from parity_tests.ladder import Ladder
from parity_tests.result import Row
from parity_tests.sides import Side
from parivox.schedule import Rates

SCHEDULE_UPDATES = 100
PLAIN_SGD = {
    "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0.1, "warmup_max_lr": 0.1}},
    "gradient_clipping": 0.0,
}
"""At a constant rate; Adam and clipping hide a gradient that is too large by a factor."""


def schedule_probe(case: str, ladder: Ladder, side: Side) -> Iterator[Row]:
    """One scheduler against its class."""
    yield rungs_schedule.class_row(ladder, side, case, SCHEDULE_UPDATES)


def variant_probe(label: str, ladder: Ladder, side: Side) -> Iterator[Row]:
    """One optimizer against the engine, or its kernel in NumPy."""
    variant = next(v for v in rungs_optimizers.VARIANTS if v.label == label)
    found = rungs_optimizers.optimized(ladder, variant, side)
    row = rungs_optimizers.variant_row(ladder, variant, side, found)
    if row is not None:
        yield row


def accumulation_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Three updates in two passes against the same backend without the fault."""
    batches, seed = rungs_precision.data(ladder.options.seed, 3), ladder.options.seed
    config = rungs_precision.config_of(2, **PLAIN_SGD)
    faulty, _ = rungs_precision.train(side, config, batches, seed)
    with patch.multiple("parity_tests.faults", _planted=False):
        sound, _ = rungs_precision.train(side, config, batches, seed)
    error = rungs_training.worst_loss(faulty, sound)
    yield Row("training", "2 passes", "itself", error, ladder.bound("training", side.dtype), side.dtype)


def loss_scale_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """The sequence of the loss scale against the engine."""
    yield rungs_precision.loss_scale_row(ladder, 1)


def half_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """A few tensors in float16 against the engine."""
    yield from rungs_precision.half_rows(ladder, side, "AdamW in fp16, ZeRO 0")


def devices_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Two updates on two devices or processes against one, at a constant rate without clipping."""
    run = rungs_devices.Run(updates=2, seed=ladder.options.seed, entries=PLAIN_SGD, weigh=False)
    if side.name == "jax":
        yield from rungs_devices.jax_rows([dataclasses.replace(run, devices=2, fault=_planted_in_ranks)])
    else:
        yield from rungs_devices.process_rows("torch", [dataclasses.replace(run, fault=_planted_in_ranks)])


_planted_in_ranks: str | None = None
"""The fault that the processes of `devices_probe` plant in themselves."""


def _in_ranks(fault: str) -> Callable[[], AbstractContextManager[object]]:
    return lambda: patch("parity_tests.faults_deepspeed._planted_in_ranks", fault)


def _scheduler(**changed: Any) -> Callable[[Callable], Callable]:
    """A schedule of other parameters than the config's."""

    def make(sound: Callable) -> Callable:
        def of(config: Mapping[str, Any]) -> Any:
            scheduler = config["scheduler"]
            params = {**scheduler["params"], **changed}
            return sound({**config, "scheduler": {**scheduler, "params": params}})

        return of

    return make


def _still(sound: Callable) -> Callable:
    """OneCycle that leaves the betas alone."""
    return lambda config: Rates(sound(config).learning_rate, None)


def _optimizer(**changed: Any) -> Callable[[Callable], Callable]:
    """An optimizer of other parameters than the config's."""
    return lambda sound: (
        lambda config: sound(dataclasses.replace(config, params={**config.params, **changed}))
    )


def _summed(sound: Callable) -> Callable:
    """The sum over micro batches in place of their mean."""
    return lambda loss, steps: loss


def _summed_in_jax() -> AbstractContextManager[object]:
    # A compiled step would keep what it was traced with.
    from jax_impl import backend, train_step

    stack = ExitStack()
    stack.enter_context(swap("jax_impl.train_step.micro_share", _summed)())
    stack.enter_context(patch.object(backend, "_step_program", train_step.make_step))
    return stack


def _late_window(sound: Callable) -> Callable:
    """A loss scale that doubles one update late."""
    return lambda state, config: sound(state, dataclasses.replace(config, window=config.window + 1))


def _old_divisor(sound: Callable) -> Callable:
    """Gradients divided by the scale that the loss was multiplied by, as one would expect."""
    return lambda self: (self.factor, self.factor)


_WINDOW = swap("parivox.loss_scale.after_update", _late_window)

DEEPSPEED_FAULTS: tuple[Fault, ...] = (
    Fault(
        "linear warm-up for log",
        "learning rate",
        "float32",
        partial(schedule_probe, "WarmupLR, log"),
        both("schedule.from_deepspeed", _scheduler(warmup_type="linear")),
    ),
    Fault(
        "betas that OneCycle leaves alone",
        "learning rate",
        "float32",
        partial(schedule_probe, "OneCycle"),
        both("schedule.rates_from_deepspeed", _still),
    ),
    Fault(
        "LRRangeTest without its stairs",
        "learning rate",
        "float32",
        partial(schedule_probe, "LRRangeTest, staircase"),
        both("schedule.from_deepspeed", _scheduler(lr_range_test_staircase=False)),
    ),
    Fault(
        "LAMB's eps outside the root",
        "optimizer",
        "float64",
        partial(variant_probe, "LAMB, eps under the root"),
        both("optim.make_optimizer", _optimizer(eps_inside_sqrt=False)),
    ),
    Fault(
        "AdamW's decay in the gradient",
        "optimizer",
        "float32",
        partial(variant_probe, "Adam (decoupled decay)"),
        both("optim.make_optimizer", _optimizer(adam_w_mode=False)),
    ),
    Fault(
        "SGD without Nesterov's look ahead",
        "optimizer",
        "float32",
        partial(variant_probe, "SGD, Nesterov"),
        both("optim.make_optimizer", _optimizer(nesterov=False)),
    ),
    Fault(
        "sum over passes for their mean",
        "training",
        "float64",
        accumulation_probe,
        {"jax": _summed_in_jax, "torch": swap("torch_impl.train_step.micro_share", _summed)},
        long=True,
    ),
    Fault(
        "loss scale doubled one update late",
        "optimizer",
        "float32",
        loss_scale_probe,
        {"jax": _WINDOW, "torch": _WINDOW},
    ),
    Fault(
        "gradient divided by the old loss scale where it doubles",
        "optimizer",
        "float32",
        half_probe,
        {"jax": swap("parivox.loss_scale.RunningScale.factors", _old_divisor)},
    ),
    Fault(
        "float16 without the head start of its bias correction",
        "optimizer",
        "float32",
        half_probe,
        {"jax": swap("jax_impl.train_step.head_start", lambda sound: lambda config: 0)},
    ),
    Fault(
        "sum over devices for their mean",
        "devices",
        "float32",
        devices_probe,
        {"torch": _in_ranks("sum")},
    ),
    Fault(
        "sum over devices for their mean",
        "devices",
        "float32",
        devices_probe,
        {"jax": _in_ranks("sum")},
        long=True,
    ),
    Fault(
        "all devices read the same rows",
        "devices",
        "float32",
        devices_probe,
        {"jax": _in_ranks("same rows"), "torch": _in_ranks("same rows")},
        long=True,
    ),
)
"""Faults for the rungs that `LadderOptions.deepspeed` adds."""
