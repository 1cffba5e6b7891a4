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
    from torch_impl.engine import import_deepspeed, single_process_world

    deepspeed = import_deepspeed("cpu")
    with single_process_world():
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

    from torch_impl.engine import QUIET, import_deepspeed, single_process_world

    class Linear(torch.nn.Module):
        # A loss that is linear in every weight has exactly the gradient it is given.
        def __init__(self) -> None:
            super().__init__()
            self.tensors = torch.nn.ParameterList(torch.tensor(array) for array in start.values())

        def forward(self, slopes: list[torch.Tensor]) -> torch.Tensor:
            return torch.stack([(p * g).sum() for p, g in zip(self.tensors, slopes, strict=True)]).sum()

    deepspeed = import_deepspeed("cpu")
    module = Linear()
    with single_process_world():
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
