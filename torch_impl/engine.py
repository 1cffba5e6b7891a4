"""Updates through the real DeepSpeed engine; the only file that imports deepspeed.

`python -m torch_impl.engine` compiles DeepSpeed's C++ extensions ahead of the first run.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parivox.caches import extensions_folder
from parivox.errors import BackendError
from torch_impl.optim import AdamState
from torch_impl.train_step import bind
from torch_impl.weights import Params

QUIET = 1_000_000_000
"""Steps between DeepSpeed's own progress lines: Parivox prints its own."""

_kernel_user: object = None
"""Key of the state that updated last: the CPU kernel has one memory for all states of a process."""


def import_deepspeed(device: str) -> Any:
    """The deepspeed package, told which device to use; `Any`, since its own types are too loose to check with."""
    # DeepSpeed would take a GPU that is merely present, and talks a lot while it loads.
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    load_extensions(deepspeed)
    return deepspeed


def load_extensions(deepspeed: Any) -> None:
    """Load DeepSpeed's C++ extensions, compiling those that are not compiled yet.

    Raises:
        BackendError: they do not compile.
    """
    folder = os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_folder()))
    accelerator = deepspeed.accelerator.get_accelerator()
    names = ["FusedAdamBuilder", *(["ShareMemCommBuilder"] if accelerator.device_name() == "cpu" else [])]
    try:
        with _sole_builder(Path(folder)), _own_ninja(), talk_to_log():
            for name in names:
                accelerator.create_op_builder(name).load(verbose=False)
    except (RuntimeError, ImportError, OSError) as error:
        raise BackendError(
            f"DeepSpeed's extensions could not be compiled in {folder}: {error}\nThey need a C++ compiler (Debian:"
            " apt install g++) and the headers of Python; enhancing and the JAX backend need neither"
        ) from error


@contextmanager
def _sole_builder(folder: Path) -> Iterator[None]:
    # PyTorch marks a build with a plain file and waits for as long as there is one, so a build that was killed
    # would be waited for without end. This lock ends with its process: who holds it may remove such a file.
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "builder", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.glob("*/lock"):
            left.unlink()
        yield


@contextmanager
def _own_ninja() -> Iterator[None]:
    # Another ninja on the way would not take this one's log for its own and compile everything anew.
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextmanager
def talk_to_log() -> Iterator[None]:
    """Send what DeepSpeed prints to the log `parivox.deepspeed`: the terminal is the user's."""
    heard = io.StringIO()
    try:
        with redirect_stdout(heard):
            yield
    finally:
        for line in heard.getvalue().splitlines():
            logging.getLogger("parivox.deepspeed").info(line)


@contextmanager
def single_process_world() -> Iterator[None]:
    """Describe a world of one process while DeepSpeed starts, unless a launcher has described another.

    The description goes afterwards: a child process that inherited it would take the port for its own.
    """
    if "WORLD_SIZE" in os.environ:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ.update(world)
    try:
        yield
    finally:
        for name in world:
            os.environ.pop(name, None)


class DeepSpeedState:
    """A denoiser under `deepspeed.initialize` with the given config, at a given step."""

    def __init__(self, params: Params, adam: AdamState, hidden: int, config: Mapping[str, Any], device: str):
        deepspeed = import_deepspeed(device)
        self.module = bind(hidden, params)
        with single_process_world(), talk_to_log():
            self.engine, self._optimizer, _, self._scheduler = deepspeed.initialize(
                model=self.module,
                model_parameters=list(self.module.parameters()),
                config={**config, "steps_per_print": QUIET},
            )
        self._key = object()
        self._restore(adam)

    def _restore(self, adam: AdamState) -> None:
        parameters = dict(self.module.named_parameters())
        for name, parameter in parameters.items():
            self._optimizer.state[parameter] = {
                "step": adam.count,
                "exp_avg": adam.exp_avg[name],
                "exp_avg_sq": adam.exp_avg_sq[name],
            }
        self.engine.global_steps = adam.count
        if adam.count:
            # Where the engine would stand after `count` updates: the scheduler has stepped as often.
            self._scheduler.step(adam.count - 1)

    def _take_kernel(self) -> None:
        global _kernel_user
        if _kernel_user is not self._key:
            self._replay_bias_correction(self.engine.global_steps)
        _kernel_user = self._key

    def _replay_bias_correction(self, count: int) -> None:
        # The CPU kernel keeps beta^t as a float32 product that grows by one factor a step. Who comes to it at
        # another t than the next, as a run that goes on or a second state of one process does, gets pow(beta, t)
        # instead, and the weights differ in the last bit from those of a run that was alone and not interrupted.
        # Stepping an empty tensor through all t updates rebuilds the product.
        if next(self.module.parameters()).device.type != "cpu":
            return
        optimizer, group = self._optimizer, self._optimizer.param_groups[0]
        empty = [[torch.zeros(0)] for _ in range(4)]
        for step in range(1, count + 1):
            optimizer.multi_tensor_adam(
                2048 * 32,
                optimizer._dummy_overflow_buf,
                empty,
                0.0,
                *group["betas"],
                group["eps"],
                step,
                optimizer.adam_w_mode,
                group["bias_correction"],
                0.0,
            )

    @property
    def adam(self) -> AdamState:
        """Updates made and moments, from the engine's optimizer."""
        state = self._optimizer.state
        named = dict(self.module.named_parameters())
        return AdamState(
            self.engine.global_steps,
            {name: state[p]["exp_avg"] for name, p in named.items()},
            {name: state[p]["exp_avg_sq"] for name, p in named.items()},
        )

    def backward(self, loss: Tensor) -> dict[str, Tensor]:
        """Compute the gradients through the engine, by parameter name."""
        self.engine.backward(loss)
        return {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}

    def update(self) -> float:
        """Let the engine clip, step the optimizer, then the scheduler; returns the rate that was used."""
        rate = self._optimizer.param_groups[0]["lr"]
        self._take_kernel()
        self.engine.step()
        return float(rate)

    def discard(self) -> float:
        """Drop the gradients."""
        self.engine.optimizer.zero_grad()
        return float(self._optimizer.param_groups[0]["lr"])


if __name__ == "__main__":
    import_deepspeed("cpu")
