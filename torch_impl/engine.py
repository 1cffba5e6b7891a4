"""Updates through the real DeepSpeed engine; the only file that imports deepspeed.

`python -m torch_impl.engine` compiles DeepSpeed's C++ extension ahead of the first run.
"""

from __future__ import annotations

import fcntl
import io
import logging
import math
import os
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parivox.backend import TrainArrays, moments_of
from parivox.caches import extensions_folder
from parivox.deepspeed_config import TrainConfig
from parivox.errors import BackendError
from parivox.loss_scale import LossScale, restored_scale
from parivox.schedule import rates_from_deepspeed
from torch_impl.optim import global_norm
from torch_impl.train_step import Update, trained

QUIET = 1_000_000_000
"""Steps between DeepSpeed's own progress lines: Parivox prints its own."""

SHARED_MEMORY = "deepspeed_shm_comm"
"""DeepSpeed's name of the extension through which CPU processes may reduce; training does it through gloo."""

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
    """Load the C++ extension that training needs, compiling it where it is not compiled yet.

    Raises:
        BackendError: it does not compile.
    """
    folder = os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_folder()))
    # Inference over several CPU processes alone uses this one; it would double the time to compile.
    deepspeed.ops.__compatible_ops__[SHARED_MEMORY] = False
    try:
        with _sole_builder(Path(folder)), _own_ninja(), talk_to_log():
            deepspeed.accelerator.get_accelerator().create_op_builder("FusedAdamBuilder").load(verbose=False)
    except (RuntimeError, ImportError, OSError) as error:
        raise BackendError(
            f"DeepSpeed's extension could not be compiled in {folder}: {error}\nIt needs a C++ compiler (Debian:"
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


MOMENTS = {"sgd": {"exp_avg": "momentum_buffer"}}
"""Optimizer -> group of a checkpoint -> what the optimizer calls it, where that is another name."""

AT_MINIMUM = "loss scale already at minimum"
"""What DeepSpeed's error says when a float16 run cannot go on."""


def refuse(accelerator: Any, config: TrainConfig) -> None:
    """Refuse what DeepSpeed cannot do on its device, before it fails in words of its own.

    Raises:
        BackendError: naming what is missing and the remedies.
    """
    if accelerator.device_name() != "cpu":
        return
    kind = config.optimizer.kind
    if kind in ("lion", "lamb"):
        raise BackendError(
            f"DeepSpeed has no CPU kernel of the optimizer '{kind}' (\"This op had not been implemented on CPU"
            ' backend"); use a GPU, or --backend jax'
        )
    if config.precision == "fp16" and not accelerator.is_fp16_supported():
        raise BackendError(
            'DeepSpeed does no float16 on this CPU ("Type fp16 is not supported on your device."); use bf16, a GPU,'
            " or --backend jax"
        )


class DeepSpeedPlayer:
    """A module under `deepspeed.initialize` with the given config, at a given step.

    In float32 without ZeRO the norm is taken here and a batch that is not finite never reaches the engine. Elsewhere
    the gradients are the engine's alone, and it is the engine that skips the update.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        arrays: TrainArrays,
        config: TrainConfig,
        device: str,
        alone: bool = True,
    ):
        """Start an engine.

        Args:
            module: with the weights of `arrays`; what is trained requires a gradient.
            arrays: where training goes on.
            config: how it is trained.
            device: `cpu` or `cuda`.
            alone: False where another engine of this process is updated in turn with this one.
        """
        deepspeed = import_deepspeed(device)
        refuse(deepspeed.accelerator.get_accelerator(), config)
        self.config, self.module, self._alone = config, module, alone
        with single_process_world(), talk_to_log(), warnings.catch_warnings():
            # Of ZeRO's own imports.
            warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
            self.engine, self._optimizer, _, self._scheduler = deepspeed.initialize(
                model=self.module,
                model_parameters=list(trained(self.module).values()),
                config={**config.deepspeed, "steps_per_print": QUIET},
            )
        global _kernel_user
        _kernel_user = None  # DeepSpeed's half-precision wrapper has stepped once
        self._key = object()
        self._plain = config.precision == "fp32" and config.zero_stage == 0
        self._count, self._skipped = arrays.step, arrays.skipped
        self._at_boundary = True
        self._head_start = 0 if config.precision == "fp32" or config.zero_stage else 1
        self._betas = rates_from_deepspeed(config.deepspeed).betas
        self._kinds = {
            g: MOMENTS.get(config.optimizer.kind, {}).get(g, g) for g in moments_of(config.optimizer)
        }
        self._restore(arrays)

    def _restore(self, arrays: TrainArrays) -> None:
        from torch_impl.sharding import MASTER, put_arrays

        kinds = {MASTER: arrays.weights}
        # SGD's momentum begins with the first gradient: at the beginning it must not be there.
        if self._count or self._head_start:
            kinds |= {kind: getattr(arrays, group) for group, kind in self._kinds.items()}
        put_arrays(self.engine, kinds, self._count)
        self.engine.global_steps = self._count
        if self._count and self._scheduler is not None:
            # Where the engine would stand after `count` updates: the scheduler has stepped as often.
            self._scheduler.step(self._count - 1)
        if self.config.loss_scale is not None and not self.config.loss_scale.static:
            found, scaler = restored_scale(self.config.loss_scale, arrays.scaler), self._scaler
            scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter = found.scale, found.good, -1
            if self.config.zero_stage:
                scaler.cur_hysteresis = found.hysteresis

    @property
    def _scaler(self) -> Any:
        """What holds the engine's loss scale."""
        return self._optimizer.loss_scaler if self.config.zero_stage else self._optimizer.loss_scale_config

    @property
    def _scale(self) -> float:
        return float(self._scaler.cur_scale) if self.config.precision == "fp16" else 1.0

    def _take_kernel(self) -> None:
        global _kernel_user
        if self.engine.device.type != "cpu" or not hasattr(self._optimizer_under, "multi_tensor_adam"):
            return
        if not self._alone:
            # Two that take turns would each replay all of the past at every update. Both then get pow(beta, t),
            # as two engines of one process always do; it must not depend on who came before either.
            self._step_nothing(0, self._optimizer_under.param_groups[0]["betas"])
        elif _kernel_user is not self._key:
            self._replay_bias_correction(self._count + self._head_start)
        _kernel_user = self._key

    def _replay_bias_correction(self, count: int) -> None:
        # The CPU kernel keeps beta^t as a float32 product that grows by one factor a step. Who comes to it at
        # another t than the next, as a run that goes on or a second state of one process does, gets pow(beta, t)
        # instead, and the weights differ in the last bit from those of a run that was alone and not interrupted.
        # Stepping an empty tensor through all t updates rebuilds the product. Betas that OneCycle moves are replayed
        # as they were: where they stand still for two updates, there is a product as well.
        betas = [self._optimizer_under.param_groups[0]["betas"]] * count
        if self._betas is not None:
            betas = self._betas(np.maximum(np.arange(count) - self._head_start, 0)).tolist()
        for step in range(1, count + 1):
            self._step_nothing(step, betas[step - 1])

    @property
    def _optimizer_under(self) -> Any:
        """The optimizer under DeepSpeed's wrapper."""
        return getattr(self._optimizer, "optimizer", self._optimizer)

    def _step_nothing(self, step: int, betas: Sequence[float]) -> None:
        """Let the CPU kernel make an update of an empty tensor."""
        optimizer = self._optimizer_under
        group = optimizer.param_groups[0]
        optimizer.multi_tensor_adam(
            2048 * 32,
            optimizer._dummy_overflow_buf,
            [[torch.zeros(0)] for _ in range(4)],
            0.0,
            *betas,
            group["eps"],
            step,
            optimizer.adam_w_mode,
            group["bias_correction"],
            0.0,
        )

    @property
    def count(self) -> int:
        """Updates made so far."""
        return self._count

    def forward(self, *inputs: Any) -> Any:
        """The module's forward pass."""
        return self.module(*inputs) if self._plain else self.engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro batch through the engine."""
        if not self._at_boundary:
            self.engine.step()  # counts the micro batch before; nothing is updated
        self._at_boundary = False
        # Without ZeRO the engine (0.19) divides the gradients by the loss scale and never multiplies the loss by it.
        self.engine.backward(loss * self._scale if self.config.zero_stage == 0 and self._scale != 1 else loss)

    def is_finite(self, loss: Tensor) -> bool:
        """Whether loss and gradients are finite; of divided or half-precision ones the engine finds out later."""
        finite = torch.isfinite(loss)
        return bool(finite & torch.isfinite(self._norm())) if self._plain else bool(finite)

    def _norm(self) -> Tensor:
        return global_norm({name: p.grad for name, p in trained(self.module).items() if p.grad is not None})

    def update(self, loss: Tensor, wanted: bool = True) -> Update:
        """Let the engine clip, step the optimizer, then the scheduler; not so where `wanted` is False."""
        rate, scale = float(self._optimizer.param_groups[0]["lr"]), self._scale
        self._at_boundary = True
        if not self._plain:
            if not wanted:
                self.engine.zero_grad()
                return Update(math.inf, rate, False)
            return self._update_by_engine(bool(torch.isfinite(loss)), rate, scale)
        norm = self._norm()
        finite = wanted and bool(torch.isfinite(loss) & torch.isfinite(norm))
        if finite:
            self._step()
        else:
            self.engine.optimizer.zero_grad()
            steps = self.config.accumulation_steps
            self.engine.micro_steps = self.engine.micro_steps // steps * steps
        return Update(norm.item(), rate, finite)

    def _step(self) -> None:
        self._take_kernel()
        self.engine.step()
        self._count += 1

    def _update_by_engine(self, finite: bool, rate: float, scale: float) -> Update:
        self._take_kernel()
        half = self.config.precision == "fp16"
        try:
            self.engine.step()
        except Exception as error:
            if AT_MINIMUM not in str(error):
                raise
            self.engine.zero_grad()
            return Update(math.inf, rate, False, False, scale)
        norm = float(self.engine.get_global_grad_norm())
        if self._optimizer.overflow:
            self._skipped += half
            return Update(math.inf, rate, half, half, scale)
        self._count += 1
        # Without ZeRO the engine's number is divided by the scale of the next update.
        return Update(
            norm if self.config.zero_stage else norm * self._scale / scale, rate, finite, False, scale
        )

    def export(self) -> TrainArrays:
        """The state as named arrays on the host, whole at any stage of ZeRO; every process must ask for it."""
        from torch_impl.sharding import MASTER, full_arrays

        found = full_arrays(self.engine, [MASTER, *self._kinds.values()])
        names = trained(self.module)
        weights = {name: array for name, array in found[MASTER].items() if name in names}
        groups = {}
        for group in ("exp_avg", "exp_avg_sq"):
            kept = found[self._kinds[group]] if group in self._kinds else {}
            empty = group in self._kinds and not kept
            if empty and self._count:
                raise RuntimeError(f"DeepSpeed's optimizer has lost its {group}")
            # Before the first update it has none yet.
            groups[group] = {k: np.zeros_like(w) for k, w in weights.items()} if empty else kept
        return TrainArrays(weights, **groups, step=self._count, scaler=self._exported_scale())

    def _exported_scale(self) -> dict[str, float]:
        config = self.config.loss_scale
        if config is None:
            return {}
        if config.static:
            return LossScale(config.static, 0, config.hysteresis, self._skipped).to_dict()
        scaler = self._scaler
        good = scaler.cur_iter - scaler.last_overflow_iter - 1
        left = getattr(scaler, "cur_hysteresis", config.hysteresis)
        return LossScale(float(scaler.cur_scale), good, left, self._skipped).to_dict()


if __name__ == "__main__":
    import_deepspeed("cpu")
