"""The real DeepSpeed, driven on its own: what the ladder compares both backends with."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity_tests.sides import AdamTrace
from parivox.backend import NamedArrays


def available() -> bool:
    """Whether DeepSpeed is installed; imports nothing."""
    return importlib.util.find_spec("deepspeed") is not None


@dataclass(frozen=True)
class EngineTrace:
    """What the engine did.

    Attributes:
        rates: learning rate of each update, float64.
        adam: weights and moments after the last update.
    """

    rates: np.ndarray
    adam: AdamTrace


@functools.lru_cache(maxsize=2)
def _rates(count: int, params: tuple[tuple[str, Any], ...]) -> np.ndarray:
    import torch

    from torch_impl.engine import import_deepspeed

    import_deepspeed("cpu")
    from deepspeed.runtime.lr_schedules import WarmupDecayLR

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = WarmupDecayLR(optimizer, **dict(params))
    rates = np.empty(count)
    for k in range(count):
        rates[k] = optimizer.param_groups[0]["lr"]
        scheduler.step()
    rates.setflags(write=False)
    return rates


def scheduler_rates(config: Mapping[str, Any], count: int) -> np.ndarray:
    """Learning rate of updates 0 to count - 1 from DeepSpeed's own scheduler class, stepped after each."""
    return _rates(count, tuple(sorted(config["scheduler"]["params"].items())))


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What DeepSpeed's own reader makes of a config, in the names of the config."""
    from torch_impl.engine import import_deepspeed, single_process_world, talk_to_log

    deepspeed = import_deepspeed("cpu")
    with single_process_world(), talk_to_log():
        parsed = deepspeed.DeepSpeedConfig(dict(config))
    return {
        "train_micro_batch_size_per_gpu": parsed.train_micro_batch_size_per_gpu,
        "optimizer": {"type": parsed.optimizer_name, "params": parsed.optimizer_params},
        "scheduler": {"type": parsed.scheduler_name, "params": parsed.scheduler_params},
        "gradient_clipping": parsed.gradient_clipping,
    }


def run_engine(start: NamedArrays, grads: Sequence[NamedArrays], config: Mapping[str, Any]) -> EngineTrace:
    """Drive `deepspeed.initialize`'s engine through one update for each gradient, in float32 on the CPU."""
    import torch

    from torch_impl.engine import QUIET, import_deepspeed, single_process_world, talk_to_log

    class Linear(torch.nn.Module):
        # A loss that is linear in every weight has exactly the gradient it is given.
        def __init__(self) -> None:
            super().__init__()
            self.tensors = torch.nn.ParameterList(torch.tensor(array) for array in start.values())

        def forward(self, slopes: list[torch.Tensor]) -> torch.Tensor:
            return torch.stack([(p * g).sum() for p, g in zip(self.tensors, slopes, strict=True)]).sum()

    deepspeed = import_deepspeed("cpu")
    module = Linear()
    with single_process_world(), talk_to_log():
        engine, optimizer, _, _ = deepspeed.initialize(
            model=module,
            model_parameters=list(module.parameters()),
            config={**config, "steps_per_print": QUIET},
        )
    rates = []
    for grad in grads:
        engine.backward(engine([torch.tensor(grad[name]) for name in start]))
        rates.append(optimizer.param_groups[0]["lr"])
        engine.step()
    named = dict(zip(start, module.tensors, strict=True))
    adam = AdamTrace(
        {name: p.detach().numpy().copy() for name, p in named.items()},
        {name: optimizer.state[p]["exp_avg"].numpy().copy() for name, p in named.items()},
        {name: optimizer.state[p]["exp_avg_sq"].numpy().copy() for name, p in named.items()},
    )
    engine.destroy()
    return EngineTrace(np.array(rates), adam)


# Optimizers: any that the engine runs, with parameter groups and frozen parameters


def run_optimizer(
    start: NamedArrays,
    grads: Sequence[NamedArrays],
    config: Mapping[str, Any],
    group_of: Mapping[str, str],
    overrides: Mapping[str, Mapping[str, Any]],
) -> AdamTrace:
    """Drive the real engine through one update for each gradient, in float32 on the CPU.

    Args:
        start: first weights.
        grads: gradients of each update; a name that has none is frozen.
        config: DeepSpeed config, batch size included.
        group_of: parameter group of each name.
        overrides: what a group sets for itself, as in `torch.optim`.

    Returns:
        Weights, and those moments that the optimizer keeps; SGD's momentum stands in `exp_avg`.
    """
    import torch

    from torch_impl.engine import QUIET, import_deepspeed, single_process_world, talk_to_log

    class Linear(torch.nn.Module):
        # A loss that is linear in every weight has exactly the gradient it is given.
        def __init__(self) -> None:
            super().__init__()
            self.tensors = torch.nn.ParameterDict(
                {
                    k: torch.nn.Parameter(torch.tensor(a), requires_grad=k in grads[0])
                    for k, a in start.items()
                }
            )

        def forward(self, slopes: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.stack([(self.tensors[k] * g).sum() for k, g in slopes.items()]).sum()

    deepspeed = import_deepspeed("cpu")
    module = Linear()
    named = dict(module.tensors.items())
    groups = list(dict.fromkeys(group_of[name] for name in start))
    with single_process_world(), talk_to_log():
        engine, optimizer, _, _ = deepspeed.initialize(
            model=module,
            model_parameters=[
                {"params": [named[k] for k in start if group_of[k] == group], **overrides.get(group, {})}
                for group in groups
            ],
            config={**config, "steps_per_print": QUIET},
        )
    for grad in grads:
        engine.backward(engine({name: torch.tensor(array) for name, array in grad.items()}))
        engine.step()
    moments = [
        {
            k: optimizer.state[p][key].numpy().copy()
            for k, p in named.items()
            if key in optimizer.state.get(p, {})
        }
        for key in ("exp_avg", "exp_avg_sq", "momentum_buffer")
    ]
    engine.destroy()
    weights = {name: p.detach().numpy().copy() for name, p in named.items()}
    return AdamTrace(weights, moments[0] | moments[2], moments[1])


# Schedulers: the class alone, and under the engine


@dataclass(frozen=True)
class RateTrace:
    """What an optimizer was set to at each update.

    Attributes:
        rates: learning rate of each update (k,), float64.
        betas: betas of each update (k, 2), float64; None where the optimizer has none.
    """

    rates: np.ndarray
    betas: np.ndarray | None


def class_rates(scheduler: Mapping[str, Any], count: int, lr: float) -> RateTrace:
    """Settings of updates 0 to count - 1 from a scheduler class on Adam, stepped after each update.

    Args:
        scheduler: `type` and `params`, as in a config.
        count: updates.
        lr: the optimizer's own learning rate.
    """
    import torch

    from torch_impl.engine import import_deepspeed

    import_deepspeed("cpu")
    from deepspeed.runtime import lr_schedules

    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    stepped = getattr(lr_schedules, scheduler["type"])(optimizer, **scheduler["params"])
    group = optimizer.param_groups[0]
    rates, betas = np.empty(count), np.empty((count, 2))
    for k in range(count):
        rates[k], betas[k] = group["lr"], group["betas"]
        stepped.step()
    return RateTrace(rates, betas)


def engine_rates(config: Mapping[str, Any], count: int) -> RateTrace:
    """Settings that the real engine's optimizer has at updates 0 to count - 1, in float32 on the CPU."""
    import torch

    from torch_impl.engine import QUIET, import_deepspeed, single_process_world, talk_to_log

    class Weight(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self) -> torch.Tensor:
            return self.weight.sum()

    deepspeed = import_deepspeed("cpu")
    module = Weight()
    with single_process_world(), talk_to_log():
        engine, optimizer, _, _ = deepspeed.initialize(
            model=module,
            model_parameters=list(module.parameters()),
            config={"train_micro_batch_size_per_gpu": 1, **config, "steps_per_print": QUIET},
        )
    rates, betas = [], []
    for _ in range(count):
        engine.backward(engine())
        rates.append(optimizer.param_groups[0]["lr"])
        betas.append(optimizer.param_groups[0].get("betas"))
        engine.step()
    engine.destroy()
    return RateTrace(np.array(rates), None if betas[0] is None else np.array(betas))


# Float16's loss scale, under the engine


def run_loss_scale(
    scale: Mapping[str, Any], stage: int, count: int, overflows: Sequence[int]
) -> list[tuple[float, bool]]:
    """Loss scale before each update and whether it was skipped, of the real engine with planted overflows.

    One weight in float16, which any CPU can do; DeepSpeed's question whether it does so fast is answered with yes.

    Args:
        scale: the `fp16` entry of a config.
        stage: of ZeRO.
        count: updates.
        overflows: numbers of the updates whose gradient is infinite.
    """
    import warnings
    from unittest.mock import patch

    import torch

    from torch_impl.engine import QUIET, import_deepspeed, single_process_world, talk_to_log

    deepspeed = import_deepspeed("cpu")
    module = torch.nn.Linear(1, 1, bias=False)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": QUIET,
        "optimizer": {"type": "SGD", "params": {"lr": 1e-3}},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        "fp16": dict(scale),
    }
    accelerator = type(deepspeed.accelerator.get_accelerator())
    able = patch.object(accelerator, "is_fp16_supported", lambda self: True)
    with able, single_process_world(), talk_to_log(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        engine, optimizer, _, _ = deepspeed.initialize(
            model=module, model_parameters=list(module.parameters()), config=config
        )
        scaler = optimizer.loss_scaler if stage else optimizer.loss_scale_config
        found = []
        for update in range(count):
            before = float(scaler.cur_scale)
            value = torch.inf if update in overflows else 0.5
            engine.backward(engine(torch.full((1, 1), value, dtype=torch.float16)).float().sum())
            engine.step()
            found.append((before, bool(optimizer.overflow)))
        engine.destroy()
    return found


@dataclass(frozen=True)
class HalfTrace:
    """A way through updates in half precision.

    Attributes:
        scales: loss scale before each update, and whether it was skipped.
        adam: float32 weights and moments after the last update.
    """

    scales: list[tuple[float, bool]]
    adam: AdamTrace


def run_half(
    start: NamedArrays, grads: Sequence[NamedArrays], config: Mapping[str, Any], moments: Sequence[str]
) -> HalfTrace:
    """Drive the real engine in float16 or bfloat16 through one update for each gradient, on the CPU.

    As in `run_loss_scale` any CPU will do. The engine begins with the weights it is given, whole and in float32, as
    `torch_impl.engine` has it: its own start is rounded and, without ZeRO, has decayed once while it was built.

    Args:
        start: first weights.
        grads: gradients of each update, in float32; scaled and rounded to the dtype they may overflow.
        config: DeepSpeed config, batch size included.
        moments: the names of the optimizer's moments, in the order of `AdamTrace`.
    """
    import warnings
    from unittest.mock import patch

    import torch

    from torch_impl.engine import QUIET, import_deepspeed, single_process_world, talk_to_log
    from torch_impl.sharding import MASTER, full_arrays, put_arrays

    class Linear(torch.nn.Module):
        # A loss that is linear in every weight has exactly the gradient it is given; the sum is in float32, as the
        # loss of a network is.
        slopes: dict[str, torch.Tensor]

        def __init__(self) -> None:
            super().__init__()
            self.tensors = torch.nn.ParameterDict({k: torch.tensor(a) for k, a in start.items()})

        def forward(self) -> torch.Tensor:
            return torch.stack([(self.tensors[k].float() * g).sum() for k, g in self.slopes.items()]).sum()

    deepspeed = import_deepspeed("cpu")
    module = Linear()
    accelerator = type(deepspeed.accelerator.get_accelerator())
    able = patch.object(accelerator, "is_fp16_supported", lambda self: True)
    half = "fp16" in config
    stage = config.get("zero_optimization", {}).get("stage", 0)
    with able, single_process_world(), talk_to_log(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        # ZeRO 3 gathers the weights by a call that torch has renamed.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        engine, optimizer, _, _ = deepspeed.initialize(
            model=module,
            model_parameters=list(module.parameters()),
            config={**config, "steps_per_print": QUIET},
        )
        scaler = (optimizer.loss_scaler if stage else optimizer.loss_scale_config) if half else None
        own = {f"tensors.{name}": array for name, array in start.items()}
        zeros = {name: np.zeros_like(array) for name, array in own.items()}
        # SGD's momentum is there before the first gradient only where that step at the start was made.
        put_arrays(engine, {MASTER: own} | (dict.fromkeys(moments, zeros) if not stage else {}), 0)
        scales = []
        for grad in grads:
            scale = float(scaler.cur_scale) if scaler else 1.0
            module.slopes = {name: torch.tensor(array) for name, array in grad.items()}
            # Without ZeRO the engine (0.19) divides by the loss scale and never multiplies by it.
            engine.backward(engine() * (scale if half and not stage else 1.0))
            engine.step()
            scales.append((scale, bool(getattr(optimizer, "overflow", False))))
        found = full_arrays(engine, [MASTER, *moments])
        engine.destroy()
    named = [{name.removeprefix("tensors."): a for name, a in found[kind].items()} for kind in found]
    return HalfTrace(scales, AdamTrace(*named, *[{}] * (3 - len(named))))
