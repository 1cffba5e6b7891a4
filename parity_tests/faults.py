"""Planted faults: each is put into a backend on purpose, and its rung must notice.

A fault that goes unnoticed means that the rung proves nothing. A fault is a patch of one backend and a probe,
the smallest part of a rung that should fail under it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np

from parity_tests import (
    deepspeed_oracle,
    rungs_exact,
    rungs_model,
    rungs_optimizer,
    rungs_signal,
    rungs_training,
)
from parity_tests.ladder import Finding, Ladder
from parity_tests.result import Row, Skipped
from parity_tests.sides import Side
from parivox.backend import BackendName, TrainArrays
from parivox.features import StftSpec

Probe = Callable[[Ladder, Side], Iterable[Row]]
Patch = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Fault:
    """A fault, the rung that must notice it, the dtype it is probed in, and a patch for each backend that has it.

    A long one is left out where little time is to be spent.
    """

    name: str
    rung: str
    dtype: str
    probe: Probe
    patches: dict[BackendName, Patch]
    long: bool = False


def faults(ladder: Ladder) -> Iterator[Finding]:
    """Plant each fault in each backend; the error is the bound over the faulty error, so 1 or more is unnoticed."""
    options = ladder.options
    for fault in all_faults(options.deepspeed, options.enhancer, options.long):
        for name in filter(fault.patches.__contains__, ladder.backends):
            missing = _missing(ladder, fault)
            if missing:
                yield Skipped("planted faults", f"{fault.name}: {missing}")
            else:
                yield fault_row(ladder, fault, name)


def _missing(ladder: Ladder, fault: Fault) -> str:
    """What the probe of a fault needs and this machine lacks; empty where it lacks nothing."""
    from parity_tests import faults_deepspeed, faults_discriminator, faults_enhancer, rungs_discriminator

    engine = fault.probe in (optimizer_probe, rate_probe) or fault in faults_deepspeed.DEEPSPEED_FAULTS
    if engine and not deepspeed_oracle.available():
        return "needs DeepSpeed (pip install 'parivox[deepspeed]')"
    absent = []
    if fault.probe is output_probe and ladder.reference.arrays("float64", "denoiser_odd") is None:
        absent = ["denoiser_odd.npz"]
    elif fault.probe in faults_discriminator.PROBES:
        absent = rungs_discriminator.missing_records(ladder)
    elif fault.probe in faults_enhancer.PROBES:
        absent = faults_enhancer.missing_records(ladder, fault.probe)
    return f"{absent[0]} is not in {ladder.reference.folder}" if absent else ""


def all_faults(deepspeed: bool = True, enhancer: bool = True, long: bool = True) -> tuple[Fault, ...]:
    """The faults below, those of what a DeepSpeed config asks for, and those of the enhancer.

    Args:
        deepspeed: whether there are any of a DeepSpeed config.
        enhancer: whether there are any of the enhancer and its discriminator.
        long: whether there are those that take long.
    """
    from parity_tests.faults_deepspeed import DEEPSPEED_FAULTS
    from parity_tests.faults_discriminator import DISCRIMINATOR_FAULTS
    from parity_tests.faults_enhancer import ENHANCER_FAULTS

    found = [*FAULTS, *(DEEPSPEED_FAULTS if deepspeed else ())]
    found += (*DISCRIMINATOR_FAULTS, *ENHANCER_FAULTS) if enhancer else ()
    return tuple(fault for fault in found if long or not fault.long)


def fault_row(ladder: Ladder, fault: Fault, name: BackendName) -> Row:
    """Plant one fault in one backend and climb its rung."""
    side = ladder.side(name, fault.dtype)
    with fault.patches[name]():
        rows = list(fault.probe(ladder, side))
    # An exact rung has bound 0 and counts differences: any count is a notice, however large.
    seen = max(row.error / row.bound if row.bound else (np.inf if row.error else 0.0) for row in rows)
    unnoticed = 0.0 if seen == np.inf else (1 / seen if seen > 0 else np.inf)
    case = f"{fault.name}, {name}"
    note = "noticed" if seen > 1 else "NOT noticed"
    bound = np.nextafter(ladder.bound("planted faults", "ratio"), 0)
    return Row(
        "planted faults", case, f"rung: {fault.rung}", float(unnoticed), float(bound), fault.dtype, note
    )


# Probes: the smallest part of a rung


def settings_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Names and shapes against the public ones."""
    wrong = rungs_exact.name_faults(side, rungs_exact.public_shapes())
    yield Row("settings", "names", "public checkpoint", wrong, ladder.bound("settings", "exact"))


def rate_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Learning rates of the updates that the engine was driven through."""
    trace = rungs_optimizer.engine(ladder.options.seed)
    config = rungs_optimizer.problem(ladder.options.seed)[2]
    wrong = rungs_exact.rate_faults(side.learning_rates(config, np.arange(len(trace.rates))), trace.rates)
    yield Row("learning rate", "engine", "DeepSpeed", wrong, ladder.bound("learning rate", "exact"))


def optimizer_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Clip and Adam against the engine."""
    yield rungs_optimizer.engine_row(ladder, side)


def output_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """The recorded full-size output."""
    weights = ladder.reference.weights("denoiser") or {}
    offset, rows, length = rungs_model.RECORDED["denoiser_odd"]
    found = side.denoise(weights, 16, ladder.reference.signal(offset, rows, length))
    yield rungs_model.output_row(ladder, side, "denoiser_odd", found)


def gradient_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Gradients of a narrow model against the same backend without the fault."""
    faulty = rungs_model.small_pass(ladder, side).grads
    with patch.multiple("parity_tests.faults", _planted=False):
        sound = rungs_model.sound(ladder, side, rungs_model.small_pass).grads
    error = rungs_model.worst_leaf(faulty, sound)
    yield Row("gradients", "small", "itself", error, ladder.bound("gradients", side.dtype), side.dtype)


def training_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Twenty updates against the same backend without the fault."""
    data = rungs_training.batches(ladder.options.seed, 20)
    start = rungs_training.start(ladder.options.seed)
    faulty, _ = rungs_training.train(side.backend, start, data)
    with patch.multiple("parity_tests.faults", _planted=False):
        sound, _ = rungs_training.train(side.backend, start, data)
    error = rungs_training.worst_loss(faulty, sound)
    yield Row("training", "20 updates", "itself", error, ladder.bound("training", side.dtype), side.dtype)


def exchange_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """A checkpoint saved and gone on with."""
    yield rungs_training.exchange_row(ladder, side, side)


def feature_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Spectrograms against float64 NumPy."""
    yield from rungs_signal.oracle_rows(ladder, side)


# Patches. `_planted` lets a probe look at the sound code while its fault is in place.

_planted = True


def swap(target: str, make: Callable[[Callable], Callable]) -> Patch:
    """Replace a function or method by one that `make` builds from it."""

    def apply() -> AbstractContextManager[object]:
        owner, attribute = target.rsplit(".", 1)
        holder = _resolve(owner)
        sound = getattr(holder, attribute)
        faulty = make(sound)
        return patch.object(holder, attribute, lambda *a, **k: (faulty if _planted else sound)(*a, **k))

    return apply


def _resolve(path: str) -> object:
    import importlib

    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(path)


def both(target: str, make: Callable[[Callable], Callable]) -> dict[BackendName, Patch]:
    """The same patch for the twins."""
    return {"jax": swap(f"jax_impl.{target}", make), "torch": swap(f"torch_impl.{target}", make)}


def _eps(sound: Callable) -> Callable:
    return lambda self, groups, channels, eps=1e-5: sound(self, groups, channels, 1e-6)


def _tanh_gelu(sound: Callable) -> Callable:
    # The tanh approximation of Hendrycks and Gimpel, 2016, from the sound layer's own arithmetic.
    def gelu(self: object, x):
        if isinstance(x, _jax_arrays()):
            import jax

            return jax.nn.gelu(x, approximate=True)
        import torch

        return torch.nn.functional.gelu(x, approximate="tanh")

    return gelu


def _jax_arrays() -> tuple[type, ...]:
    import sys

    return (sys.modules["jax"].Array,) if "jax" in sys.modules else ()


def _transposed(sound: Callable) -> Callable:
    """Weights whose 3x3 kernels are turned on their diagonal: the axes of an image mixed up."""

    def load(arrays, *args, **kwargs):
        turned = {k: np.swapaxes(a, -1, -2) if a.ndim == 4 else a for k, a in arrays.items()}
        return sound(turned, *args, **kwargs)

    return load


def _late(sound: Callable) -> Callable:
    """A schedule shifted by one update."""

    def update_schedule(config):
        schedule = sound(config)
        return lambda count: schedule(np.asarray(count) + 1)

    return update_schedule


def _bare_clip(sound: Callable) -> Callable:
    """Clipping without the 1e-6 beside the norm, as optax has it."""
    return lambda max_norm: sound(max_norm, margin=0.0)


def _wrong_spec(sound: Callable) -> Callable:
    """An STFT that pads with zeros for reflections, and the other way round."""

    def stft(x, spec, *window):
        reflects = spec.pad_mode == "reflect"
        return sound(x, StftSpec(spec.n_fft, spec.hop, "constant" if reflects else "reflect"), *window)

    return stft


def _narrow(sound: Callable) -> Callable:
    return lambda hidden: {name.replace("res_block1", "res1"): shape for name, shape in sound(hidden).items()}


def _forgetful(sound: Callable) -> Callable:
    """A backend that begins with empty moments wherever it begins."""

    def create_state(self, hp, arrays: TrainArrays, config=None):
        empty = {name: np.zeros_like(array) for name, array in arrays.exp_avg.items()}
        return sound(self, hp, dataclasses.replace(arrays, exp_avg=empty), config)

    return create_state


def _unnormalized(sound: Callable) -> Callable:
    """A loss against twice the target."""
    return lambda output, target: sound(output, target + output.mean())


FAULTS: tuple[Fault, ...] = (
    Fault("a renamed tensor", "settings", "float32", settings_probe, both("weights.named_shapes", _narrow)),
    Fault(
        "rate shifted by one update",
        "learning rate",
        "float32",
        rate_probe,
        both("schedule.update_schedule", _late),
    ),
    Fault(
        "other padding of the STFT", "features", "float32", feature_probe, both("features.stft", _wrong_spec)
    ),
    Fault(
        "clip without its 1e-6",
        "optimizer",
        "float32",
        optimizer_probe,
        both("optim.clip_by_global_norm", _bare_clip),
    ),
    Fault(
        "GroupNorm eps 1e-6",
        "outputs",
        "float64",
        output_probe,
        both("model.layers.GroupNorm.__init__", _eps),
    ),
    Fault(
        "tanh GELU",
        "outputs",
        "float64",
        output_probe,
        {
            "jax": swap("jax_impl.model.layers.GELU.__call__", _tanh_gelu),
            "torch": swap("torch_impl.model.layers.GELU.forward", _tanh_gelu),
        },
    ),
    Fault("transposed kernels", "outputs", "float64", output_probe, both("weights.from_arrays", _transposed)),
    Fault(
        "target shifted by the output's mean",
        "gradients",
        "float64",
        gradient_probe,
        both("objective.denoiser_loss", _unnormalized),
    ),
    Fault(
        "rate shifted by one update",
        "training",
        "float64",
        training_probe,
        {"torch": swap("torch_impl.train_step.update_schedule", _late)},
    ),
    Fault(
        "rate shifted by one update",
        "training",
        "float64",
        training_probe,
        {"jax": swap("jax_impl.backend.update_schedule", _late)},
        long=True,
    ),
    Fault(
        "moments lost on the way",
        "checkpoint exchange",
        "float64",
        exchange_probe,
        {
            "jax": swap("jax_impl.backend.JaxBackend.create_state", _forgetful),
            "torch": swap("torch_impl.backend.TorchBackend.create_state", _forgetful),
        },
    ),
)
