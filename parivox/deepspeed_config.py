"""The one reader of DeepSpeed configurations: what both backends train with, or one list of all that is wrong.

A key is used, accepted because it changes no result, or refused by name with the remedy (the tables are in
`parivox.deepspeed_keys` and `parivox.deepspeed_recipes`); none is passed over in silence. Defaults and the
arithmetic of the batch sizes are DeepSpeed's own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parivox import deepspeed_rules as rules
from parivox.deepspeed_keys import FP16, TOP, TYPED, ZERO_ALIASES
from parivox.deepspeed_reader import Reader
from parivox.deepspeed_recipes import OPTIMIZER_NAMES, OPTIMIZERS, REQUIRED, SCHEDULERS
from parivox.deepspeed_values import show
from parivox.errors import ConfigError
from parivox.hparams import HParams

OptimizerKind = Literal["adam", "adamw", "sgd", "lion", "lamb", "muon"]
Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and every parameter of it, defaults filled in.

    Attributes:
        kind: which optimizer.
        params: parameter name -> value. adam, adamw: lr, betas, eps, weight_decay, bias_correction, adam_w_mode
            (the one in force); sgd: lr, momentum, dampening, weight_decay, nesterov; lion: lr, betas,
            weight_decay; lamb: as adam without adam_w_mode, and max_coeff, min_coeff, eps_inside_sqrt.
    """

    kind: OptimizerKind
    params: Mapping[str, Any]


@dataclass(frozen=True)
class SchedulerConfig:
    """A scheduler and its parameters as given; DeepSpeed's class has the defaults of the others."""

    kind: Literal["WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest"]
    params: Mapping[str, Any]


@dataclass(frozen=True)
class LossScaleConfig:
    """How a float16 loss is scaled.

    Attributes:
        static: the factor; 0 means that it is found while training.
        initial_scale_power: its first value is 2 to this power.
        window: steps without overflow after which it doubles.
        hysteresis: overflows after which it is halved. DeepSpeed heeds it at ZeRO stages 1 to 3 only.
        consecutive_hysteresis: whether every step without overflow starts that count again.
        min_scale: its lower bound.
    """

    static: float
    initial_scale_power: int
    window: int
    hysteresis: int
    consecutive_hysteresis: bool
    min_scale: float


@dataclass(frozen=True)
class TrainConfig:
    """A resolved configuration; `train_batch_size` is the product of the three numbers after it.

    Attributes:
        train_batch_size: records that make one update, over all ranks.
        micro_batch_size: records in one pass of one rank.
        accumulation_steps: passes before an update.
        world_size: ranks.
        optimizer: the optimizer.
        scheduler: the schedule of its learning rate, or None for a constant one.
        gradient_clipping: largest norm of the gradients; 0 means no bound.
        precision: arithmetic of the network; master weights are float32.
        loss_scale: with fp16 only.
        zero_stage: what is split over the ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too.
        prescale_gradients: divide gradients by the number of ranks before they are summed.
        gradient_predivide_factor: divisor before the sum, where gradients are not prescaled.
        checkpoint_activations: compute activations again in the backward pass instead of keeping them.
        deepspeed: the whole configuration for `deepspeed.initialize`, nothing in it left to resolve.
    """

    train_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    world_size: int
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig | None
    gradient_clipping: float
    precision: Precision
    loss_scale: LossScaleConfig | None
    zero_stage: int
    prescale_gradients: bool
    gradient_predivide_factor: float
    checkpoint_activations: bool
    deepspeed: Mapping[str, Any]


def resolve(
    config: object,
    *,
    world_size: int = 1,
    source: str = "the DeepSpeed config",
    hparams: HParams | None = None,
) -> TrainConfig:
    """Check a configuration and fill in everything that it leaves open.

    "auto" takes the value of `hparams` where there is one (batch size, learning rates, steps, clipping), else
    DeepSpeed's default.

    Args:
        config: the configuration as a mapping, as JSON has it.
        world_size: data-parallel ranks.
        source: what the message names, such as the file.
        hparams: what "auto" may take its values from.

    Raises:
        ConfigError: listing everything that is wrong, one line each, with the remedy.
    """
    return _resolve(config, world_size, source, hparams)[0]


def remarks(config: object, *, world_size: int = 1, hparams: HParams | None = None) -> list[str]:
    """What of a valid configuration changes no result here, one line each with the reason; for a dry run.

    Raises:
        ConfigError: as `resolve`.
    """
    return _resolve(config, world_size, "the DeepSpeed config", hparams)[1]


def load(path: str | Path, *, world_size: int = 1, hparams: HParams | None = None) -> TrainConfig:
    """Read and resolve a JSON file.

    Raises:
        ConfigError: the file cannot be read, is not JSON, has a key twice, or `resolve` refuses it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # a UnicodeDecodeError, or a path with a null byte
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}); give an existing JSON file") from error
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        config = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = (
            str(error) if isinstance(error, json.JSONDecodeError) else "a number or a nesting beyond reason"
        )
        raise ConfigError(f"{path}: not JSON ({reason}); mend it there, and leave out comments") from error
    if twice:
        raise ConfigError(
            f"{path}: {', '.join(map(show, twice))} given twice in one object; keep one of them"
        )
    return resolve(config, world_size=world_size, source=str(path), hparams=hparams)


def _resolve(
    config: object, world_size: int, source: str, hparams: HParams | None
) -> tuple[TrainConfig, list[str]]:
    if not isinstance(config, Mapping):
        raise ConfigError(f"{source} is {show(config)}; it must be a JSON object of DeepSpeed's keys")
    if isinstance(world_size, bool) or world_size < 1:
        raise ConfigError(f"the number of ranks is {show(world_size)}; it must be 1 or more")
    reader = Reader(hparams)
    found = reader.table("", _modern(reader, config), TOP)
    sizes = rules.batch_sizes(reader, found, world_size)
    optimizer = _optimizer(reader, config)
    scheduler = _scheduler(reader, config, optimizer) if "scheduler" in config else None
    precision = rules.precision(reader, found)
    zero = {"stage": 0, **found.get("zero_optimization", {})}
    rules.dtypes_fit(reader, found, precision)
    rules.scale_fits(reader, found, precision, zero["stage"])
    rules.division_fits(reader, found, zero)
    if optimizer:
        rules.optimizer_fits(reader, optimizer.kind, optimizer.params, found, zero["stage"])
    if optimizer and scheduler:
        rules.momentum_fits(reader, optimizer.kind, scheduler.kind, scheduler.params)
    if reader.problems or sizes is None or optimizer is None:
        count = len(reader.problems)
        heading = f"{source}: {count} thing{'s' * (count > 1)} to change before this can be trained"
        raise ConfigError("\n".join([heading, *(f"- {problem}" for problem in reader.problems)]))
    return _assemble(found, sizes, world_size, optimizer, scheduler, precision, zero), reader.remarks


def _modern(reader: Reader, config: Mapping[Any, Any]) -> dict[Any, Any]:
    """The configuration with today's names in place of the older ones that DeepSpeed still takes."""
    new = dict(config)
    if "bfloat16" in new:
        old = new.pop("bfloat16")
        if "bf16" in new:
            reader.wrong("bfloat16", "is the old name of bf16, which is there too; remove it")
        else:
            new["bf16"] = old
    zero = new.get("zero_optimization")
    if isinstance(zero, bool):
        new["zero_optimization"] = {"stage": int(zero)}
    elif isinstance(zero, Mapping):
        long = dict(zero)
        for short, name in ZERO_ALIASES.items():
            if short in long and name in long:
                reader.wrong(
                    f"zero_optimization.{short}", f"is another name of {name}, which is there too; remove it"
                )
                del long[short]
        new["zero_optimization"] = {ZERO_ALIASES.get(name, name): value for name, value in long.items()}
    return new


def _typed(reader: Reader, section: str, config: Mapping[Any, Any]) -> tuple[str, Mapping[Any, Any]] | None:
    """Type and parameters of the optimizer or the scheduler."""
    value = config[section]
    if not reader.is_object(section, value):
        return None
    found = reader.table(section, value, TYPED)
    kind, params = value.get("type"), value.get("params")
    params = {} if params is None else params
    sound = reader.is_object(f"{section}.params", params)
    if not isinstance(kind, str) or kind == "auto":
        known = OPTIMIZER_NAMES.values() if section == "optimizer" else SCHEDULERS
        shown = f"is {show(kind)}" if "type" in found or kind == "auto" else "is missing"
        reader.wrong(f"{section}.type", f"{shown}; it must be one of {', '.join(known)}")
        return None
    return kind, params if sound else {}


def _optimizer(reader: Reader, config: Mapping[Any, Any]) -> OptimizerConfig | None:
    if "optimizer" not in config:
        reader.wrong("optimizer", 'is missing; write one, as {"type": "Adam", "params": {"lr": 1e-4}}')
        return None
    given = _typed(reader, "optimizer", config)
    if given is None:
        return None
    kind = rules.optimizer_kind(reader, given[0])
    if kind is None:
        return None
    keys = OPTIMIZERS[kind]
    found = reader.table("optimizer.params", given[1], keys)
    params = {name: found.get(name, key.default) for name, key in keys.items() if key.role == "used"}
    if kind == "adamw":
        params["adam_w_mode"] = True  # as in DeepSpeed, whatever the file says beside this type
    return OptimizerConfig(kind, params)


def _scheduler(
    reader: Reader, config: Mapping[Any, Any], optimizer: OptimizerConfig | None
) -> SchedulerConfig | None:
    given = _typed(reader, "scheduler", config)
    if given is None:
        return None
    kind = rules.scheduler_kind(reader, given[0])
    if kind is None:
        return None
    params = reader.table("scheduler.params", given[1], SCHEDULERS[kind])
    if "warmup_max_lr" in given[1] and given[1]["warmup_max_lr"] is None and optimizer:
        params["warmup_max_lr"] = optimizer.params["lr"]
    for name in REQUIRED.get(kind, ()):
        path = f"scheduler.params.{name}"
        if name not in params and reader.bad.isdisjoint((path, "scheduler.params")):
            why = "is 'auto', with nothing to take it from" if path in reader.auto else "is missing"
            reader.wrong(path, f"{why}; write a number, {kind} has no default for it")
    return SchedulerConfig(kind, params)


def _assemble(
    found: Mapping[str, Any],
    sizes: rules.Sizes,
    world_size: int,
    optimizer: OptimizerConfig,
    scheduler: SchedulerConfig | None,
    precision: Precision,
    zero: Mapping[str, Any],
) -> TrainConfig:
    values = {name: found.get(name, key.default) for name, key in TOP.items() if key.default is not None}
    plain: dict[str, Any] = dict(zip((rules.TRAIN, rules.MICRO, rules.STEPS), sizes, strict=True))
    params = {name: list(v) if isinstance(v, tuple) else v for name, v in optimizer.params.items()}
    plain["optimizer"] = {"type": OPTIMIZER_NAMES[optimizer.kind], "params": params}
    if scheduler:
        plain["scheduler"] = {"type": scheduler.kind, "params": dict(scheduler.params)}
    plain |= {**values, "zero_optimization": dict(zero)}
    scale = {name: key.default for name, key in FP16.items() if key.role == "used"} | found.get("fp16", {})
    if precision != "fp32":
        # An update that is not finite is never made: older releases of DeepSpeed must be told so for bf16.
        plain[precision] = scale if precision == "fp16" else {**found["bf16"], "check_grad_overflow": True}
    for name in (
        "activation_checkpointing",
        "communication_data_type",
        "disable_allgather",
        "disable_python_gc",
    ):
        if name in found:
            plain[name] = found[name]
    loss_scale = LossScaleConfig(
        scale["loss_scale"],
        scale["initial_scale_power"],
        scale["loss_scale_window"],
        scale["hysteresis"],
        scale["consecutive_hysteresis"],
        float(scale["min_loss_scale"]),
    )
    return TrainConfig(
        *sizes,
        world_size,
        optimizer,
        scheduler,
        values["gradient_clipping"],
        precision,
        loss_scale if precision == "fp16" else None,
        zero["stage"],
        values["prescale_gradients"],
        values["gradient_predivide_factor"],
        "activation_checkpointing" in found,
        plain,
    )
