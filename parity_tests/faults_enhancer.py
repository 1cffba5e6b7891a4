"""Planted faults of the enhancer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np

from parity_tests import rungs_enhancer
from parity_tests.faults import Fault, Patch, Probe, both, swap
from parity_tests.faults_discriminator import zeros
from parity_tests.ladder import Ladder
from parity_tests.result import Row
from parity_tests.sides import Side
from parity_tests.sides_enhancer import enhancer_side
from parivox.backend import BackendName
from parivox.enhancer_tables import FILTER_TAPS, TAIL, TIME_WIDTH


def _probe(record: str, *keys: str) -> Probe:
    """One recorded file, or only these names in it."""
    case = next(case for case in rungs_enhancer.CASES if case.record == record)

    def probe(ladder: Ladder, side: Side) -> Iterator[Row]:
        wanted = keys or tuple(ladder.reference.arrays("float64", record) or {})
        found = case.run(ladder, enhancer_side(side), wanted)
        yield from rungs_enhancer.case_rows(ladder, side, case, found)

    return probe


def snake_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """SnakeBeta on both sides of where it is cut."""
    yield rungs_enhancer.snake_row(ladder, side)


def stage1_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Losses, sound and statistics of the first stage."""
    step = rungs_enhancer.stage1(ladder, enhancer_side(side), gradients=False)
    yield from rungs_enhancer.stage_rows(ladder, side, "stage1", step)


def stage2_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Losses of the second stage."""
    step = rungs_enhancer.stage2(ladder, enhancer_side(side), gradients=False)
    yield from rungs_enhancer.stage_rows(ladder, side, "stage2", step)


def gradient_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """Gradient norms of the second stage."""
    step = rungs_enhancer.stage2(ladder, enhancer_side(side))
    yield rungs_enhancer.gradient_row(ladder, side, "stage2", step.grads)


normalizer_probe = _probe("normalizer")
irmae_probe = _probe("irmae_tiny")
velocity_probe = _probe("cfm_tiny", "velocity")
solver_probe = _probe("cfm_tiny", "midpoint_8")
vocoder_probe = _probe("vocoder_tiny")

PROBES: dict[Probe, str] = {
    normalizer_probe: "normalizer",
    irmae_probe: "irmae_tiny",
    velocity_probe: "cfm_tiny",
    solver_probe: "cfm_tiny",
    vocoder_probe: "vocoder_tiny",
    snake_probe: "",
    stage1_probe: "stage1",
    stage2_probe: "stage2",
    gradient_probe: "stage2",
}
"""Probes, and the recorded file or the stage that each needs."""


def missing_records(ladder: Ladder, probe: Probe) -> list[str]:
    """Files of the record that a probe needs and that are absent."""
    record = PROBES[probe]
    if record.startswith("stage"):
        return rungs_enhancer.missing_stage(ladder, record)
    return rungs_enhancer.missing_records(ladder, [record] if record else [])


def _biased(sound: Callable) -> Callable:
    """The first variance over all values, not one less."""

    def update_statistics(statistics, x):
        first = statistics[0] != statistics[0]
        mean, variance = sound(statistics, x)
        return mean, variance * (1 - first / int(np.prod(x.shape)))

    return update_statistics


def _small_eps(sound: Callable) -> Callable:
    return lambda x: sound(x, 1e-6)


def _computed(sound: Callable) -> Callable:
    """Frequencies as float32 arithmetic gives them today."""
    return lambda dtype: np.float32(10) ** np.linspace(0, 4, TIME_WIDTH // 2, dtype=np.float32)


def _euler(sound: Callable) -> Callable:
    return lambda method, nfe: ("euler", sound(method, nfe)[1])


def _even_times(sound: Callable) -> Callable:
    return lambda steps, divisor: np.linspace(0, 1, steps + 1)


def _other_axis(sound: Callable) -> Callable:
    """Weight norm over the inputs, the gain taken for an output's; there are as many of both."""

    def kernel(self):
        parts = self.parametrizations.weight
        gain, direction = parts.original0[...], parts.original1[...]
        norm = (direction**2).sum(axis=(0, 2), keepdims=True) ** 0.5
        return direction * gain.swapaxes(0, 1) / norm

    return kernel


def _late(axis: int) -> Callable[[Callable], Callable]:
    """Every frame gets the kernel of the frame before."""

    def make(sound: Callable) -> Callable:
        def predict(hidden, layer):
            kernels, biases = sound(hidden, layer)
            if isinstance(kernels, list):
                return [kernel.roll(1, axis) for kernel in kernels], biases
            import jax.numpy as jnp

            return jnp.roll(kernels, 1, axis), biases

        return predict

    return make


def _exchanged(sound: Callable) -> Callable:
    """Alpha for beta."""
    return lambda self, x: sound(SimpleNamespace(log_alpha=self.log_beta, log_beta=self.log_alpha), x)


def _hann_filter(sound: Callable) -> Callable:
    """The low-pass filter under a Hann window."""

    def kaiser_filter(*args: float):
        values = np.hanning(FILTER_TAPS) * np.sinc((np.arange(FILTER_TAPS) - (FILTER_TAPS - 1) / 2) / 2)
        return values / values.sum()

    return kaiser_filter


def _uncut_jax(sound: Callable) -> Callable:
    def call(self, condition, noise):
        import jax.numpy as jnp

        return self._sound(jnp.pad(condition, ((0, 0), (0, TAIL), (0, 0))), noise)

    return call


def _uncut_torch(sound: Callable) -> Callable:
    def call(self, condition, noise):
        from torch.nn.functional import pad

        return self._sound(pad(condition, (0, TAIL)), noise)

    return call


def _other_prior(sound: Callable) -> Callable:
    return lambda self, mel, tau, noise: sound(self, mel, 1 - tau, noise)


def _other_blend(sound: Callable) -> Callable:
    return lambda self, mel, denoised, blend: sound(self, mel, denoised, 1 - blend)


def _own_statistics(sound: Callable) -> Callable:
    """Normalised with the statistics from before the step."""
    return lambda self, x, statistics=None: sound(self, x)


def _attached(sound: Callable) -> Callable:
    return lambda x: x


class _Attached:
    """The module `torch`, which follows gradients where it was asked not to."""

    def __getattr__(self, name: str) -> object:
        import torch

        return getattr(torch, "enable_grad" if name == "no_grad" else name)


def _constant(name: str, value: object) -> dict[BackendName, Patch]:
    return {
        "jax": lambda: patch(f"jax_impl.{name}", value),
        "torch": lambda: patch(f"torch_impl.{name}", value),
    }


def _calls(name: str, make: Callable[[Callable], Callable]) -> dict[BackendName, Patch]:
    """The same patch of what a module computes."""
    return {
        "jax": swap(f"jax_impl.{name}.__call__", make),
        "torch": swap(f"torch_impl.{name}.forward", make),
    }


def _of_both(target: str, make: Callable[[Callable], Callable]) -> dict[BackendName, Patch]:
    """A patch of what neither backend owns."""
    return {"jax": swap(target, make), "torch": swap(target, make)}


ENHANCER_FAULTS: tuple[Fault, ...] = (
    Fault(
        "biased variance in the Normalizer",
        "outputs",
        "float64",
        normalizer_probe,
        both("model.normalizer.update_statistics", _biased),
    ),
    Fault(
        "instance norm eps 1e-6",
        "outputs",
        "float64",
        velocity_probe,
        both("model.wn.instance_norm", _small_eps),
    ),
    Fault(
        "time frequencies computed in float32",
        "outputs",
        "float32",
        velocity_probe,
        both("model.cfm.time_frequencies", _computed),
    ),
    Fault("midpoint as Euler", "outputs", "float64", solver_probe, both("model.cfm.solver_steps", _euler)),
    Fault(
        "SnakeBeta without its limits",
        "outputs",
        "float64",
        snake_probe,
        _constant("model.alias_free.SNAKE_RANGE", (0.0, float("inf"))),
    ),
    Fault(
        "SnakeBeta's alpha for its beta",
        "outputs",
        "float64",
        snake_probe,
        _calls("model.alias_free.SnakeBeta", _exchanged),
        long=True,
    ),
    Fault(
        "solver without the time map",
        "outputs",
        "float64",
        solver_probe,
        both("model.cfm.solver_times", _even_times),
        long=True,
    ),
    Fault(
        "dilations of the auto-encoder backwards",
        "outputs",
        "float64",
        irmae_probe,
        _constant("model.irmae.IRMAE_DILATIONS", (8, 4, 2, 1)),
        long=True,
    ),
    Fault(
        "weight norm of transposed convolutions over the inputs",
        "outputs",
        "float32",
        vocoder_probe,
        both("model.conv.ConvTranspose1d.kernel", _other_axis),
        long=True,
    ),
    Fault(
        "kernels late by a frame",
        "outputs",
        "float32",
        vocoder_probe,
        {
            "jax": swap("jax_impl.model.lvc.predict", _late(1)),
            "torch": swap("torch_impl.model.lvc.predict", _late(0)),
        },
        long=True,
    ),
    Fault(
        "low-pass filter under a Hann window",
        "outputs",
        "float32",
        vocoder_probe,
        _of_both("parivox.enhancer_tables.kaiser_filter", _hann_filter),
        long=True,
    ),
    Fault(
        "zeros where the vocoder reflects",
        "outputs",
        "float32",
        vocoder_probe,
        {"jax": swap("jax.numpy.pad", zeros), "torch": swap("torch.nn.functional.pad", zeros)},
        long=True,
    ),
    Fault(
        "tail of the sound not cut off",
        "outputs",
        "float32",
        vocoder_probe,
        {
            "jax": swap("jax_impl.model.univnet.UnivNet.__call__", _uncut_jax),
            "torch": swap("torch_impl.model.univnet.UnivNet.forward", _uncut_torch),
        },
        long=True,
    ),
    Fault(
        "normalised with the statistics from before the step",
        "outputs",
        "float32",
        stage1_probe,
        _calls("model.normalizer.Normalizer", _own_statistics),
        long=True,
    ),
    Fault(
        "prior mixed the other way",
        "outputs",
        "float32",
        stage2_probe,
        both("model.enhancer.Enhancer.prior", _other_prior),
        long=True,
    ),
    Fault(
        "condition mixed the other way",
        "outputs",
        "float32",
        stage2_probe,
        both("model.enhancer.Enhancer.condition", _other_blend),
        long=True,
    ),
    Fault(
        "no noise on the flow",
        "outputs",
        "float64",
        stage2_probe,
        _constant("model.cfm.PSI_SIGMA", 0.0),
        long=True,
    ),
    Fault(
        "flow's gradient through the denoiser",
        "gradients",
        "float32",
        gradient_probe,
        {
            "jax": swap("jax.lax.stop_gradient", _attached),
            "torch": lambda: patch("torch_impl.model.enhancer.torch", _Attached()),
        },
        long=True,
    ),
)
"""Probed in float32 where the fault is far beyond rounding, since a program then is compiled in half the time."""
