"""What a training would do: batches, optimizer, schedule and memory, as text; nothing is read or written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from parivox.backend import moments_of
from parivox.deepspeed_config import TrainConfig
from parivox.features import SAMPLE_RATE
from parivox.hparams import DenoiserHParams, EnhancerHParams, HParams
from parivox.schedule import update_rates
from parivox.stages import has_judge
from parivox.weights import TensorSpec, denoiser_specs
from parivox.weights_discriminator import discriminator_specs
from parivox.weights_enhancer import enhancer_specs, trained_names

DEVICES = (1, 2, 8)
"""Numbers of devices that memory is shown for, beside the run's own."""

PLOT_ROWS, PLOT_COLUMNS = 8, 60
BLOCKS = " ▁▂▃▄▅▆▇█"
STAGES = ("nothing is divided", "optimizer", "optimizer, gradients", "optimizer, gradients, parameters")
"""What ZeRO divides over the devices at each stage."""


def describe(hp: HParams, config: TrainConfig, remarks: Sequence[str] = ()) -> str:
    """The resolved training in some 40 lines.

    Args:
        hp: of the model and the data.
        config: how to train.
        remarks: what of the config changes no result here.
    """
    lines = [
        *_settings(hp, config),
        "",
        *_schedule(hp, config),
        "",
        *_memory(hp, config),
    ]
    if remarks:
        lines += ["", "without effect on the result:", *(f"  {remark}" for remark in remarks)]
    return "\n".join(lines)


def bytes_per_device(hp: HParams, config: TrainConfig, devices: int) -> dict[str, int]:
    """Bytes of `parameters`, `gradients` and `optimizer` on one of so many devices that share evenly.

    A stage of the enhancer has the parameters that it leaves as they are too, `fixed`: whole on each device, though JAX
    divides them from ZeRO stage 1 on. With half precision the optimizer's part holds the float32 weights too.
    S. Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", 2020.
    """
    count, stage = parameter_count(hp), config.zero_stage
    half = config.precision != "fp32"
    share = {part: math.ceil(count / devices) if stage >= from_stage else count for part, from_stage in _FROM}
    words = len(moments_of(config.optimizer)) + half
    width = 2 if half else 4
    fixed = fixed_count(hp)
    return {
        "parameters": share["parameters"] * width,
        "gradients": share["gradients"] * width,
        "optimizer": share["optimizer"] * 4 * words,
        **({"fixed": fixed * 4} if fixed else {}),
    }


_FROM = (("parameters", 3), ("gradients", 2), ("optimizer", 1))


def parameter_count(hp: HParams) -> int:
    """Numbers in all weights that are trained, the discriminator's too."""
    specs: dict[str, TensorSpec] = {}
    if isinstance(hp, DenoiserHParams):
        specs = denoiser_specs(hp.unet_hidden_dim)
    elif isinstance(hp, EnhancerHParams):
        every = enhancer_specs(hp)
        specs = {name: every[name] for name in trained_names(hp)}
        specs |= discriminator_specs() if has_judge(hp) else {}
    return _numbers(specs)


def fixed_count(hp: HParams) -> int:
    """Numbers in all weights that a stage of the enhancer holds and does not train; 0 for the denoiser."""
    if not isinstance(hp, EnhancerHParams):
        return 0
    trained = set(trained_names(hp))
    return _numbers({name: spec for name, spec in enhancer_specs(hp).items() if name not in trained})


def _numbers(specs: dict[str, TensorSpec]) -> int:
    return sum(math.prod(spec.shape) for spec in specs.values())


def sparkplot(values: Iterable[float], rows: int = PLOT_ROWS) -> list[str]:
    """A curve in blocks, `rows` lines of one column a value, from 0 or the lowest value up to the highest."""
    heights = np.asarray(list(values), np.float64)
    bottom, top = min(0.0, heights.min()), heights.max()
    eighths = np.zeros(heights.shape, int)
    if top > bottom:
        eighths = np.rint((heights - bottom) / (top - bottom) * rows * 8).astype(int)
    return ["".join(BLOCKS[min(max(h - 8 * row, 0), 8)] for h in eighths) for row in reversed(range(rows))]


def _settings(hp: HParams, config: TrainConfig) -> list[str]:
    optimizer = config.optimizer
    params = ", ".join(f"{name} {_plain(value)}" for name, value in optimizer.params.items())
    clipping = f"norm at most {config.gradient_clipping:g}" if config.gradient_clipping else "none"
    seconds = config.train_batch_size * hp.training_seconds
    lines = [
        f"batch        {config.train_batch_size} records = {config.micro_batch_size} in a pass x"
        f" {config.accumulation_steps} passes x {config.world_size} devices; {seconds:g} s of sound an update",
        f"steps        {hp.max_steps:,}, {hp.max_steps * seconds / 3600:,.1f} h of sound at {SAMPLE_RATE:,} Hz",
        f"optimizer    {optimizer.kind}: {params}",
        f"clipping     {clipping}",
        f"precision    {config.precision}"
        + ("" if config.precision == "fp32" else ", float32 master weights"),
    ]
    scale = config.loss_scale
    if scale is not None:
        found = f"from 2^{scale.initial_scale_power}, doubled after {scale.window} good updates, at least"
        lines.append(
            f"loss scale   {scale.static:g}, fixed"
            if scale.static
            else f"loss scale   {found} {scale.min_scale:g}"
        )
    lines.append(f"ZeRO         stage {config.zero_stage}: {STAGES[config.zero_stage]}")
    if config.checkpoint_activations:
        lines.append("activations  of each block computed again in the backward pass")
    return lines


def _schedule(hp: HParams, config: TrainConfig) -> list[str]:
    counts = np.unique(np.linspace(0, hp.max_steps - 1, PLOT_COLUMNS).round().astype(np.int64))
    rates = update_rates(config.optimizer, config.scheduler)
    found = rates.learning_rate(counts)
    name = config.scheduler.kind if config.scheduler else "none"
    heading = (
        f"schedule     {name}: {found[0]:.3g} at the first update, at most {found.max():.3g}, {found[-1]:.3g}"
    )
    moved = "" if rates.betas is None else "; it moves the betas too"
    axis = f"     update 1{hp.max_steps:>{max(len(counts) - 8, 1)},}"
    return [f"{heading} at the last{moved}", *(f"    |{line}" for line in sparkplot(found)), axis]


def _memory(hp: HParams, config: TrainConfig) -> list[str]:
    devices = sorted({*DEVICES, config.world_size})
    tables = [bytes_per_device(hp, config, count) for count in devices]
    head = "".join(f"{f'{n} device' + 's' * (n > 1):>14}" for n in devices)
    lines = [f"parameters   {parameter_count(hp):,}; memory of each device, without activations:"]
    lines.append(f"    {'':<12}{head}")
    for part in tables[0]:
        lines.append(f"    {part:<12}" + "".join(f"{_mebibytes(table[part]):>14}" for table in tables))
    return [*lines, f"    {'together':<12}" + "".join(f"{_mebibytes(sum(t.values())):>14}" for t in tables)]


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(f"{x:g}" for x in value) + ")"
    return str(value) if isinstance(value, bool) else f"{value:g}"
