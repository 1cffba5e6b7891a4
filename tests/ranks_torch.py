"""Programs that the tests of `torch_impl.sharding` start: `python -m tests.ranks_torch WHAT FOLDER`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from parivox.parallel import World, launched_world
from parivox.watchdog import Watchdog
from torch_impl import sharding
from torch_impl.engine import import_deepspeed, single_process_world

ROWS, UPDATES, SPLIT = 8, 5, 2
KINDS = ("weights", "exp_avg", "exp_avg_sq")
STAGES = (0, 1, 2, 3)
BF16 = (0, 1, 2, 3)
"""Stages that are also run in bfloat16, on two ranks."""


class Tiny(torch.nn.Module):
    """Odd sizes: no tensor can be shared evenly by two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(7, 21), torch.nn.Linear(21, 5)
        self.frozen = torch.nn.Parameter(torch.full((5,), 0.5), requires_grad=False)
        rng = np.random.default_rng(3)
        with torch.no_grad():
            for p in self.parameters():
                if p.requires_grad:
                    p.copy_(torch.tensor(0.3 * rng.standard_normal(p.shape), dtype=torch.float32))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.last(torch.tanh(self.first(x))) * self.frozen - y).square().mean()


def new_engine(stage: int, ranks: int, bf16: bool = False):
    config = {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": ROWS // ranks,
        "optimizer": {"type": "Adam", "params": {"lr": 0.01}},
        "gradient_clipping": 0.05,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": bf16},
        "steps_per_print": 10**9,
    }
    module = Tiny()
    trained = [p for p in module.parameters() if p.requires_grad]
    with single_process_world():
        return import_deepspeed("cpu").initialize(model=module, model_parameters=trained, config=config)[0]


def updates(engine, first: int, last: int, rank: int, ranks: int) -> dict[str, int]:
    """Updates `first` to `last - 1` on this rank's rows; returns the bytes of the last."""
    held: dict[str, int] = {}
    for k in range(first, last):
        rng = np.random.default_rng([1, k])
        rows = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
        kind = next(engine.module.parameters()).dtype
        x, y = (torch.tensor(rng.standard_normal((ROWS, n)), dtype=kind)[rows] for n in (7, 5))
        engine.backward(engine(x, y))
        held = sharding.engine_bytes(engine)
        engine.step()
    return held


def stages(folder: str) -> None:
    """Train at each stage: in one go, and with a stop at which another engine takes over."""
    world = sharding.initialize(launched_world("torch"))
    with Watchdog(world, sharding.share):
        runs = [(stage, False) for stage in (STAGES if world.size > 1 else (0,))]
        runs += [(stage, True) for stage in (BF16 if world.size > 1 else ())]
        for stage, bf16 in runs:
            one_stage(Path(folder), world, stage, bf16)


def one_stage(folder: Path, world: World, stage: int, bf16: bool) -> None:
    # What goes on is of another stage: whole arrays belong to none. In bfloat16 the stages round differently.
    other = stage if bf16 or world.size == 1 else (stage + 1) % len(STAGES)
    whole, parts, resumed = (new_engine(one, world.size, bf16) for one in (stage, stage, other))
    held = updates(whole, 0, UPDATES, world.rank, world.size)
    updates(parts, 0, SPLIT, world.rank, world.size)
    taken = sharding.full_arrays(parts, KINDS)
    sharding.put_arrays(resumed, taken, SPLIT)
    back = sharding.full_arrays(resumed, KINDS)
    same = all(np.array_equal(back[kind][name], taken[kind][name]) for kind in KINDS for name in taken[kind])
    updates(resumed, SPLIT, UPDATES, world.rank, world.size)
    end = f"{world.size}-{stage}-{world.rank}" + ("-bf16" if bf16 else "")
    for name, engine in (("whole", whole), ("resumed", resumed)):
        arrays = sharding.full_arrays(engine, KINDS)
        flat = {f"{kind}.{k}": a for kind, tree in arrays.items() for k, a in tree.items()}
        np.savez(folder / f"{name}-{end}.npz", **flat)
    told = {"same": same, "optimizer_class": type(whole.optimizer).__name__, **held}
    (folder / f"{end}.json").write_text(json.dumps(told))


def wait_for_ever(folder: str) -> None:
    """Take part in sums until killed."""
    world = sharding.initialize(launched_world("torch"))
    with Watchdog(world, sharding.share):
        while True:
            sharding.share("still here")
            Path(folder, str(world.rank)).touch()
            time.sleep(0.05)


if __name__ == "__main__":
    {"stages": stages, "wait": wait_for_ever}[sys.argv[1]](sys.argv[2])
