"""Planted faults of the enhancer's discriminator and STFT losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest.mock import patch

import numpy as np

from parity_tests import rungs_discriminator
from parity_tests.faults import Fault, Patch, both, swap
from parity_tests.ladder import Ladder
from parity_tests.result import Row
from parity_tests.sides import Side
from parivox.features import hann_window, padded_window


def stft_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """The recorded STFT losses."""
    yield from rungs_discriminator.stft_rows(ladder, side)


def loss_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """The recorded hinge and generator's losses."""
    weights = ladder.reference.weights("discriminator") or {}
    losses = side.judge(weights, *rungs_discriminator.recorded_sounds(ladder), gradients=False).losses
    yield from rungs_discriminator.loss_rows(ladder, side, losses)


def norm_probe(ladder: Ladder, side: Side) -> Iterator[Row]:
    """The recorded gradient norms."""
    weights = ladder.reference.weights("discriminator") or {}
    grads = side.judge(weights, *rungs_discriminator.recorded_sounds(ladder)).grads
    yield rungs_discriminator.gradient_row(ladder, side, grads)


PROBES = (stft_probe, loss_probe, norm_probe)


def _hann(sound: Callable) -> Callable:
    """The window of every other spectrogram of the model."""
    return lambda x, window, hop: sound(
        x, padded_window(hann_window(int(np.count_nonzero(window))), len(window)), hop
    )


def zeros(sound: Callable) -> Callable:
    """Zeros where the end of the signal is to be reflected."""

    def pad(x, widths, mode="constant", *args, **kwargs):
        return sound(x, widths, "constant" if mode == "reflect" else mode, *args, **kwargs)

    return pad


def _by_item(sound: Callable) -> Callable:
    """Losses item by item, then averaged: the log magnitudes do not change, the convergence does."""

    def mrstft_loss(output, target, cfgs):
        parts = [sound(output[k : k + 1], target[k : k + 1], cfgs) for k in range(len(output))]
        return tuple(sum(terms[1:], terms[0]) / len(terms) for terms in zip(*parts, strict=True))

    return mrstft_loss


def _other_way(sound: Callable) -> Callable:
    """Convergence relative to the output's norm."""
    return lambda output, target, cfgs: sound(target, output, cfgs)


def _wrong_sign(sound: Callable) -> Callable:
    def discriminator_losses(fake, real):
        turned = ({k: [-part for part in v] for k, v in scores.items()} for scores in (fake, real))
        return sound(*turned)

    return discriminator_losses


def _without_norm(sound: Callable) -> Callable:
    """The direction multiplied by its gain."""
    return lambda gain, direction: gain * direction


def _fixed_norm(sound: Callable) -> Callable:
    """The norm of the direction taken for a constant: right values, wrong gradients."""

    def weight_norm(gain, direction):
        inverse = sound(gain, direction) / gain / direction
        if hasattr(inverse, "detach"):
            return gain * direction * inverse.detach()
        import jax

        return gain * direction * jax.lax.stop_gradient(inverse)

    return weight_norm


def _slope(value: float) -> Patch:
    return lambda: patch("parivox.weights_discriminator.LEAK", value)


DISCRIMINATOR_FAULTS: tuple[Fault, ...] = (
    Fault(
        "spectral convergence item by item",
        "outputs",
        "float32",
        stft_probe,
        both("model.mrstft.mrstft_loss", _by_item),
    ),
    Fault(
        "output and target of the STFT losses exchanged",
        "outputs",
        "float32",
        stft_probe,
        both("model.mrstft.mrstft_loss", _other_way),
        long=True,
    ),
    Fault(
        "Hann window in the spectrogram discriminator",
        "outputs",
        "float32",
        loss_probe,
        both("model.discriminator.magnitudes", _hann),
        long=True,
    ),
    Fault(
        "zeros after the end of a period",
        "outputs",
        "float32",
        loss_probe,
        {"jax": swap("jax.numpy.pad", zeros), "torch": swap("torch.nn.functional.pad", zeros)},
        long=True,
    ),
    Fault(
        "hinge with the wrong sign",
        "outputs",
        "float32",
        loss_probe,
        both("model.discriminator.discriminator_losses", _wrong_sign),
    ),
    Fault(
        "leaky ReLU with the slope that JAX takes unless told",
        "outputs",
        "float32",
        loss_probe,
        {"jax": _slope(0.01), "torch": _slope(0.01)},
        long=True,
    ),
    Fault(
        "no weight norm",
        "outputs",
        "float32",
        loss_probe,
        both("model.discriminator.weight_norm", _without_norm),
        long=True,
    ),
    Fault(
        "norm of a weight taken for a constant",
        "gradients",
        "float32",
        norm_probe,
        both("model.discriminator.weight_norm", _fixed_norm),
        long=True,
    ),
)
"""All are probed in float32, where a program is compiled in half the time; each is far beyond rounding."""
