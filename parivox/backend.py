"""The one door between Parivox and its two backends.

A backend turns named arrays into a state, makes one training step, turns a state back into named
arrays, and runs the forward pass. It knows nothing of folders, files or the terminal. The names are
the tensor names of the public checkpoint, so a checkpoint, a conversion and a change of backend are
one mechanism.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from parivox.deepspeed_config import OptimizerConfig, TrainConfig
from parivox.errors import BackendError, CheckpointError
from parivox.hparams import EnhancerHParams, HParams
from parivox.parallel import World
from parivox.stages import has_judge

NamedArrays = dict[str, np.ndarray]
"""Public tensor name -> array."""

Batch = Mapping[str, np.ndarray]
"""What a training step eats, the first axis of each array counting rows: sound is (b, t) float at 44,100 Hz.

The denoiser takes `noisy` and `target`. The enhancer's first stage takes `target` and the noise that its vocoder begins
with, `vocoder_noise` (b, 128, n + 10) with n = t / 420 frames. The second takes `noisy`, `target`, `distorted`, and the
draws of `FlowDraws`: `blend`, `tau`, `time` (b,), `prior` and `sigma` (b, l, n).
"""

BackendName = Literal["jax", "torch"]
Precision = Literal["highest", "tf32", "bf16"]
Dtype = Literal["float32", "float64"]
Solver = Literal["midpoint", "euler", "rk4"]

BACKENDS: tuple[BackendName, ...] = ("jax", "torch")
ENVIRONMENT_VARIABLE = "PARIVOX_BACKEND"
"""Names the backend to use where `--backend` is not given."""


@dataclass(frozen=True)
class TrainArrays:
    """A whole training state as named arrays; the content of a checkpoint.

    Attributes:
        weights: parameters, by public name; float32 also where the network computes in less.
        exp_avg: the optimizer's first moments, under the same names; empty where it keeps none.
        exp_avg_sq: its second moments, likewise.
        step: updates made so far; it fixes the learning rate and Adam's bias correction.
        scaler: the loss scale of float16 as `parivox.loss_scale.LossScale.to_dict` has it; empty otherwise.
        discriminator: the same of the enhancer's discriminator, which has an optimizer of its own; None without one.
    """

    weights: NamedArrays
    exp_avg: NamedArrays
    exp_avg_sq: NamedArrays
    step: int = 0
    scaler: Mapping[str, float] = field(default_factory=dict)
    discriminator: TrainArrays | None = None

    @property
    def skipped(self) -> int:
        """Batches that made no update because a gradient overflowed float16."""
        return int(self.scaler.get("skipped", 0))


@dataclass(frozen=True)
class StepResult:
    """What one training step reports, as host numbers.

    Attributes:
        loss: training loss of the batch, before the update.
        grad_norm: L2 norm of all gradients, before clipping.
        learning_rate: the rate this update used.
        energy_ratio: energy of the output over energy of the target, both summed over the batch.
        finite: False when the loss or the norm is NaN or infinite and no loss scale can mend it; the state is then
            unchanged.
        skipped: whether a gradient overflowed float16: weights, moments and schedule are as before, the loss scale
            is lower. This is no error.
        loss_scale: factor on the loss of this update; 1 unless the network computes in float16.
        suspect: False where loss or norm is not finite and that came from the rows of other processes alone.
        losses: every loss by name; `loss` is the sum of those that the model minimises.
        watched: other numbers of the batch by name, such as the discriminator's mean scores.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    energy_ratio: float
    finite: bool
    skipped: bool = False
    loss_scale: float = 1.0
    suspect: bool = True
    losses: Mapping[str, float] = field(default_factory=dict)
    watched: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOut:
    """What a model makes of held-out rows.

    Attributes:
        losses: every loss by name, means over the rows; `l1` of the denoiser.
        sounds: (b, t) by name: `denoised`, `reconstruction` (through auto-encoder and vocoder), `sample` (through the
            flow as well), as far as the model makes them.
    """

    losses: dict[str, float]
    sounds: dict[str, np.ndarray]


def moments_of(optimizer: OptimizerConfig) -> tuple[str, ...]:
    """Which of the groups `exp_avg` and `exp_avg_sq` an optimizer keeps."""
    if optimizer.kind == "lion":
        return ("exp_avg",)
    if optimizer.kind == "sgd":
        return ("exp_avg",) if optimizer.params["momentum"] else ()
    return ("exp_avg", "exp_avg_sq")


def first_arrays(weights: NamedArrays, optimizer: OptimizerConfig) -> TrainArrays:
    """The state of a run that begins with these weights: moments of zero, those that the optimizer keeps."""
    kept = moments_of(optimizer)
    first, second = (
        {name: np.zeros_like(array) for name, array in weights.items()} if group in kept else {}
        for group in ("exp_avg", "exp_avg_sq")
    )
    return TrainArrays(weights, first, second)


def check_moments(arrays: TrainArrays, optimizer: OptimizerConfig) -> None:
    """Refuse moments that an optimizer has no use for, or lacks; their names and shapes are checked elsewhere.

    Raises:
        CheckpointError: the arrays were made with another optimizer.
    """
    kept = moments_of(optimizer)
    for group, found in (("exp_avg", arrays.exp_avg), ("exp_avg_sq", arrays.exp_avg_sq)):
        if bool(found) != (group in kept):
            fault = "holds no" if group in kept else "holds"
            needs = "needs" if group in kept else "does not keep"
            raise CheckpointError(
                f"the checkpoint {fault} {group}, which the optimizer '{optimizer.kind}' {needs}; train on with the"
                " DeepSpeed config that it was made with"
            )


def is_suspect(own: float, loss: float) -> bool:
    """Whether rows with the mean loss `own` may have made a global loss or gradient that is not finite."""
    return not np.isfinite(own) or bool(np.isfinite(loss))


def check_devices(config: TrainConfig, devices: int) -> None:
    """Refuse a config that was resolved for another number of devices.

    Raises:
        BackendError: naming both numbers.
    """
    if config.world_size != devices:
        raise BackendError(
            f"the config is for {config.world_size} devices, and {devices} train; resolve it with world_size={devices}"
        )


def check_rows(batch: Batch, config: TrainConfig) -> None:
    """Refuse a batch that cannot be cut into the micro batches of an update.

    Raises:
        BackendError: its rows are no multiple of the accumulation steps.
    """
    rows = len(batch["target"])
    if rows % config.accumulation_steps:
        raise BackendError(
            f"a batch of {rows} rows cannot be cut into {config.accumulation_steps} micro batches of one size;"
            " give a multiple"
        )


def check_stage(hp: HParams, config: TrainConfig, arrays: TrainArrays) -> None:
    """Refuse a config that the enhancer is not trained with, and arrays without the discriminator that it needs.

    Raises:
        BackendError: naming what is not supported, and the remedy.
        CheckpointError: the discriminator is missing.
    """
    if not isinstance(hp, EnhancerHParams):
        return
    if config.precision != "fp32":
        raise BackendError(
            f"the enhancer is trained in float32, and the config asks for {config.precision}; leave that out"
        )
    if config.checkpoint_activations:
        raise BackendError(
            "activation checkpointing is for the denoiser alone; leave it out, or use smaller micro batches"
        )
    if has_judge(hp) and arrays.discriminator is None:
        raise CheckpointError(
            "the checkpoint holds no discriminator; set gan_training_start_step to null, or begin a new run"
        )


@runtime_checkable
class Backend(Protocol):
    """What `jax_impl.backend` and `torch_impl.backend` both provide.

    Attributes:
        name: which one it is.
        world: this process among those that train together.
        data_parallel: devices of all processes that share each batch.
        compiles: whether a program is compiled for every new shape.
    """

    name: BackendName
    compiles: bool
    world: World
    data_parallel: int

    def describe(self) -> dict[str, str]:
        """Device, precision and library versions, for logs and reports."""
        ...

    def create_state(self, hp: HParams, arrays: TrainArrays, config: TrainConfig | None = None) -> Any:
        """A training state on the device from named arrays.

        Args:
            hp: of the model.
            arrays: where training goes on.
            config: how to train; None takes the hyperparameters' own `deepspeed_config`.

        Raises:
            BackendError: the config asks for what this backend or device cannot do.
            CheckpointError: listing tensors that are missing, extra or misshapen.
        """
        ...

    def step(self, state: Any, batch: Batch) -> tuple[Any, StepResult]:
        """One update from this process's rows of the global batch; every process must make it.

        With one device these are `accumulation_steps * micro_batch_size` rows. The rows of a device stand side by
        side, cut into its micro batches; those of rank 0 come first. The result is that of the global batch, and
        the same on every process but for `suspect`. The old state must not be used again.
        """
        ...

    def export_state(self, state: Any) -> TrainArrays:
        """The whole state as named arrays on the host; every process must ask for it."""
        ...

    def evaluate(self, state: Any, batch: Batch) -> HeldOut:
        """Losses and sound of a batch, without an update; every process must give the same batch."""
        ...

    def share(self, text: str) -> str:
        """The text that rank 0 hands in, at most 1,020 bytes, on every process; every process must call this."""
        ...

    def agree(self, flag: int) -> int:
        """The largest flag of all processes, on each; every process must call this."""
        ...

    def gather(self, text: str) -> list[str]:
        """The texts of all processes in the order of their ranks, on each; every process must call this."""
        ...

    def load_denoiser(self, hp: HParams, weights: NamedArrays) -> Any:
        """A denoiser for inference from named arrays.

        Raises:
            CheckpointError: listing tensors that are missing, extra or misshapen.
        """
        ...

    def denoise(self, model: Any, wav: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        """Denoise (b, t) float at 44,100 Hz; each row is peak-normalised within, result (b, t).

        The result stays at the model's own scale (peak near 1), see `parivox.enhance`.

        Args:
            model: what `load_denoiser` gave.
            wav: speech, t at least 841.
            lengths: where each row ends (b,), at least 841, when they are filled up to a common t, which then is a
                multiple of 420: a row becomes what it becomes alone, and means nothing beyond its end. None: all
                rows are t long.
        """
        ...

    def load_enhancer(self, hp: EnhancerHParams, weights: NamedArrays) -> Any:
        """An enhancer for inference from named arrays; stored buffers among them are used as they are.

        Raises:
            CheckpointError: listing tensors that are missing, extra or misshapen.
        """
        ...

    def enhance(
        self,
        model: Any,
        wav: np.ndarray,
        prior: np.ndarray,
        noise: np.ndarray,
        tau: np.ndarray,
        blend: np.ndarray | None,
        method: Solver,
        nfe: int,
        lengths: np.ndarray | None = None,
    ) -> np.ndarray:
        """Enhance (b, t) float at 44,100 Hz, t at least 841; each row is peak-normalised within.

        Args:
            model: what `load_enhancer` gave.
            wav: speech.
            prior: normal noise (b, l, n) of the prior, n = t // 420 frames and l of the latent's width.
            noise: normal noise (b, 128, n + 10) of the vocoder.
            tau: share of noise in the prior (b,), in [0, 1].
            blend: share of the denoised spectrogram in the condition (b,), in [0, 1]; None leaves the denoiser out.
            method: solver of the flow.
            nfe: evaluations of the flow's velocity.
            lengths: as in `denoise`; of a row's noise the first frames count.

        Returns:
            (b, 420 * n) in (-1, 1).
        """
        ...


def installed(name: BackendName) -> bool:
    """Whether the packages of a backend are present; imports nothing."""
    needs = {"jax": ("jax", "flax", "optax"), "torch": ("torch",)}[name]
    return all(importlib.util.find_spec(package) is not None for package in needs)


def default_backend() -> BackendName:
    """The backend to use where none is named: the environment variable, else what is installed, JAX first.

    Raises:
        BackendError: the variable holds another word, or nothing is installed.
    """
    wish = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if wish:
        for name in BACKENDS:
            if wish == name:
                return name
        raise BackendError(f"{ENVIRONMENT_VARIABLE} is '{wish}'; set it to 'jax' or 'torch', or unset it")
    for name in BACKENDS:
        if installed(name):
            return name
    raise BackendError("no backend is installed; run: pip install 'parivox[jax]' or 'parivox[torch]'")


def get_backend(
    name: BackendName | None = None,
    *,
    device: str = "auto",
    precision: Precision = "highest",
    dtype: Dtype = "float32",
    world: World | None = None,
) -> Backend:
    """Import one backend and set up its device, or its devices.

    Args:
        name: `jax` or `torch`; None takes `default_backend()`.
        device: `auto`, `cpu`, `gpu` (`cuda` is the same), or `tpu` (JAX only).
        precision: arithmetic of convolutions and matrix products: `highest` is true float32.
        dtype: `float64` evaluates the same code in double precision; on the CPU only.
        world: for training over all devices: this process, which then meets the others. None takes one device.

    Raises:
        BackendError: the backend, device or precision is not available here, or the processes do not meet.
    """
    name = name or default_backend()
    if not installed(name):
        raise BackendError(f"backend '{name}' is not installed; run: pip install 'parivox[{name}]'")
    module = importlib.import_module(f"{name}_impl.backend")
    return module.create_backend(device=device, precision=precision, dtype=dtype, world=world)
